"""Tiny diffusers repos with random weights, written by diffusers' save_pretrained."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.support.models.checkpoints import save_safetensors, tiny_configs, tiny_sd15, tiny_sdxl

_MAKERS = {
    "sd15": (tiny_sd15, StableDiffusionPipeline),
    "sdxl": (tiny_sdxl, StableDiffusionXLPipeline),
}


@cache
def pipeline(architecture: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Return the pipeline of `tiny_sd15` ("sd15") or `tiny_sdxl` ("sdxl")."""
    make, kind = _MAKERS[architecture]
    with tempfile.TemporaryDirectory() as folder:
        configs = tiny_configs(Path(folder) / "configs", architecture)
        file = save_safetensors(Path(folder) / "model.safetensors", make(dtype))
        return kind.from_single_file(
            str(file), config=str(configs), local_files_only=True, dtype=dtype
        )


def save_repo(
    folder: Path, architecture: str = "sd15", dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """Save the pipeline; options are those of save_pretrained (safe_serialization, variant …)."""
    pipeline(architecture, dtype).save_pretrained(folder, **options)
    return folder


def copy_repo(origin: Path, folder: Path) -> Path:
    """Copy a repo as hard links; replace files of the copy, never change them in place."""
    shutil.copytree(origin, folder, copy_function=os.link)
    return folder


def replace(path: Path, content: bytes | str) -> None:
    """Replace one file of a copy."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
