"""Opens the pipelines in folders, and writes a description of their components to stdout as JSON.

The first argument is a prompt, the others are folders. A folder whose pipeline class the installed
diffusers does not have is null in the output. The script imports nothing of the project, so it runs
in any environment that has diffusers. It works offline and passes diffusers no options about the
weight files.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch


def describe(folder: str, prompt: str) -> dict[str, Any] | None:
    """Return the digests of a model's tensors, or a tokenizer's ids of the prompt, by component.

    Return None if the installed diffusers does not have the pipeline's class. The digests have no
    names, because versions of transformers name the modules differently.
    """
    index = json.loads((Path(folder) / "model_index.json").read_text())
    if not hasattr(diffusers, index["_class_name"]):
        return None
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, torch_dtype=torch.float32
    )
    found: dict[str, Any] = {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            found[name] = sorted({digest(it) for it in component.state_dict().values()})
        elif hasattr(component, "encode"):
            found[name] = component.encode(prompt)
    return found


def digest(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's shape and bytes."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(str(tuple(tensor.shape)).encode() + content).hexdigest()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    json.dump({folder: describe(folder, sys.argv[1]) for folder in sys.argv[2:]}, sys.stdout)
