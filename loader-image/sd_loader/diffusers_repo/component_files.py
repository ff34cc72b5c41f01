"""Chooses the files of a Hub repo that are needed.

From a pipeline's repo, these are the configs and one set of weights per component. From any other
repo, it is the one file that is the model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sd_api.choices import ModelType, Revision
from sd_api.reasons import Reason
from sd_loader.diffusers_repo.index import (
    CONFIG_NAME,
    INDEX_NAME,
    MAX_JSON_BYTES,
    WEIGHTS,
    Pipeline,
)
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CONFIG_SUFFIXES = (".json", ".txt", ".model")
"""Suffixes of configs, vocabularies, and T5's sentencepiece model."""
MAX_COPIED_BYTES = 128 << 20
"""Maximum size of a copied file. Tokenizers of the largest language models have 34 MB."""
_PARSED = (".json", ".txt")
_SAFE = (".safetensors",)
_PICKLED: Mapping[ModelType, tuple[str, ...]] = {
    ModelType.LORA: (".bin", ".pt"),
    ModelType.EMBEDDINGS: (".bin", ".pt"),
    ModelType.CONTROLNET: (".pth", ".ckpt", ".bin", ".pt"),
    ModelType.VAE: (".ckpt", ".pt", ".pth", ".bin"),
}
_CHECKPOINTS = (".ckpt",)
_OTHER_PICKLES = (".pt", ".pth", ".bin")
"""Suffixes of pickled adapters and VAEs, and of many files that are not models."""
_USUAL: Mapping[ModelType, tuple[str, ...]] = {
    ModelType.LORA: ("pytorch_lora_weights.safetensors",),
    ModelType.EMBEDDINGS: ("learned_embeds.safetensors", "learned_embeds.bin"),
}
"""File names that diffusers' training scripts use."""
_EMBEDDING_OF_SDXL = ("learned_embeds", "learned_embeds_2")
"""The files for the first and the second text encoder, without their suffixes."""
_PRECISIONS = ("fp16", "bf16", "fp32")
_OF_FOLDERS = re.compile(r"((pytorch_|diffusion_pytorch_)?model|open_clip_.*)[-.].*")


@dataclass(frozen=True)
class RepoFile:
    """A file of a repo's commit."""

    path: str
    size: int

    sha256: str | None = None
    """The SHA-256, which the Hub states only for files in LFS."""

    blob_id: str | None = None
    """The git blob id, for files that are not in LFS."""

    is_copied: bool = False
    """True if the file is published unparsed. It may have MAX_COPIED_BYTES then."""


def check_size(file: RepoFile) -> None:
    """Refuse a config, a tokenizer's or a processor's file that is larger than its limit."""
    if file.is_copied and file.size > MAX_COPIED_BYTES:
        raise LoaderError(
            Reason.TOO_LARGE,
            f"{file.path} is {file.size} bytes; a file of a tokenizer or processor may have at most"
            f" {MAX_COPIED_BYTES}",
        )
    is_parsed = file.path.endswith(_PARSED) and not file.is_copied
    if is_parsed and file.size > MAX_JSON_BYTES:
        raise LoaderError(
            Reason.TOO_LARGE,
            f"{file.path} is {file.size} bytes; a file of its kind may have at most"
            f" {MAX_JSON_BYTES}",
        )


def check_names(names: Iterable[str]) -> None:
    """Refuse a repo with file names that lead out of its folder. The list is not trusted."""
    for name in names:
        parts = name.split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise LoaderError(
                Reason.UNSAFE_MODEL, f"the repo lists a file with an unsafe name: {snippet(name)}"
            )


def require_pipeline(names: Sequence[str]) -> None:
    """Refuse a repo without model_index.json. The message lists the files that it has."""
    if INDEX_NAME in names:
        return
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no {INDEX_NAME}, so it is not a diffusers pipeline; {holds(names)}",
    )


