"""Which files of a Hub repo are needed: one set of weights per component, and the configs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sd_api.reasons import Reason
from sd_api.spec import Revision
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.source.pipelines import CONFIG_NAME, INDEX_NAME, WEIGHTS, Pipeline

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class RepoFile:
    """A file of a repo's commit. sha256 for what lies in LFS, the git blob's id for the rest."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None


def check_names(names: Iterable[str]) -> None:
    """Refuse a repo with file names that lead out of a folder: what lists them is not trusted."""
    for name in names:
        parts = name.split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise LoaderError(
                Reason.UNSAFE_MODEL, f"the repo lists a file with an unsafe name: {snippet(name)}"
            )


def require_pipeline(names: Sequence[str]) -> None:
    """Refuse a repo without model_index.json, saying what it holds instead."""
    if INDEX_NAME in names:
        return
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no {INDEX_NAME}, so it is not a diffusers pipeline; {_holds(names)}",
    )


def choose_files(
    files: Mapping[str, RepoFile],
    pipeline: Pipeline,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """The files to download, model_index.json first.

    Of each component's weights: safetensors before .bin, and among those the variant of the
    precision asked for before the plain one.
    """
    chosen = [files[INDEX_NAME]]
    for component in sorted(pipeline.components):
        if component == "scheduler":
            chosen.append(_needed(files, f"{component}/scheduler_config.json"))
        elif component in WEIGHTS:
            chosen.append(_needed(files, f"{component}/config.json"))
            chosen.extend(
                _weights(
                    files,
                    PurePosixPath(component),
                    WEIGHTS[component],
                    revision,
                    safetensors_only=safetensors_only,
                )
            )
        else:
            paths = (f"{component}/{name}" for name in _TOKENIZER_FILES)
            chosen.extend(files[path] for path in paths if path in files)
    return chosen


def component_folder(names: Iterable[str], component: str) -> PurePosixPath:
    """Where a component lies: its repo is of it alone, or a pipeline that has one."""
    held = list(names)
    if CONFIG_NAME in held:
        return PurePosixPath()
    if INDEX_NAME in held and f"{component}/{CONFIG_NAME}" in held:
        return PurePosixPath(component)
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no {CONFIG_NAME}, nor is it a pipeline with a {component} folder;"
        f" {_holds(held)}",
    )


def choose_component(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """The files of a component of diffusers': its config first, then one set of weights."""
    return [
        _needed(files, str(folder / CONFIG_NAME)),
        *_weights(files, folder, WEIGHTS["unet"], revision, safetensors_only=safetensors_only),
    ]


def _needed(files: Mapping[str, RepoFile], path: str) -> RepoFile:
    if path not in files:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the repo lacks {path}")
    return files[path]


def _weights(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    safe: str,
    revision: Revision | None,
    *,
    safetensors_only: bool,
) -> list[RepoFile]:
    torch = "pytorch_model" if safe == "model" else safe
    wanted = [revision.value] if revision in (Revision.FP16, Revision.BF16) else []
    # Many repos have one variant only; better a cast of that than nothing.
    variants = [*wanted, "", "fp16", "bf16"]
    for stem, suffix in ((safe, "safetensors"), (torch, "bin")):
        for variant in variants:
            found = _weight_set(files, str(folder / stem), variant, suffix)
            if found and suffix == "bin" and safetensors_only:
                raise LoaderError(
                    Reason.UNSAFE_MODEL,
                    f"{folder.name or 'the repo'} has no safetensors weights, and fromSafetensors"
                    " is true",
                )
            if found:
                return found
    names = [name for name in files if PurePosixPath(name).is_relative_to(folder)]
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no {folder.name and f'{folder} '}weights that the loader reads;"
        f" {_holds(names)}",
    )


def _weight_set(
    files: Mapping[str, RepoFile], stem: str, variant: str, suffix: str
) -> list[RepoFile]:
    """One file, or all shards of a set; empty where there is none or it is not whole."""
    dotted = f".{variant}" if variant else ""
    single = files.get(f"{stem}{dotted}.{suffix}")
    if single is not None:
        return [single]
    # `name.fp16-00001-of-00002`, and `name-00001-of-00002.fp16` as older diffusers wrote it.
    shard = r"-(\d{5})-of-(\d{5})"
    for middle in (re.escape(dotted) + shard, shard + re.escape(dotted)):
        pattern = re.compile(f"{re.escape(stem)}{middle}{re.escape(f'.{suffix}')}", re.ASCII)
        found = [
            (match, files[path]) for path in sorted(files) if (match := pattern.fullmatch(path))
        ]
        numbers = [int(match[1]) for match, _file in found]
        counts = {int(match[2]) for match, _file in found}
        if numbers == list(range(1, len(numbers) + 1)) and counts == {len(numbers)}:
            return [file for _match, file in found]
    return []


def _holds(names: Sequence[str]) -> str:
    shown = [snippet(name, 60) for name in sorted(names)[:5]]
    more = len(names) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"it holds {listed}" if listed else "it holds no files"
