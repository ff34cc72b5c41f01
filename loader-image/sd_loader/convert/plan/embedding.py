"""Plans the folder of a textual-inversion embedding, which `load_textual_inversion(folder)` reads.

    learned_embeds.safetensors     the vectors for the (first) text encoder, under their token
    learned_embeds_2.safetensors   SDXL only: the vectors for the second text encoder
    token_identifier.txt           the token, as prompts name it

diffusers' training scripts and the Hub's concept library use these names. The second file is opened
with `weight_name=`, and with the second text encoder and tokenizer as arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import refuse_other_kinds, unsupported
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import published_dtype
from sd_loader.convert.plan.repo_component import files_of
from sd_loader.convert.tables.clip import vocabulary_file
from sd_loader.convert.tables.families import PUBLISHED_SIZES, families_by_text_width
from sd_loader.convert.write.files import FolderPlan, Item, SmallFile, weights_file
from sd_loader.diffusers_repo.component_files import choose_embedding_of_sdxl
from sd_loader.errors import LoaderError
from sd_loader.formats import CKPT
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype, Tensor, TensorFile

FIRST_FILE = "learned_embeds.safetensors"
SECOND_FILE = "learned_embeds_2.safetensors"
TOKEN_FILE = "token_identifier.txt"  # noqa: S105 - a word for prompts, no secret

MAX_VECTORS = 75
"""Maximum number of vectors of an embedding: a prompt has no room for more."""
MAX_TOKEN = 64

_FIRST = "clip_l"
_SECOND = "clip_g"
_A1111 = "string_to_param."
_A1111_ONLY = f"{_A1111}*"
_NAME = "name"
# Keys of files with one embedding. They are not the embedding's name.
_NAMELESS = {"emb_params", _A1111_ONLY, "*", "string_to_param"}
_OF_ENCODERS = {"text_encoders_0": _FIRST, "text_encoders_1": _SECOND}
"""Pivotal tuning's names of SDXL's text encoders, with the names that other programs use."""
_HALVES = {
    _FIRST: _SECOND,
    _SECOND: _FIRST,
    "text_encoders_0": "text_encoders_1",
    "text_encoders_1": "text_encoders_0",
}
"""The other half of an SDXL embedding, by the name of one half."""
_OUTPUT = "_out"
_OTHER_ENCODER = "t5"
_ENCODERS = {_FIRST, _SECOND, _OTHER_ENCODER, "emb_params"}

_SDXL = PUBLISHED_SIZES[BaseModelName.SDXL]
_SECOND_WIDTH = _SDXL["text_encoder_2"]


@dataclass(frozen=True)
class _Embedding:
    """The vectors that a file has for each text encoder."""

    first: Tensor
    """Vectors for the (first) text encoder."""

    second: Tensor | None = None
    """Vectors for SDXL's second text encoder."""

    name: str | None = None
    """The embedding's own name, if the file has one."""


def plan_embedding(file: TensorFile, conversion: Conversion) -> FolderPlan:
    """Plan the files of an embedding. Reads no weights and writes nothing."""
    return _plan(_find(file, conversion.base_model), conversion)


def plan_embedding_of_repo(repo: Path, conversion: Conversion, opened: OpenFiles) -> FolderPlan:
    """Plan the files of an SDXL embedding that has a file for each text encoder."""
    chosen = choose_embedding_of_sdxl(files_of(repo), safetensors_only=conversion.safetensors_only)
    first, second = (_find(opened.open(repo / file.path), None) for file in chosen)
    if first.second is not None or second.second is not None:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            "one of the repo's files holds clip_l and clip_g, which is a whole embedding of SDXL;"
            " link to that file",
        )
    if first.name != second.name:
        names = " and ".join(snippet(str(half.name), 20) for half in (first, second))
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"the files are halves of two embeddings: {names}"
        )
    return _plan(_Embedding(first.first, second.first, first.name), conversion)


def _plan(found: _Embedding, conversion: Conversion) -> FolderPlan:
    base_model = _base_model(found)
    if conversion.base_model not in (None, base_model):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {conversion.base_model.value}, but the file is an embedding of"
            f" {base_model.value}",
        )
    token, warnings = _token(found.name, conversion.model_id)
    weights = {FIRST_FILE: found.first, SECOND_FILE: found.second}
    return FolderPlan(
        files=(
            *(
                weights_file(path, [Item(token, tensor, _dtype(tensor, conversion))])
                for path, tensor in weights.items()
                if tensor is not None
            ),
            SmallFile(TOKEN_FILE, token.encode()),
        ),
        base_model=base_model.value,
        word=token,
        warnings=warnings,
        scan=True,
    )


def _dtype(tensor: Tensor, conversion: Conversion) -> Dtype:
    """Return the requested type, or the file's own, even if no pipeline computes in it."""
    if conversion.precision is None:
        return tensor.dtype
    return published_dtype(tensor.dtype, conversion.precision)


