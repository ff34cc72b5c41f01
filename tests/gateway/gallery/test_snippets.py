"""The gallery's Python opens what was published: run as it is, but for the place and the GPU."""

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


# The new word, dtype, is unknown to the older diffusers that our folders are for as well.
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.cluster
def test_the_snippet_opens_what_was_published(operated: Operated, tmp_path: Path) -> None:
    """With the class and the precision that it names, and without the network."""
    operated.start()
    operated.hub.add_repo(CONTROLNET_REPOS["canny"], save_controlnet(tmp_path, "SD 1"))
    vae = save_safetensors(tmp_path / "vae.safetensors", tiny_vae())
    operated.cluster.model("sketch", url=operated.link())
    operated.cluster.model("canny", modelType="controlnet")
    link = operated.hub.serve_file("/vae.safetensors", vae)
    operated.cluster.model("vae", url=link, modelType="vae", baseModel="sd1")
    for name, variable, kind in (
        ("sketch", "pipe", "StableDiffusionPipeline"),
        ("canny", "controlnet", "ControlNetModel"),
        ("vae", "vae", "AutoencoderKL"),
    ):
        body = operated.ready(name)
        opened = run(snippet(Model.from_body(body)), operated.cluster.store)[variable]
        assert type(opened).__name__ == kind
        precision = body["status"]["artifact"]["precision"]
        assert str(opened.dtype) == {"fp16": "torch.float16", "fp32": "torch.float32"}[precision]


def run(code: str | None, store: Path) -> dict[str, Any]:
    """What the code makes, on a machine without a GPU, where the volume lies elsewhere."""
    assert code is not None
    lines = code.replace('"/models/', f'"{store}/').splitlines()
    kept = [line for line in lines if "cuda" not in line and not line.startswith("image =")]
    made: dict[str, Any] = {}
    exec("\n".join(kept), made)
    return made
