"""Tests that the gallery's Python snippet opens a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd_api.controlnets import CONTROLNET_REPOS
from sd_operator.gateway.gallery.snippets import snippet
from sd_operator.resources.model import Model
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.controlnets import save_repo as save_controlnet
from tests.support.models.vaes import tiny as tiny_vae
from tests.support.operator.operated import Operated


# Older versions of diffusers, which must open the folders too, do not know the new name `dtype`.
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.cluster
def test_snippet_opens_the_published_model(operated: Operated, tmp_path: Path) -> None:
    """The snippet runs without the network; its pipeline has the status's class and precision."""
    operated.start()
    operated.hub.add_repo(CONTROLNET_REPOS["canny"], save_controlnet(tmp_path, "SD 1"))
    vae = save_safetensors(tmp_path / "vae.safetensors", tiny_vae())
    operated.cluster.model("sketch", url=operated.link())
    operated.cluster.model("canny", modelType="controlnet")
    link = operated.hub.serve_file("/vae.safetensors", vae)
    operated.cluster.model("vae", url=link, modelType="vae", baseModel="sd-1")
    for name, variable, class_name in (
        ("sketch", "pipe", "StableDiffusionPipeline"),
        ("canny", "controlnet", "ControlNetModel"),
        ("vae", "vae", "AutoencoderKL"),
    ):
        body = operated.ready(name)
        model = run(snippet(Model.from_body(body)), operated.cluster.store)[variable]
        assert type(model).__name__ == class_name
        precision = body["status"]["artifact"]["precision"]
        assert str(model.dtype) == {"fp16": "torch.float16", "fp32": "torch.float32"}[precision]


def run(code: str | None, store: Path) -> dict[str, Any]:
    """Run a snippet without its GPU lines, with /models/ replaced; return its variables."""
    assert code is not None
    lines = code.replace('"/models/', f'"{store}/').splitlines()
    kept = [line for line in lines if "cuda" not in line and not line.startswith("image =")]
    variables: dict[str, Any] = {}
    exec("\n".join(kept), variables)
    return variables