def _find(file: TensorFile, base_model: BaseModelName | None) -> _Embedding:
    """Return the embedding's vectors.

    base_model: the family that the user specifies. It decides whether a file may have only clip_l.
    """
    refuse_other_kinds(file.tensors, ModelType.EMBEDDINGS)
    tensors = file.tensors
    _refuse_other_trainers(tensors)
    keys = {_OF_ENCODERS.get(name, name): name for name in tensors}
    if len(tensors) == 2 and keys.keys() == {_FIRST, _SECOND}:
        for name, tensor in tensors.items():
            _check_vectors(name, tensor)
        return _Embedding(tensors[keys[_FIRST]], tensors[keys[_SECOND]])
    if len(tensors) > 1:
        names = ", ".join(snippet(name, 20) for name in sorted(tensors)[:3])
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"an embedding is one tensor, or clip_l and clip_g for SDXL; the file holds"
            f" {len(tensors)}: {names}; for several concepts load a file for each",
        )
    ((name, tensor),) = tensors.items()
    if _FIRST in keys and base_model in (BaseModelName.SD1, BaseModelName.SD2):
        _check_vectors(name, tensor)
        return _Embedding(tensor)
    if name in _HALVES:
        hint = "; if it is whole and of another family, set spec.baseModel"
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is half an embedding of SDXL: it holds {name} without {_HALVES[name]}"
            f"{hint if _FIRST in keys else ''}",
        )
    _check_vectors(name, tensor)
    if name.startswith(_A1111) and name != _A1111_ONLY:
        return _Embedding(tensor, name=name.removeprefix(_A1111))
    if name in _NAMELESS:
        own_name = file.metadata.get(_NAME) if file.format == CKPT else None
        return _Embedding(tensor, name=own_name)
    return _Embedding(tensor, name=name)


def _refuse_other_trainers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse embeddings that `load_textual_inversion` does not read, and name their kind."""
    for name in tensors:
        if name.endswith(_OUTPUT) and name.removesuffix(_OUTPUT) in _ENCODERS:
            raise unsupported(
                f"an embedding of OneTrainer with vectors for the text encoder's output ({name}),"
                " which diffusers does not read: train it without output embeddings"
            )
    if _OTHER_ENCODER in tensors:
        model = "Stable Diffusion 3" if _SECOND in tensors else "FLUX"
        raise unsupported(
            f"an embedding of {model} (it holds {_OTHER_ENCODER}), which is not supported"
        )


def _check_vectors(name: str, tensor: Tensor) -> None:
    shape = tensor.shape
    if not tensor.dtype.is_float:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{snippet(name)} should hold floating-point numbers, but its type is"
            f" {tensor.dtype.label}",
        )
    vectors = 1 if len(shape) == 1 else shape[0] if len(shape) == 2 else 0
    if not 1 <= vectors <= MAX_VECTORS:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{snippet(name)} has the shape {list(shape)}, but an embedding has 1 to"
            f" {MAX_VECTORS} vectors",
        )


def _base_model(found: _Embedding) -> BaseModelName:
    width = found.first.shape[-1]
    if found.second is None:
        if width == _SECOND_WIDTH:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                "the file is half an embedding of SDXL: vectors of 1280 numbers, for its second"
                " text encoder; use a file that holds clip_l and clip_g, or a repo that holds"
                " learned_embeds and learned_embeds_2",
            )
        families = families_by_text_width(width) - {BaseModelName.SDXL}
        if len(families) != 1:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"vectors of {width} numbers do not fit any text encoder; sd-1 has 768, sd-2"
                " 1024, sdxl 768 and 1280",
            )
        (family,) = families
        return family
    shapes = found.first.shape, found.second.shape
    if (width, shapes[1][-1]) != (_SDXL["text_encoder"], _SECOND_WIDTH) or shapes[0][:-1] != shapes[
        1
    ][:-1]:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"clip_l {list(shapes[0])} and clip_g {list(shapes[1])} should be equally many vectors"
            " of 768 and of 1280 numbers",
        )
    return BaseModelName.SDXL


def _token(name: str | None, model_id: str) -> tuple[str, tuple[str, ...]]:
    """The token for prompts, and a warning if the file's own name cannot be used for it.

    The token is then the model id in angle brackets, as for a file without a name. diffusers
    refuses a word that the tokenizer already has. A name with spaces would never match.
    """
    substitute = f"<{model_id}>"
    if name is None:
        return substitute, ()
    if len(name) > MAX_TOKEN or not name.isprintable() or not name or " " in name:
        return substitute, (
            f"the file's own name, {snippet(name, 20)}, cannot be used in prompts; the token is"
            f" {substitute}",
        )
    if _is_taken(name):
        return substitute, (
            f"the file's own name, {name}, is a word of the tokenizer; the token is {substitute}",
        )
    return name, ()


def _is_taken(word: str) -> bool:
    vocabulary: Mapping[str, int] = json.loads(vocabulary_file("vocab.json"))
    return word in vocabulary or f"{word}_1" in vocabulary
