"""ControlNets and VAEs that are loaded as models, not as components of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, ControlNetModel

from devkit.fakehub import FakeHub
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.reasons import Reason
from tests.support.loader.loadercli import Containers, failed, load_request
from tests.support.loader.loadercli import artifact_of as loaded
from tests.support.loader.partloads import WEIGHTS
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.controlnets import save_repo as save_controlnet
from tests.support.models.controlnets import tiny as tiny_controlnet
from tests.support.models.tinyrepo import save_repo
from tests.support.models.vaes import tiny


def test_known_controlnet_loads_by_its_model_id(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """`sd-loader load --model-type controlnet --model-id canny` needs no url."""
    repo = save_controlnet(tmp_path, "SD 1.x")
    (repo / "README.md").write_text("not needed")
    (repo / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    hub.add_repo(CONTROLNET_REPOS["canny"], repo)

    ended = containers.run(
        "load", "--model-type", "controlnet", "--model-id", "canny", "--store", containers.store
    )

    assert ended.code == 0, ended.stderr
    folder = containers.store / "canny"
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["config.json", WEIGHTS]
    ControlNetModel.from_pretrained(folder.resolve(), local_files_only=True)
    requested = {request.path.rpartition("/")[2] for request in hub.requests}
    assert not {"README.md", "diffusion_pytorch_model.bin"} & requested


def test_unknown_model_id_without_a_url_is_refused(containers: Containers) -> None:
    """The message lists the known ids."""
    ended = containers.run(
        "load", "--model-type", "controlnet", "--model-id", "mine", "--store", containers.store
    )
    failed(ended, Reason.INVALID_SPEC, "one of the model ids inpaint, ip2p, tile")


def test_controlnet_loads_from_a_link(containers: Containers, hub: FakeHub, tmp_path: Path) -> None:
    """The artifact names the base model."""
    net = save_safetensors(tmp_path / "net.safetensors", tiny_controlnet("SD 2.x"))
    url = hub.serve_file("/net.safetensors", net)
    artifact = loaded(containers.load(load_request(url, model_type="controlnet")))
    assert (artifact.base_model, artifact.pipeline_class) == ("sd-2", "ControlNetModel")


def test_vae_loads_from_a_pipeline_a_repo_and_a_link(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The loader downloads only the VAE of the pipeline."""
    pipeline = save_repo(tmp_path / "pipeline")
    hub.add_repo("org/pipeline", pipeline)
    hub.add_repo("org/vae", pipeline / "vae")
    link = hub.serve_file("/vae.safetensors", pipeline / "vae" / WEIGHTS)
    base_models = [
        loaded(
            containers.load(load_request(url, model_type="vae", model_id="vae", reload=url))
        ).base_model
        for url in ("org/pipeline", "org/vae", link)
    ]
    assert base_models == ["sd-1"] * 3
    folder = (containers.store / "vae").resolve()
    AutoencoderKL.from_pretrained(folder, local_files_only=True)
    requested = [request.path for request in hub.requests]
    assert not any("unet" in path for path in requested)


def test_inspect_recognises_a_controlnet_and_a_vae(containers: Containers, tmp_path: Path) -> None:
    """Inspect reports the model type, the base model and the class."""
    net = save_safetensors(tmp_path / "net.safetensors", tiny_controlnet("SDXL"))
    vae = save_safetensors(tmp_path / "vae.safetensors", tiny())
    for path, model_type, base, kind in (
        (net, "controlnet", "sdxl", "ControlNetModel"),
        (vae, "vae", "sd-1", "AutoencoderKL"),
    ):
        found = json.loads(containers.run("inspect", path, "--json").stdout)
        assert (found["modelType"], found["baseModel"]) == (model_type, base)
        assert found["pipelineClass"] == kind


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("controlnet", "names the class null; spec.modelType controlnet is for ControlNetModel"),
        ("vae", "names the class null; spec.modelType vae is for AutoencoderKL"),
    ],
)
def test_repo_of_another_class_is_refused_before_its_weights(
    containers: Containers, hub: FakeHub, tmp_path: Path, model_type: str, words: str
) -> None:
    """The loader checks the config first."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    (folder / WEIGHTS).write_bytes(b"weights")
    hub.add_repo("org/other", folder)
    ended = containers.load(load_request("org/other", model_type=model_type))
    failed(ended, Reason.UNSUPPORTED_FORMAT, words)
    assert not any(request.path.endswith(WEIGHTS) for request in hub.requests)
