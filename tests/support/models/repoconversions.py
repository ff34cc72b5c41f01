"""Converts a tiny repo; tests may change its files first."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sd_api.wire import Source
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.repo import plan_repo
from sd_loader.convert.run import convert
from sd_loader.convert.write.files import SmallFile
from sd_loader.handover import Converted, Fetched
from tests.support.loader.arrivals import arrived_in
from tests.support.models.conversions import conversion
from tests.support.models.tinyrepo import replace

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def convert_repo(repo: Path, **fields: Any) -> tuple[Path, Converted]:
    """Convert a repo into a new folder beside it; `fields` are fields of the request."""
    out = repo.parent / "out"
    out.mkdir()
    asked = conversion(**{"model_type": "huggingface", **fields})
    files = arrived_in(repo, repo.parent)
    fetched = Fetched(kind="repo", path=repo.name, files=files, source=Source())
    return out, convert(fetched, repo.parent, asked, out, lambda _progress: None)


def publish_configs(repo: Path) -> Path:
    """Plan a conversion, and write its configs, without weights, into a new folder beside it."""
    out = repo.parent / "out"
    asked = conversion(model_type="huggingface")
    with ExitStack() as stack:
        plan = plan_repo(
            repo,
            asked,
            Companions(repo.parent),
            OpenFiles(stack, safetensors_only=asked.safetensors_only),
        )
    for file in plan.files:
        if isinstance(file, SmallFile):
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
            (out / file.path).write_bytes(file.content)
    return out


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replace a JSON file with a changed version."""
    value = json.loads(path.read_text())
    change(value)
    replace(path, json.dumps(value))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Replace a weights file with a changed version."""
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
