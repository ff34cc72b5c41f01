"""One component of a diffusers repo: its tensors by their canonical names, and its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sd_api.choices import Revision
from sd_api.reasons import Reason
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.precision import published_items, torch_dtype
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.convert.tables.vae_names import current_name
from sd_loader.convert.write.files import PlannedFile, component_files, json_file
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.index import CONFIG_NAME, WEIGHTS
from sd_loader.errors import LoaderError, prefixing
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d{1,6})\.", re.ASCII)
_UNUSED = re.compile(r".*\bposition_ids|logit_scale|vision_model\..*|visual_projection\..*")


def files_of(repo: Path) -> dict[str, RepoFile]:
    """The files of a downloaded repo."""
    return {
        name: RepoFile(name, path.stat().st_size)
        for path in repo.rglob("*")
        if path.is_file() and (name := path.relative_to(repo).as_posix())
    }


def component_tensors(
    component: str, class_name: str, files: Iterable[TensorFile]
) -> dict[str, Tensor]:
    """The tensors of a component to publish, by their canonical names. Refuses quantized ones."""
    found: dict[str, Tensor] = {}
    for file in files:
        with prefixing(component):
            refuse_quantized(file.tensors)
        for old, tensor in file.tensors.items():
            name = _canonical(old, component)
            if name is None or _is_unused_projection(name, class_name):
                continue
            if name in found:
                raise LoaderError(
                    Reason.CONVERSION_FAILED, f"{component} has two tensors {snippet(name)}"
                )
            if not tensor.dtype.is_float:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"{component}: {snippet(name)} is of type {tensor.dtype.label}: quantized"
                    " weights are not supported",
                )
            found[name] = tensor
    return found


def without_skipped_layers(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    """Return the tensors without the layers that the text encoder's config leaves out.

    A smaller `num_hidden_layers` skips the last layers ("clip skip").
    """
    layers = config.get("num_hidden_layers")
    if layers is None:
        return tensors
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (layer := _LAYER.match(name)) is None or int(layer[1]) < layers
    }


def model_files(
    component: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    precision: Revision | None,
) -> list[PlannedFile]:
    """Plan the files of a component with weights: the weights and config.json."""
    items = published_items(tensors, precision)
    published = {key: value for key, value in config.items() if key != "torch_dtype"}
    if component.startswith("text_encoder"):
        published |= torch_dtype(item.dtype for item in items)
    return [
        *component_files(component, WEIGHTS[component], items),
        json_file(f"{component}/{CONFIG_NAME}", published),
    ]


def _canonical(name: str, component: str) -> str | None:
    """The tensor's name in the published folder. None for a tensor that is not published."""
    if component.startswith("text_encoder"):
        return None if _UNUSED.fullmatch(name) else with_prefix(name)
    return current_name(name) if component == "vae" else name


def _is_unused_projection(name: str, class_name: str) -> bool:
    """Return True if the tensor is a projection and the class has none."""
    return name == "text_projection.weight" and class_name == "CLIPTextModel"
