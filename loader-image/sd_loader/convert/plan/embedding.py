"""Plans the folder of a textual-inversion embedding, which `load_textual_inversion(folder)` takes.

    learned_embeds.safetensors     the vectors for the (first) text encoder, under their token
    learned_embeds_2.safetensors   SDXL only: those for the second text encoder
    token_identifier.txt           the token, as prompts name it

The names are those that diffusers' training scripts and the Hub's concept library use. The second
file is opened with `weight_name=`, and with the second text encoder and tokenizer as arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType
from sd_loader.convert.detect.detect import refuse_other_kinds
from sd_loader.convert.plan.small_files import clip_vocabulary
from sd_loader.convert.write.files import FolderPlan, Item, SmallFile, published_dtype, weights_file
from sd_loader.errors import LoaderError
from sd_loader.formats import CKPT
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Dtype, Tensor, TensorFile

WEIGHTS = "learned_embeds.safetensors"
WEIGHTS_2 = "learned_embeds_2.safetensors"
TOKEN_FILE = "token_identifier.txt"  # noqa: S105 - a word for prompts, no secret

MAX_VECTORS = 75
"""A prompt has no room for more."""
MAX_TOKEN = 64

_FIRST = "clip_l"
_SECOND = "clip_g"
_A1111 = "string_to_param."
_A1111_ONLY = f"{_A1111}*"
_NAME = "name"
# Keys by which programs say that the file has one embedding, not how it is called.
_NAMELESS = {"emb_params", _A1111_ONLY, "*"}

_WIDTHS = {768: BaseModelName.SD1, 1024: BaseModelName.SD2}
_SECOND_WIDTH = 1280


@dataclass(frozen=True)
class _Embedding:
    """What the file holds. second: for SDXL's second text encoder. name: None if it says none."""

    first: Tensor
    second: Tensor | None = None
    name: str | None = None


def plan_embedding(file: TensorFile, request: LoadRequest) -> FolderPlan:
    """The files the embedding becomes. Reads no weights, writes nothing."""
    refuse_other_kinds(file.tensors, ModelType.EMBEDDINGS)
    found = _find(file)
    base_model = _base_model(found)
    if request.base_model not in (None, base_model):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {request.base_model.value}, but the file is an embedding of"
            f" {base_model.value}",
        )
    token, warnings = _token(found.name, request.model_id)
    weights = {WEIGHTS: found.first, WEIGHTS_2: found.second}
    return FolderPlan(
        files=(
            *(
                weights_file(path, [Item(token, tensor, _dtype(tensor, request))])
                for path, tensor in weights.items()
                if tensor is not None
            ),
            SmallFile(TOKEN_FILE, token.encode()),
        ),
        base_model=base_model.value,
        warnings=warnings,
        scan=True,
    )


def _dtype(tensor: Tensor, request: LoadRequest) -> Dtype:
    """The file's own type, even one that is not computed in, unless another is asked for."""
    if request.revision is None:
        return tensor.dtype
    return published_dtype(tensor.dtype, request.revision)


def _find(file: TensorFile) -> _Embedding:
    tensors = file.tensors
    if tensors.keys() == {_FIRST, _SECOND}:
        first, second = tensors[_FIRST], tensors[_SECOND]
        _check_vectors(_FIRST, first)
        _check_vectors(_SECOND, second)
        return _Embedding(first, second)
    if len(tensors) > 1:
        names = ", ".join(snippet(name, 20) for name in sorted(tensors)[:3])
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"an embedding is one tensor, or clip_l and clip_g for SDXL; the file holds"
            f" {len(tensors)}: {names}; for several concepts load a file for each",
        )
    ((name, tensor),) = tensors.items()
    if name in (_FIRST, _SECOND):
        other = _SECOND if name == _FIRST else _FIRST
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is half an embedding of SDXL: it holds {name} without {other}",
        )
    _check_vectors(name, tensor)
    if name.startswith(_A1111) and name != _A1111_ONLY:
        return _Embedding(tensor, name=name.removeprefix(_A1111))
    if name in _NAMELESS:
        said = file.metadata.get(_NAME) if file.format == CKPT else None
        return _Embedding(tensor, name=said)
    return _Embedding(tensor, name=name)


def _check_vectors(name: str, tensor: Tensor) -> None:
    shape = tensor.shape
    if not tensor.dtype.is_float:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{snippet(name)} holds no floating-point numbers, but {tensor.dtype.label}",
        )
    vectors = 1 if len(shape) == 1 else shape[0] if len(shape) == 2 else 0
    if not 1 <= vectors <= MAX_VECTORS:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{snippet(name)} has the shape {list(shape)}, which is no embedding's: 1 to"
            f" {MAX_VECTORS} vectors",
        )


def _base_model(found: _Embedding) -> BaseModelName:
    width = found.first.shape[-1]
    if found.second is None:
        if width == _SECOND_WIDTH:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                "the file is half an embedding of SDXL: vectors of 1280 numbers, for its second"
                " text encoder; use a file that holds clip_l and clip_g",
            )
        if width not in _WIDTHS:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"vectors of {width} numbers fit no text encoder; sd1 has 768, sd2 1024, sdxl 768"
                " and 1280",
            )
        return _WIDTHS[width]
    shapes = found.first.shape, found.second.shape
    if (width, shapes[1][-1]) != (768, _SECOND_WIDTH) or shapes[0][:-1] != shapes[1][:-1]:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"clip_l {list(shapes[0])} and clip_g {list(shapes[1])} should be equally many vectors"
            " of 768 and of 1280 numbers",
        )
    return BaseModelName.SDXL


def _token(name: str | None, model_id: str) -> tuple[str, tuple[str, ...]]:
    """The word for prompts: the file's own name, else the model id in angle brackets.

    A word that the tokenizer has already would be refused by diffusers, and one with spaces would
    never be met in a prompt.
    """
    substitute = f"<{model_id}>"
    if name is None:
        return substitute, ()
    if len(name) > MAX_TOKEN or not name.isprintable() or not name or " " in name:
        return substitute, (
            f"the file's own name, {snippet(name, 20)}, is no word for prompts; the token is"
            f" {substitute}",
        )
    if _is_taken(name):
        return substitute, (
            f"the file's own name, {name}, is a word of the tokenizer; the token is {substitute}",
        )
    return name, ()


def _is_taken(word: str) -> bool:
    vocabulary: Mapping[str, int] = json.loads(clip_vocabulary("vocab.json"))
    return word in vocabulary or f"{word}_1" in vocabulary
