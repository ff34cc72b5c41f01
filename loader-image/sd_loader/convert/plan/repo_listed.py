"""Plans the folder of a listed pipeline's repo, such as FLUX's. No key table is used.

Each file of weights keeps the names of its tensors, and their types unless spec.revision names
another. Vocabularies are published as they are. Configs are parsed, and lose all keys that no class
reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.variants import variant_of
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.quantized_repo import precision_of
from sd_loader.convert.plan.replaced import Given, replaced_model
from sd_loader.convert.plan.repo_component import files_of
from sd_loader.convert.plan.repo_configs import read_json, settings_file
from sd_loader.convert.plan.repo_model import model_config, plan_model
from sd_loader.convert.tables.transformers import TRANSFORMER
from sd_loader.convert.write.files import (
    CopiedFile,
    FolderPlan,
    PlannedFile,
    SmallFile,
    json_file,
)
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.diffusers_repo.listed import Component, ListedPipeline
from sd_loader.diffusers_repo.listed_files import CONFIGS, STEMS, choose_pipeline_files
from sd_loader.errors import prefixing

CHECKED_NAMES = "names"
"""Value of status.artifact.checked if the tensors were not compared with an architecture."""


def plan_listed_repo(
    repo: Path,
    pipeline: ListedPipeline,
    conversion: Conversion,
    opened: OpenFiles,
    given: Mapping[str, Given] | None = None,
) -> FolderPlan:
    """Plan the folder of a downloaded pipeline. Reads no weights and writes nothing.

    given: the components that do not come from the repo, by name.
    """
    given = given or {}
    chosen = choose_pipeline_files(
        files_of(repo),
        pipeline.without(given),
        conversion.precision,
        safetensors_only=conversion.safetensors_only,
    )
    files: list[PlannedFile] = []
    formats: set[str] = set()
    warnings: list[str] = []
    main: dict[str, Any] = {}
    with prefixing(pipeline.title):
        for name, component in sorted(pipeline.components.items()):
            own = [file for file in chosen if PurePosixPath(file.path).parts[0] == name]
            if component.role is Role.PROCESSOR:
                files += _parsed_files(repo, own)
            elif component.role in STEMS:
                if name in given:
                    model = replaced_model(repo, name, component, given[name], conversion, opened)
                else:
                    model = plan_model(repo, name, name, component, own, conversion, opened)
                files += model.files
                formats |= model.formats
                warnings += model.warnings
                if name == TRANSFORMER:
                    main = model.config
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
        warnings=tuple(warnings),
    )


def _settings(repo: Path, name: str, component: Component) -> SmallFile:
    """Plan a scheduler or guider, which is only a config."""
    path = f"{name}/{CONFIGS[component.role]}"
    # diffusers writes and reads the lower limit of DPM solvers as -Infinity.
    infinite = component.role is Role.SCHEDULER
    raw = read_json(repo / path, infinite=infinite)
    return json_file(path, model_config(component, raw, path, None), infinite=infinite)


def _parsed_files(repo: Path, own: list[RepoFile]) -> list[PlannedFile]:
    """Plan the files of a tokenizer or processor that could name code: known settings only."""
    return [settings_file(repo / it.path, it.path) for it in own if not it.is_copied]


def _index(pipeline: ListedPipeline) -> dict[str, Any]:
    """The model_index.json. Components that the repo leaves out are null in it."""
    index: dict[str, Any] = dict(pipeline.options)
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    index |= {name: [None, None] for name in pipeline.nulls}
    index |= {name: [it.library, it.class_name] for name, it in pipeline.components.items()}
    version = {} if pipeline.version is None else {"_diffusers_version": pipeline.version}
    return {"_class_name": pipeline.class_name, **version, **dict(sorted(index.items()))}
