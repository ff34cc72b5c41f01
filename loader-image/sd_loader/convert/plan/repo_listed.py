"""Plans the folder of a pipeline that has no key tables here: FLUX, for example.

Weights are published under their own names, each file as it is unless `revision` narrows it.
Tokenizers and processors are published as they are; other configs are parsed and written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sd_api.choices import Revision
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.detect.variants import variant_of
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import TORCH_NAMES, published_dtype
from sd_loader.convert.plan.quantized_repo import precision_of, quantization
from sd_loader.convert.plan.repo_component import files_of
from sd_loader.convert.plan.repo_configs import read_json, read_small, version_entry
from sd_loader.convert.plan.repo_shards import shard_files
from sd_loader.convert.tables.transformers import TRANSFORMER
from sd_loader.convert.write.files import (
    CopiedFile,
    FolderPlan,
    PlannedFile,
    SmallFile,
    json_file,
)
from sd_loader.diffusers_repo.classes import Role, config_class, entry
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME, parse_json
from sd_loader.diffusers_repo.listed import Component, ListedPipeline
from sd_loader.diffusers_repo.listed_config import listed_config, listed_scheduler
from sd_loader.diffusers_repo.listed_files import (
    CONFIGS,
    GENERATION_CONFIG,
    STEMS,
    choose_pipeline_files,
)
from sd_loader.errors import prefixing
from sd_loader.tensors import Dtype

CHECKED_NAMES = "names"
"""status.artifact.checked of a folder whose tensors were not compared with an architecture."""

_DTYPE_KEYS = ("torch_dtype", "dtype")
_FILE_KEYS = ("_file", "_files")
"""Ends of keys of a tokenizer_config.json that name other files, which transformers would read."""


def plan_listed_repo(
    repo: Path, pipeline: ListedPipeline, conversion: Conversion, opened: OpenFiles
) -> FolderPlan:
    """Plan the folder of a downloaded pipeline. Reads no weights and writes nothing."""
    chosen = choose_pipeline_files(
        files_of(repo),
        pipeline,
        conversion.precision,
        safetensors_only=conversion.safetensors_only,
    )
    files: list[PlannedFile] = []
    formats: set[str] = set()
    main: dict[str, Any] = {}
    with prefixing(pipeline.title):
        for name, component in sorted(pipeline.components.items()):
            own = [file for file in chosen if PurePosixPath(file.path).parts[0] == name]
            if component.role is Role.PROCESSOR:
                files += _parsed_files(repo, own)
            elif component.role in STEMS:
                model = _model(repo, name, component, own, conversion, opened)
                files += model.files
                formats |= model.formats
                main = model.config if name == TRANSFORMER else main
            else:
                files.append(_settings(repo, name, component))
    files.append(json_file(INDEX_NAME, _index(pipeline)))
    copied = [CopiedFile(it.path, repo / it.path, it.size) for it in chosen if it.is_copied]
    return FolderPlan(
        files=tuple(files),
        copied=tuple(copied),
        base_model=pipeline.base_model,
        variant=variant_of(
            pipeline.base_model,
            pipeline.class_name,
            main,
            pipeline.options,
            pipeline.components,
        ),
        pipeline_class=pipeline.class_name,
        quantized=precision_of(formats) if formats else None,
        checked=CHECKED_NAMES,
    )


@dataclass(frozen=True)
class _Model:
    """The planned folder of a component with weights."""

    files: list[PlannedFile]
    config: dict[str, Any]
    formats: frozenset[str]
    """The format of its weights, if they are quantized."""


def _model(
    repo: Path,
    name: str,
    component: Component,
    own: list[RepoFile],
    conversion: Conversion,
    opened: OpenFiles,
) -> _Model:
    """Plan a component with weights. own: the chosen files in its folder."""
    path = f"{name}/{CONFIG_NAME}"
    raw = read_json(repo / path)
    quantized = quantization(name, raw, conversion.precision)
    config = _config(component, raw, path, conversion.precision)
    if quantized is not None:
        config["quantization_config"] = quantized.settings
    weights = opened.open_chosen(repo, repo / name, own)
    for file in weights if quantized is None else ():
        with prefixing(name):
            refuse_quantized(file.tensors)
    index = next((read_json(repo / it.path) for it in own if ".index." in it.path), None)
    files = [
        json_file(path, config),
        *shard_files(name, component, weights, index, conversion.precision),
    ]
    generation = repo / name / GENERATION_CONFIG
    if any(repo / file.path == generation for file in own):
        content = read_small(generation)
        parse_json(content, f"{name}/{GENERATION_CONFIG}")
        files.append(SmallFile(f"{name}/{GENERATION_CONFIG}", content))
    return _Model(files, config, frozenset() if quantized is None else frozenset({quantized.name}))


def _settings(repo: Path, name: str, component: Component) -> SmallFile:
    """Plan a scheduler or guider, which is only a config."""
    path = f"{name}/{CONFIGS[component.role]}"
    # diffusers writes and reads the lower limit of DPM solvers as -Infinity.
    infinite = component.role is Role.SCHEDULER
    raw = read_json(repo / path, infinite=infinite)
    return json_file(path, _config(component, raw, path, None), infinite=infinite)


def _parsed_files(repo: Path, own: list[RepoFile]) -> list[PlannedFile]:
    """The files of a tokenizer or processor that could name code or other files."""
    files: list[PlannedFile] = []
    for file in own:
        if file.is_copied:
            continue
        content = read_small(repo / file.path)
        config = parse_json(content, file.path)
        kept = {key: value for key, value in config.items() if not key.endswith(_FILE_KEYS)}
        is_same = len(kept) == len(config)
        files.append(SmallFile(file.path, content) if is_same else json_file(file.path, kept))
    return files


def _config(
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
    """The precision in which transformers opens a model: the one asked for, or as it was stated."""
    if precision is not None:
        return {"torch_dtype": TORCH_NAMES[published_dtype(Dtype.F32, precision)]}
    stated = {key: config[key] for key in _DTYPE_KEYS if config.get(key) in TORCH_NAMES.values()}
    return {"torch_dtype": next(iter(stated.values()))} if stated else {}


def _index(pipeline: ListedPipeline) -> dict[str, Any]:
    """The model_index.json. Components that the repo leaves out are null in it."""
    index: dict[str, Any] = dict(pipeline.options)
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    index |= {name: [None, None] for name in pipeline.nulls}
    index |= {name: [it.library, it.class_name] for name, it in pipeline.components.items()}
    version = {} if pipeline.version is None else {"_diffusers_version": pipeline.version}
    return {"_class_name": pipeline.class_name, **version, **dict(sorted(index.items()))}
