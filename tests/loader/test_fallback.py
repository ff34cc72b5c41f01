"""What has no key table here is converted by diffusers itself, of what our own reader read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import Artifact
from tests.support.loader.loadercli import Containers, failed, load_request, safetensors_bytes
from tests.support.models import tinysd3
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_ckpt, save_safetensors
from tests.support.models.conversions import identical

OPENS_WITH = "diffusers, offline"
SINGLE = "from_single_file"
ROWS = (
    Row("custom_ckpt", "SD 3.5 large", "safetensors", SINGLE, OPENS_WITH),
    Row("custom_ckpt", "SD 3.5 large", "ckpt", SINGLE, OPENS_WITH),
)
PREFIX = "text_model."


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the configs of SD 3.5, and weights that nobody needs."""
    configs = tinysd3.write_configs(tmp_path / "configs")
    weights = configs / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"large")
    with FakeHub() as server:
        server.add_repo(tinysd3.REPO, configs)
        yield server


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach the Hub, with an empty volume."""
    made = Containers.reaching(hub, tmp_path)
    made.env["OMP_NUM_THREADS"] = "1"  # other tests run at the same time
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 3.5 large."""
    path = tmp_path_factory.mktemp("file") / "sd35.safetensors"
    return save_safetensors(path, tinysd3.tiny_sd35())


def loaded(containers: Containers, link: str, **fields: object) -> tuple[Path, Artifact]:
    """The published folder."""
    ended = containers.load(load_request(link, **fields))
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.artifact is not None
    return containers.store / "model", ended.result.artifact


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_weights_are_those_of_diffusers(
    row: Row, containers: Containers, hub: FakeHub, file: Path, tmp_path: Path
) -> None:
    """Tensor for tensor, with the configs from the Hub or mirror; and the folder opens and runs."""
    from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

    given = file
    if row.container == "ckpt":
        given = save_ckpt(tmp_path / "sd35.ckpt", tinysd3.tiny_sd35())
    folder, artifact = loaded(containers, hub.serve_file("/file", given))

    peer = StableDiffusion3Pipeline.from_single_file(
        str(file), config=str(tmp_path / "configs"), local_files_only=True, dtype=torch.float16
    )
    # diffusers 0.42 leaves T5's embedding untied and without numbers: it could not be saved.
    peer.text_encoder_3.tie_weights()
    peer.save_pretrained(tmp_path / "theirs")
    paths = {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
    assert len(paths) == 5
    for path in paths:
        mine, yours = load_file(folder / path), load_file(tmp_path / "theirs" / path)
        assert mine.keys() == yours.keys()
        assert all(identical(mine[name], yours[name]) for name in mine), path
    assert artifact.base_model == "sd35_large"
    # In half precision, T5 keeps some weights in single, as transformers has it.
    assert (artifact.pipeline_class, artifact.precision) == ("StableDiffusion3Pipeline", "mixed")
    asked = {request.path for request in hub.requests if "/resolve/" in request.path}
    assert not any(path.endswith(".safetensors") for path in asked)

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    images = pipeline("a cat", num_inference_steps=1, height=64, width=64, output_type="np").images
    assert images.std() > 0.01


@pytest.mark.slow
def test_it_renders_and_takes_a_precision(containers: Containers, hub: FakeHub, file: Path) -> None:
    """As any other load."""
    verify = {"render": True, "steps": 1}
    folder, artifact = loaded(
        containers, hub.serve_file("/file", file), revision="bf16", verify=verify
    )
    assert artifact.precision == "bf16"
    assert (folder / "preview.png").is_file()
    config = json.loads((folder / "text_encoder_3" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["text_encoders.t5xxl.", "text_encoders.clip_g.", "first_stage"])
def test_a_missing_part_is_named(
    containers: Containers, hub: FakeHub, tmp_path: Path, part: str
) -> None:
    """Most such files hold the transformer only. Nothing is made up in its place."""
    tensors = {key: one for key, one in tinysd3.tiny_sd35().items() if not key.startswith(part)}
    path = save_safetensors(tmp_path / "part.safetensors", tensors)
    ended = containers.load(load_request(hub.serve_file("/part", path)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "the file is a Stable Diffusion 3 model that lacks")
    assert list(containers.store.iterdir()) == []


@pytest.mark.slow
def test_configs_that_cannot_be_had_are_named(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """With the repo that has them, by the reason that the Hub's answer has."""
    hub.repos.clear()
    ended = containers.load(load_request(hub.serve_file("/file", file)))
    failed(ended, Reason.SOURCE_NOT_FOUND, f"the file needs the configs of {tinysd3.REPO}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param(["evil", "Module"], Reason.UNSAFE_MODEL, id="code of another library"),
        pytest.param(["diffusers", "Nothing"], Reason.UNSAFE_MODEL, id="no class"),
    ],
)
def test_configs_name_classes_of_the_two_libraries_only(
    containers: Containers, hub: FakeHub, file: Path, entry: list[str], reason: Reason
) -> None:
    """A mirror is not trusted more than any other source."""
    index = hub.repos[tinysd3.REPO].folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": entry}))
    ended = containers.load(load_request(hub.serve_file("/file", file)))
    failed(ended, reason, "model_index.json has vae")


@pytest.mark.slow
def test_a_field_without_effect_is_refused(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """By its name."""
    request = load_request(hub.serve_file("/file", file), prediction_type="v_prediction")
    failed(containers.load(request), Reason.INVALID_SPEC, "spec.predictionType does not apply")


@pytest.mark.slow
def test_a_kind_that_diffusers_does_not_know_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """It would be taken for SD 1."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors_bytes({"joint_blocks.0.other.weight": (1,)}))
    ended = containers.load(load_request(hub.serve_file("/odd", path)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "of a kind that diffusers does not convert")


def test_the_slim_image_says_which_image_converts_it(
    containers: Containers, hub: FakeHub, file: Path, slim: dict[str, str]
) -> None:
    """Before the weights come."""
    ended = containers.fetch(load_request(hub.serve_file("/file", file)), **slim)
    failed(ended, Reason.UNSUPPORTED_FORMAT, "spec.verify.render: true picks the image")
