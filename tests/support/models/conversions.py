"""Converts a file with the loader, as the convert stage does, and compares the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sd_api.load import LoadRequest
from sd_api.wire import Progress, Source
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.run import convert
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.handover import Converted, Fetched
from sd_loader.request import conversion_of


def load_request(**fields: Any) -> LoadRequest:
    """Return a request for a checkpoint at a link; keywords set further fields."""
    return LoadRequest.model_validate(
        {
            "owner": {"uid": "0" * 8, "namespace": "default", "name": "model"},
            "model_id": "model",
            "model_type": "custom_ckpt",
            "url": "https://models.example.com/model",
            "load_hash": "0" * 16,
            **fields,
        }
    )


def conversion(**fields: Any) -> Conversion:
    """Return the conversion of a request with these fields."""
    return conversion_of(load_request(**fields))


def convert_file(
    path: Path, out: Path, progress: list[Progress] | None = None, **fields: Any
) -> Converted:
    """Convert a file into a new folder; `fields` are fields of the request."""
    out.mkdir(parents=True)
    fetched = Fetched(kind="file", path="file", source=Source())
    source = path.rename(path.with_name("file")) if path.name != "file" else path
    try:
        report = progress.append if progress is not None else lambda _: None
        return convert(fetched, source.parent, conversion(**fields), out, report)
    finally:
        source.rename(path)


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal in type, shape and every bit."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def assert_same_tensors(published: Path, peer: Path) -> None:
    """Assert that the tensors of two pipelines' folders are equal in name, type and bits."""
    found, expected = _tensors(published), _tensors(peer)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not identical(found[name], expected[name])]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder, by component and name.

    Newer versions of transformers leave out the prefixes of CLIP's encoders, so names get the
    prefix `text_model.` if it is missing, and lose the prefix `vision_model.`.
    """
    return {
        f"{path.parent.name}/{with_prefix(name.removeprefix('vision_model.'))}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
