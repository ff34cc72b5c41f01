"""diffusers converts models without a key table, from tensors that our own reader reads."""

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

pytestmark = pytest.mark.usefixtures("one_thread")

OPENS_WITH = "diffusers, offline"
SINGLE = "from_single_file"
ROWS = (
    Row("custom_ckpt", "SD 3.5 large", "safetensors", SINGLE, OPENS_WITH),
    Row("custom_ckpt", "SD 3.5 large", "ckpt", SINGLE, OPENS_WITH),
)
PREFIX = "text_model."


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the configs of SD 3.5 and weights that no test downloads."""
    configs = tinysd3.write_configs(tmp_path / "configs")
    weights = configs / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"large")
    with FakeHub() as server:
        server.add_repo(tinysd3.REPO, configs)
        yield server


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 3.5 large checkpoint."""
    path = tmp_path_factory.mktemp("file") / "sd35.safetensors"
    return save_safetensors(path, tinysd3.tiny_sd35())


def loaded(containers: Containers, link: str, **fields: object) -> tuple[Path, Artifact]:
    """Load a link and return the published folder and the artifact."""
    ended = containers.load(load_request(link, **fields))
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.artifact is not None
    return containers.store / "model", ended.result.artifact


@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_weights_equal_those_of_diffusers(
    row: Row, containers: Containers, hub: FakeHub, file: Path, tmp_path: Path
) -> None:
    """Each tensor equals that of diffusers.

    The configs come from the Hub, and the folder opens and runs.
    """
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
    # transformers keeps some T5 weights in single precision in a half-precision model.
    assert (artifact.pipeline_class, artifact.precision) == ("StableDiffusion3Pipeline", "mixed")
    requested = {request.path for request in hub.requests if "/resolve/" in request.path}
    assert not any(path.endswith(".safetensors") for path in requested)

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    images = pipeline("a cat", num_inference_steps=1, height=64, width=64, output_type="np").images
    assert images.std() > 0.01


@pytest.mark.slow
def test_fallback_model_renders_in_the_requested_precision(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """spec.verify.render and spec.revision apply as for any other model."""
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
def test_missing_component_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path, part: str
) -> None:
    """Most such files hold only the transformer. The loader does not make up missing components."""
    tensors = {
        key: tensor for key, tensor in tinysd3.tiny_sd35().items() if not key.startswith(part)
    }
    path = save_safetensors(tmp_path / "part.safetensors", tensors)
    ended = containers.load(load_request(hub.serve_file("/part", path)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "the file is a Stable Diffusion 3 model that lacks")
    assert list(containers.store.iterdir()) == []


@pytest.mark.slow
def test_failed_config_fetch_names_the_repo(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """The message names the repo, and the reason is that of the Hub's response."""
    hub.repos.clear()
    ended = containers.load(load_request(hub.serve_file("/file", file)))
    failed(ended, Reason.SOURCE_NOT_FOUND, f"the file needs the configs of {tinysd3.REPO}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param(["evil", "Module"], Reason.UNSAFE_MODEL, id="code of another library"),
        pytest.param(["diffusers", "Nothing"], Reason.UNSAFE_MODEL, id="unknown class"),
    ],
)
def test_configs_naming_foreign_classes_are_refused(
    containers: Containers, hub: FakeHub, file: Path, entry: list[str], reason: Reason
) -> None:
    """Only classes of diffusers and transformers are allowed, even in a mirror's configs."""
    index = hub.repos[tinysd3.REPO].folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": entry}))
    ended = containers.load(load_request(hub.serve_file("/file", file)))
    failed(ended, reason, "model_index.json has vae")


@pytest.mark.slow
def test_field_without_effect_is_refused(containers: Containers, hub: FakeHub, file: Path) -> None:
    """The message names the field."""
    request = load_request(hub.serve_file("/file", file), prediction_type="v_prediction")
    failed(containers.load(request), Reason.INVALID_SPEC, "spec.predictionType does not apply")


@pytest.mark.slow
def test_unknown_architecture_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The loader does not let diffusers treat the file as SD 1."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors_bytes({"joint_blocks.0.other.weight": (1,)}))
    ended = containers.load(load_request(hub.serve_file("/odd", path)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "of a kind that diffusers does not convert")


@pytest.mark.usefixtures("slim")
def test_slim_image_names_the_image_that_converts_the_model(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """The load fails before the weights are downloaded."""
    ended = containers.fetch(load_request(hub.serve_file("/file", file)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "spec.verify.render: true picks the image")