def choose_files(
    files: Mapping[str, RepoFile],
    pipeline: Pipeline,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """Return the files to download, model_index.json first.

    For each component, prefer safetensors to .bin. Among these, prefer the variant of the requested
    precision, then the weights without a variant, then any other variant.
    """
    chosen = [files[INDEX_NAME]]
    for component in sorted(pipeline.components):
        if component == "scheduler":
            chosen.append(needed(files, f"{component}/scheduler_config.json"))
        elif component in WEIGHTS:
            chosen.append(needed(files, f"{component}/config.json"))
            chosen.extend(
                choose_weights(
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


def choose_configs(files: Mapping[str, RepoFile]) -> list[RepoFile]:
    """Return the configs and tokenizers of a pipeline, but not its weights."""
    return [file for path, file in sorted(files.items()) if _is_config(path)]


def _is_config(path: str) -> bool:
    name = PurePosixPath(path)
    # An index of shards belongs to the weights.
    is_small = name.suffix in CONFIG_SUFFIXES and ".index." not in name.name
    return path == INDEX_NAME or (len(name.parts) == 2 and is_small)


def component_folder(names: Container[str], component: str) -> PurePosixPath | None:
    """Return the folder of a component: the root of its own repo, or its folder in a pipeline.

    Return None if the repo does not have the component.
    """
    if CONFIG_NAME in names:
        return PurePosixPath()
    if INDEX_NAME in names and f"{component}/{CONFIG_NAME}" in names:
        return PurePosixPath(component)
    return None


def choose_component(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> list[RepoFile]:
    """Return the files of a component: its config first, then one set of weights."""
    return [
        needed(files, str(folder / CONFIG_NAME)),
        *choose_weights(
            files, folder, WEIGHTS["unet"], revision, safetensors_only=safetensors_only
        ),
    ]


def choose_file(
    files: Mapping[str, RepoFile],
    model_type: ModelType | None,
    revision: Revision | None,
    *,
    safetensors_only: bool = False,
) -> RepoFile:
    """Return the model file at the repo's root.

    Raise LoaderError if there is none, or if several are equally good. Prefer the names of
    diffusers' training scripts, then safetensors to pickles, then a name with the requested
    precision, then one without. Ignore weights that a library wrote beside a config.json.

    model_type: None if the type is detected from the file's content. The names of training scripts
    are then not preferred.
    """
    pickled = _pickled(model_type)
    halves = {f"{_EMBEDDING_OF_SDXL[1]}{suffix}" for suffix in (*_SAFE, ".bin", ".pt")}
    if model_type is ModelType.EMBEDDINGS and halves & files.keys():
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            "an embedding of SDXL in two files needs both, learned_embeds and learned_embeds_2, as"
            f" .safetensors or .bin at the repo's root; {holds(list(files))}",
        )
    readable = (_SAFE,) if safetensors_only else (_SAFE, *pickled)
    for name in _USUAL.get(model_type, ()) if model_type else ():
        if name in files and any(name.endswith(suffixes) for suffixes in readable):
            return files[name]
    candidates = _candidates(files, readable)
    wanted = _of_precision(candidates, revision)
    if len(wanted) == 1:
        return files[wanted[0]]
    if candidates:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"the repo has {len(candidates)} files that could be the model; use the link to one of"
            f" them (https://huggingface.co/ORG/NAME/resolve/main/FILE): {_listed(candidates)}",
        )
    if safetensors_only and _candidates(files, pickled):
        raise LoaderError(
            Reason.UNSAFE_MODEL, "the repo's model is a pickle, and spec.fromSafetensors is true"
        )
    raise LoaderError(Reason.UNSUPPORTED_FORMAT, _lacks(files, model_type))


def choose_embedding_of_sdxl(
    files: Mapping[str, RepoFile], *, safetensors_only: bool = False
) -> list[RepoFile]:
    """Return the two files of an SDXL embedding, one for each text encoder.

    Empty if the repo does not have both files. Prefer safetensors to pickles.
    """
    found = []
    for stem in _EMBEDDING_OF_SDXL:
        names = [name for name in (f"{stem}.safetensors", f"{stem}.bin") if name in files]
        if not names:
            return []
        found.append(files[names[0]])
    if safetensors_only and not all(file.path.endswith(_SAFE) for file in found):
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            "one of the embedding's files is a pickle, and spec.fromSafetensors is true",
        )
    return found


def is_embedding_of_sdxl(files: Mapping[str, RepoFile]) -> bool:
    """Whether the only weights of a repo are the two files of an embedding of SDXL."""
    names = {file.path for file in choose_embedding_of_sdxl(files)}
    return bool(names) and names.issuperset(_candidates(files, (_SAFE, *_pickled(None))))


def _pickled(model_type: ModelType | None) -> tuple[tuple[str, ...], ...]:
    """Return the suffixes of a type's pickles in groups, the preferred group first."""
    if model_type is None:
        return _CHECKPOINTS, _OTHER_PICKLES
    return (_PICKLED.get(model_type, _CHECKPOINTS),)


def _candidates(files: Mapping[str, RepoFile], groups: Iterable[tuple[str, ...]]) -> Sequence[str]:
    """Return the names that match the first group of suffixes that any name matches."""
    for suffixes in groups:
        if found := [name for name in files if _is_candidate(name, suffixes, files)]:
            return found
    return ()


def _is_candidate(name: str, suffixes: tuple[str, ...], files: Mapping[str, RepoFile]) -> bool:
    # Beside a config.json, such a file was written by a library, and needs the config.
    of_folder = "config.json" in files and _OF_FOLDERS.fullmatch(name) is not None
    return "/" not in name and name.endswith(suffixes) and not of_folder


def _of_precision(names: Sequence[str], revision: Revision | None) -> Sequence[str]:
    """Return the names with the requested precision, or else those without one, or else all."""
    by_word: dict[str | None, list[str]] = {}
    for name in names:
        words = re.split(r"[^a-z0-9]+", name.lower())
        word = next((word for word in _PRECISIONS if word in words), None)
        by_word.setdefault(word, []).append(name)
    return by_word.get(revision.value if revision else None) or by_word.get(None) or names


def _lacks(files: Mapping[str, RepoFile], model_type: ModelType | None) -> str:
    held = holds(list(files))
    if model_type is None:
        return f"the repo has neither a diffusers pipeline nor a model file at its root; {held}"
    if INDEX_NAME in files:
        return (
            f"the repo is a diffusers pipeline and has no single file of type {model_type.value};"
            f" set spec.modelType: {ModelType.HUGGINGFACE.value} to load the pipeline"
        )
    if model_type is ModelType.HUGGINGFACE:
        return (
            f"the repo has neither {INDEX_NAME}, as a diffusers pipeline would, nor a checkpoint at"
            f" its root; {held}"
        )
    return f"the repo has no file at its root that could be of type {model_type.value}; {held}"


def needed(files: Mapping[str, RepoFile], path: str) -> RepoFile:
    """Return the file. Refuse a repo without it."""
    if path not in files:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the repo lacks {path}")
    return files[path]


def choose_weights(
    files: Mapping[str, RepoFile],
    folder: PurePosixPath,
    safe: str,
    revision: Revision | None,
    *,
    safetensors_only: bool,
) -> list[RepoFile]:
    """Return one set of weights of a component: one file, or all its shards.

    safe: the standard stem of safetensors files.
    """
    torch = "pytorch_model" if safe == "model" else safe
    wanted = [revision.value] if revision in (Revision.FP16, Revision.BF16) else []
    # Many repos have only one variant, which is better cast than not loaded.
    variants = [*wanted, "", "fp16", "bf16"]
    for stem, suffix in ((safe, "safetensors"), (torch, "bin")):
        for variant in variants:
            found = _weight_set(files, str(folder / stem), variant, suffix)
            if found and suffix == "bin" and safetensors_only:
                raise LoaderError(
                    Reason.UNSAFE_MODEL,
                    f"{folder.name or 'the repo'} has no safetensors weights, and"
                    " spec.fromSafetensors is true",
                )
            if found:
                return found
    for name in (safe, torch):
        _refuse_missing_shard(files, str(folder / name))
    names = [name for name in files if PurePosixPath(name).is_relative_to(folder)]
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no {folder.name and f'{folder} '}weights that the loader can read;"
        f" {holds(names)}",
    )


