"""Plans the folder of a component that has weights and whose class is in the generated list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_api.choices import Revision
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import TORCH_NAMES, published_dtype
from sd_loader.convert.plan.quantized_repo import quantization
from sd_loader.convert.plan.repo_configs import read_json, settings_file, version_entry
from sd_loader.convert.plan.repo_shards import shard_files
from sd_loader.convert.write.files import PlannedFile, json_file
from sd_loader.diffusers_repo.classes import Role, config_class, entry
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.diffusers_repo.listed import Component
from sd_loader.diffusers_repo.listed_config import listed_config, listed_scheduler
from sd_loader.diffusers_repo.settings_files import GENERATION_CONFIG
from sd_loader.errors import prefixing
from sd_loader.tensors import Dtype, TensorFile

_DTYPE_KEYS = ("torch_dtype", "dtype")


@dataclass(frozen=True)
class PlannedModel:
    """The planned folder of a component with weights."""

    files: list[PlannedFile]
    config: dict[str, Any]
    """The config.json that is published."""

    weights: Sequence[TensorFile]
    """The files of the repo that hold the component's weights."""

    formats: frozenset[str]
    """The format of the weights if they are quantized, otherwise empty."""

    warnings: tuple[str, ...] = ()
    """Warnings for the user about the component."""


def plan_model(
    repo: Path,
    folder: str,
    name: str,
    component: Component,
    own: list[RepoFile],
    conversion: Conversion,
    opened: OpenFiles,
) -> PlannedModel:
    """Plan a component with weights.

    folder: the component's folder in the repo. name: its published folder. own: its chosen files.
    """
    path = f"{name}/{CONFIG_NAME}"
    raw = read_json(repo / folder / CONFIG_NAME)
    quantized = quantization(name, raw, conversion.precision)
    config = model_config(component, raw, path, conversion.precision)
    if quantized is not None:
        config["quantization_config"] = quantized.settings
    weights = opened.open_chosen(repo, repo / folder, own)
    for file in weights if quantized is None else ():
        with prefixing(name):
            refuse_quantized(file.tensors)
    index = next((read_json(repo / it.path) for it in own if ".index." in it.path), None)
    files = [
        json_file(path, config),
        *shard_files(name, component, weights, index, conversion.precision),
    ]
    generation = repo / folder / GENERATION_CONFIG
    if any(repo / file.path == generation for file in own):
        files.append(settings_file(generation, f"{name}/{GENERATION_CONFIG}"))
    formats = frozenset() if quantized is None else frozenset({quantized.name})
    return PlannedModel(files, config, weights, formats)


def model_config(
    component: Component, config: dict[str, Any], path: str, precision: Revision | None
) -> dict[str, Any]:
    """The config of a component, with the class that model_index.json names."""
    class_name = component.class_name
    if component.role is Role.ENCODER:
        return {
            **listed_config(config, class_name, path),
            "architectures": [class_name],
            "model_type": entry(config_class(class_name))["model_type"],
            **_torch_dtype(config, precision),
        }
    allowed = listed_scheduler if component.role is Role.SCHEDULER else listed_config
    return {
        "_class_name": class_name,
        **version_entry(config),
        **allowed(config, class_name, path),
    }


def _torch_dtype(config: dict[str, Any], precision: Revision | None) -> dict[str, str]:
    """The entry for the precision in which transformers opens a model.

    It is the requested precision, or else that of the repo's config. Empty without both.
    """
    if precision is not None:
        return {"torch_dtype": TORCH_NAMES[published_dtype(Dtype.F32, precision)]}
    stated = {key: config[key] for key in _DTYPE_KEYS if config.get(key) in TORCH_NAMES.values()}
    return {"torch_dtype": next(iter(stated.values()))} if stated else {}
