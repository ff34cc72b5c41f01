"""Loads checkpoints with components that come from another source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from devkit.fakehub import FakeHub
from sd_api.spec import VaeSource
from tests.support.loader.loadercli import Containers, Ended, load_request
from tests.support.models.checkpoints import Checkpoint, save_safetensors, smallest_sd15

WEIGHTS = "diffusion_pytorch_model.safetensors"


def without(tensors: Checkpoint, *prefixes: str) -> Checkpoint:
    """Return a checkpoint without the tensors whose names have these prefixes."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def served(hub: FakeHub, folder: Path, name: str, tensors: Checkpoint) -> str:
    """Serve these tensors as a file and return its link."""
    return hub.serve_file(f"/{name}", save_safetensors(folder / name, tensors))


def load_with_vae(
    containers: Containers, hub: FakeHub, folder: Path, vae: str, **fields: Any
) -> Ended:
    """Load a checkpoint with the VAE of another source; `fields` are fields of the request."""
    url = served(hub, folder, "model.safetensors", smallest_sd15())
    return containers.load(
        load_request(url, **{"model_type": "custom_ckpt", "vae": VaeSource(url=vae), **fields})
    )
