"""Chooses the files of a pipeline's repo that are needed, for pipelines of every family.

The role of a component decides what its folder holds. A repo may have files that no component
needs, such as code. They are not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from sd_api.choices import Revision
from sd_api.reasons import Reason
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.component_files import (
    RepoFile,
    choose_component,
    choose_files,
    choose_weights,
    holds,
    needed,
)
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME
from sd_loader.diffusers_repo.listed import AnyPipeline, ListedPipeline
from sd_loader.diffusers_repo.settings_files import GENERATION_CONFIG
from sd_loader.diffusers_repo.single_component import SingleComponent
from sd_loader.errors import LoaderError, prefixing

CONFIGS: Mapping[Role, str] = {
    Role.MODEL: CONFIG_NAME,
    Role.ENCODER: CONFIG_NAME,
    Role.SCHEDULER: "scheduler_config.json",
    Role.GUIDER: "guider_config.json",
}
"""The config of a component by role. Tokenizers and processors have several, all optional."""
STEMS: Mapping[Role, str] = {Role.MODEL: "diffusion_pytorch_model", Role.ENCODER: "model"}
"""The components that have weights, and the standard stem of their files."""
PARSED_FILES = (
    "added_tokens.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
"""Files of tokenizers and processors that could name code. They are parsed, and published with
their known settings."""
COPIED_FILES = (
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""Vocabularies and templates of tokenizers and processors. They are published as they are."""
_SHARD = re.compile(r"(.+?)(\.\w+)?-\d{5}-of-\d{5}(\.\w+)?(\.safetensors|\.bin)", re.ASCII)


def choose_pipeline_files(
    files: Mapping[str, RepoFile],
    pipeline: AnyPipeline,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """Return the files to download, model_index.json first."""
    if not isinstance(pipeline, ListedPipeline):
        return choose_files(files, pipeline, revision, safetensors_only=safetensors_only)
    chosen = [files[INDEX_NAME]]
    with prefixing(pipeline.title):
        for name, component in sorted(pipeline.components.items()):
            folder = PurePosixPath(name)
            if component.role is Role.PROCESSOR:
                chosen += _processor_files(files, folder)
                continue
            if component.role in STEMS and name not in pipeline.replaced:
                stem = STEMS[component.role]
                chosen += choose_model(
                    files, folder, stem, revision, safetensors_only=safetensors_only
                )
            else:
                chosen.append(needed(files, str(folder / CONFIGS[component.role])))
    return chosen


def choose_model(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    stem: str,
    revision: Revision | None,
    *,
    safetensors_only: bool,
) -> list[RepoFile]:
    """Return a component's files, config first. stem: beginning of the names of its weights."""
    config = needed(files, str(folder / CONFIG_NAME))
    weights = choose_weights(files, folder, stem, revision, safetensors_only=safetensors_only)
    chosen = [config, *weights, *_index_of(files, weights)]
    generation = str(folder / GENERATION_CONFIG)
    if stem == STEMS[Role.ENCODER] and generation in files:
        chosen.append(files[generation])
    return chosen


def choose_single(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    component: SingleComponent,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """Return the files of a component that is published alone, its config first."""
    chosen = choose_component(files, folder, revision, safetensors_only=safetensors_only)
    # Components of Stable Diffusion need no index: their tensors are compared with the config.
    is_indexed = component.other_family is not None
    return [*chosen, *(_index_of(files, chosen[1:]) if is_indexed else ())]


def _processor_files(files: Mapping[str, RepoFile], folder: PurePosixPath) -> list[RepoFile]:
    parsed = [files[path] for name in PARSED_FILES if (path := str(folder / name)) in files]
    copied = [
        replace(files[path], is_copied=True)
        for name in COPIED_FILES
        if (path := str(folder / name)) in files
    ]
    if not parsed and not copied:
        names = [name for name in files if PurePosixPath(name).is_relative_to(folder)]
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the repo has no files of the tokenizer or processor {folder}; {holds(names)}",
        )
    return [*parsed, *copied]


def _index_of(files: Mapping[str, RepoFile], weights: Sequence[RepoFile]) -> list[RepoFile]:
    """Return the index of the shards, if there are shards and the repo has their index."""
    match = _SHARD.fullmatch(weights[0].path)
    if match is None:
        return []
    stem, variant, suffix = match[1], match[2] or match[3] or "", match[4]
    names = (f"{stem}{suffix}.index{variant}.json", f"{stem}{variant}{suffix}.index.json")
    return [files[name] for name in names if name in files][:1]
