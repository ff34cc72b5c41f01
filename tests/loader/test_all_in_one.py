"""A whole SD 3.5 pipeline in one file is converted as diffusers converts it, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import Artifact
from tests.support.loader.inprocess import slim_image
from tests.support.loader.loadercli import Containers, failed, load_request
from tests.support.models import tinysd3
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_ckpt, save_safetensors
from tests.support.models.conversions import identical

OPENS_WITH = "StableDiffusion3Pipeline"
SINGLE = "StableDiffusion3Pipeline.from_single_file"
ROWS = (
    Row("custom_ckpt", "SD 3.5 large", "safetensors", SINGLE, OPENS_WITH),
    Row("custom_ckpt", "SD 3.5 large", "ckpt", SINGLE, OPENS_WITH),
)
TYPES = {None: torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the configs of SD 3.5 and weights that no test downloads."""
    configs = tinysd3.write_configs(tmp_path / "configs")
    weights = configs / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"large")
    with FakeHub() as server:
        server.add_repo(tinysd3.REPO, configs)
        yield server


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that can reach the Hub, with an empty volume."""
    made = Containers.reaching(hub, tmp_path)
    made.env["OMP_NUM_THREADS"] = "1"  # other tests run at the same time
    return made


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


def assert_equal(folder: Path, theirs: Path, wo: torch.dtype | None = None) -> None:
    """Assert that every tensor in `folder` equals the one that diffusers saved in `theirs`.

    wo: the dtype of T5's `wo` weights in `folder`, if diffusers loaded the file in fp16. Then
    diffusers rounds these weights to fp16 and saves them as fp32, while the loader keeps the
    numbers of the file, as `from_pretrained` does. So they are compared after rounding.
    """
    paths = {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
    assert paths == {path.relative_to(theirs) for path in theirs.rglob("*.safetensors")}
    for path in paths:
        mine, yours = load_file(folder / path), load_file(theirs / path)
        assert mine.keys() == yours.keys()
        for name, tensor in mine.items():
            other = yours[name]
            if wo is not None and ".wo." in name:
                assert (tensor.dtype, other.dtype) == (wo, torch.float32)
                assert identical(tensor.half(), other.half())
            else:
                assert identical(tensor, other), (path, name)


def save_peer(file: Path, configs: Path, dtype: torch.dtype, out: Path, **parts: Any) -> Path:
    """Let diffusers convert a file and save the pipeline in `out`. Return `out`."""
    from diffusers import StableDiffusion3Pipeline

    peer = StableDiffusion3Pipeline.from_single_file(
        str(file), config=str(configs), local_files_only=True, dtype=dtype, **parts
    )
    if peer.text_encoder_3 is not None:
        # diffusers 0.42 leaves T5's embedding untied and without numbers, so saving would fail.
        peer.text_encoder_3.tie_weights()
    peer.save_pretrained(out)
    return out


@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_weights_equal_those_of_diffusers(
    row: Row, containers: Containers, hub: FakeHub, file: Path, tmp_path: Path
) -> None:
    """Each tensor equals that of diffusers.

    T5's tokenizer comes from the Hub, torch is not installed, and the folder opens and runs.
    """
    from diffusers import DiffusionPipeline

    given = file
    if row.container == "ckpt":
        given = save_ckpt(tmp_path / "sd35.ckpt", tinysd3.tiny_sd35())
    with slim_image():
        folder, artifact = loaded(containers, hub.serve_file("/file", given))
    theirs = save_peer(file, tmp_path / "configs", torch.float16, tmp_path / "theirs")
    assert_equal(folder, theirs, wo=torch.float16)
    assert (artifact.base_model, artifact.precision) == ("sd-3", "fp16")
    assert artifact.pipeline_class == OPENS_WITH
    requested = {request.path for request in hub.requests if "/resolve/" in request.path}
    assert not any(path.endswith(".safetensors") for path in requested)

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    assert type(pipeline).__name__ == OPENS_WITH
    images = pipeline("a cat", num_inference_steps=1, height=64, width=64, output_type="np").images
    assert images.std() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("revision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_equal_those_of_diffusers_in_each_precision(
    revision: str,
    stored: torch.dtype,
    containers: Containers,
    hub: FakeHub,
    tmp_path: Path,
) -> None:
    """If fp16 is requested, T5's `wo` weights stay fp32, and the reported precision is mixed."""
    file = save_safetensors(tmp_path / "sd35.safetensors", tinysd3.tiny_sd35(stored))
    with slim_image():
        folder, artifact = loaded(containers, hub.serve_file("/file", file), revision=revision)
    theirs = save_peer(file, tmp_path / "configs", TYPES[revision], tmp_path / "theirs")
    assert_equal(folder, theirs, wo=torch.float32 if revision == "fp16" else None)
    assert artifact.precision == ("mixed" if revision == "fp16" else revision)
    config = json.loads((folder / "text_encoder_3" / "config.json").read_text())
    assert config["torch_dtype"] == str(TYPES[revision]).removeprefix("torch.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_file_without_t5_equals_diffusers_pipeline_without_it(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The published files with the CLIP encoders alone load, and nothing comes from the Hub."""
    tensors = {name: t for name, t in tinysd3.tiny_sd35().items() if "t5xxl" not in name}
    file = save_safetensors(tmp_path / "sd35.safetensors", tensors)
    with slim_image():
        folder, _ = loaded(containers, hub.serve_file("/file", file))
    theirs = save_peer(
        file,
        tmp_path / "configs",
        torch.float16,
        tmp_path / "theirs",
        text_encoder_3=None,
        tokenizer_3=None,
    )
    assert_equal(folder, theirs)
    assert not any("/resolve/" in request.path for request in hub.requests)


@pytest.mark.slow
def test_model_renders_in_the_requested_precision(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """spec.verify.render and spec.revision apply as for any other model."""
    verify = {"render": True, "steps": 1}
    folder, artifact = loaded(
        containers, hub.serve_file("/file", file), revision="bf16", verify=verify
    )
    assert artifact.precision == "bf16"
    assert (folder / "preview.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["text_encoders.clip_g.", "first_stage"])
def test_missing_component_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path, part: str
) -> None:
    """The loader does not make up missing components."""
    tensors = {
        key: tensor for key, tensor in tinysd3.tiny_sd35().items() if not key.startswith(part)
    }
    path = save_safetensors(tmp_path / "part.safetensors", tensors)
    ended = containers.load(load_request(hub.serve_file("/part", path)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "of Stable Diffusion 3.5, without its ")
    assert list(containers.store.iterdir()) == []


@pytest.mark.slow
def test_failed_config_fetch_names_the_repo(
    containers: Containers, hub: FakeHub, file: Path
) -> None:
    """The message names the repo, and the reason is that of the Hub's response."""
    hub.repos.clear()
    ended = containers.load(load_request(hub.serve_file("/file", file)))
    failed(ended, Reason.SOURCE_NOT_FOUND, f"the file needs the configs of {tinysd3.REPO}")