def _weight_set(
    files: Mapping[str, RepoFile], stem: str, variant: str, suffix: str
) -> list[RepoFile]:
    """Return one file, or all shards of a set. Empty if there is no complete set."""
    dotted = f".{variant}" if variant else ""
    single = files.get(f"{stem}{dotted}.{suffix}")
    if single is not None:
        return [single]
    # `name.fp16-00001-of-00002`, or `name-00001-of-00002.fp16` from older versions of diffusers.
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


def _refuse_missing_shard(files: Mapping[str, RepoFile], stem: str) -> None:
    """Refuse weights that lack a shard. The message names the first missing shard."""
    shard = re.compile(
        rf"({re.escape(stem)}(?:\.\w+)?)-\d{{5}}-of-(\d{{5}})((?:\.\w+)?\.(?:safetensors|bin))",
        re.ASCII,
    )
    for path in sorted(files):
        if (match := shard.fullmatch(path)) is None:
            continue
        for number in range(1, min(int(match[2]), len(files)) + 1):
            name = f"{match[1]}-{number:05d}-of-{match[2]}{match[3]}"
            if name not in files:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"the repo lacks {snippet(name, 200)}, one of the {int(match[2])} shards of its"
                    " weights",
                )


def holds(names: Sequence[str]) -> str:
    """Describe a repo's files for a message: the first few names, and the number of the others."""
    return f"it holds {_listed(names)}" if names else "it holds no files"


def _listed(names: Sequence[str]) -> str:
    shown = [snippet(name, 60) for name in sorted(names)[:5]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
