"""Plans how LyCORIS layers (LoHa, LoKr) become LoRA layers.

The LoRA layer adds the same matrix to the weights of the model as the LyCORIS layer. A LoRA layer
adds up @ down.

A LoHa layer adds (A1 @ B1) * (A2 @ B2), where * multiplies element by element and both factors
have rank r. This equals up @ down with rank r * r: the columns of up are the element-wise products
of each column of A1 with each column of A2, and the rows of down are those of the rows of B1 and
B2, in the same order.

A LoKr layer adds the Kronecker product kron(W, A @ B), which equals kron(W, A) @ kron(I, B). If W
is stored as C @ D, the layer adds kron(C, A) @ kron(D, B).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import shown
from sd_loader.convert.plan.lora_families import FAMILIES, fitting_family, modules
from sd_loader.convert.plan.lora_keys import canonical_name, parse
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w2_a", "lokr_w2_b")
_LOKR_OF_TWO = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
_ALPHA = "alpha"
_LIMIT = 8 << 30
"""Maximum bytes of all expanded layers of a LoRA. A LoRA of SDXL with rank 256 takes 3 GB."""

REMEDY = "merge it into a checkpoint with the program that trained it, or train a LoRA"


@dataclass(frozen=True)
class Expansion:
    """A LyCORIS layer and the LoRA layer that it becomes."""

    layer: str
    """The name of the layer. The names of its tensors begin with it."""

    is_kronecker: bool
    """LoKr if true, otherwise LoHa."""

    up: tuple[Tensor, Tensor]
    """The factors of the up matrix."""

    down: tuple[Tensor | None, Tensor]
    """The factors of the down matrix. None stands for the identity matrix."""

    alpha: Tensor | None
    """The layer's alpha. Its scale is alpha / `own_rank`, or 1 without an alpha."""

    own_rank: int
    """The rank of the LyCORIS layer's factors."""

    rank: int
    """The rank of the LoRA layer."""

    outputs: int
    inputs: int
    """Inputs of the layer, times the elements of its kernel if it is a convolution."""


def expansions_of(tensors: Mapping[str, Tensor]) -> tuple[Expansion, ...]:
    """Return the LyCORIS layers of a file, each with the LoRA layer that it becomes.

    Raise LoaderError if a layer cannot become a LoRA layer, or if all of them exceed `_LIMIT`.
    """
    roles: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, role = name.rpartition(".")
        if role.startswith(("hada_", "lokr_")):
            roles.setdefault(layer, {})[role] = tensor
    found = tuple(
        _expansion(layer, own, tensors.get(f"{layer}.{_ALPHA}")) for layer, own in roles.items()
    )
    size = sum((item.outputs + item.inputs) * item.rank for item in found) * Dtype.F32.itemsize
    if size > _LIMIT:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"expanded to a LoRA, the file would take {size >> 30} GiB, and at most {_LIMIT >> 30}"
            f" are allowed: {REMEDY}",
        )
    return found


def _expansion(layer: str, own: Mapping[str, Tensor], alpha: Tensor | None) -> Expansion:
    for role, tensor in own.items():
        if len(tensor.shape) != 2 or not tensor.dtype.is_float or not tensor.count:
            raise _contradiction(f"{layer}.{role}", tensor)
    if alpha is not None and (alpha.count != 1 or not alpha.dtype.is_float):
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"{shown(f'{layer}.{_ALPHA}')} should be one number"
        )
    if own.keys() == {*_LOHA}:
        found = _loha(layer, own, alpha)
    elif own.keys() in ({*_LOKR}, {*_LOKR_OF_TWO}):
        found = _lokr(layer, own, alpha)
    else:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{shown(layer)} has the LyCORIS tensors {', '.join(sorted(own))}, which no LoRA"
            f" equals: {', '.join(_LOHA)} and {', '.join(_LOKR)} expand to one. Without them,"
            f" {REMEDY}",
        )
    if found.rank >= min(found.outputs, found.inputs):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"expanded, {shown(layer)} would have rank {found.rank}, which is full for a layer of"
            f" {[found.outputs, found.inputs]}: {REMEDY}",
        )
    return found


def _loha(layer: str, own: Mapping[str, Tensor], alpha: Tensor | None) -> Expansion:
    first_up, first_down, second_up, second_down = (own[role] for role in _LOHA)
    (outputs, rank), (_, inputs) = first_up.shape, first_down.shape
    for role, tensor, shape in (
        (_LOHA[1], first_down, (rank, inputs)),
        (_LOHA[2], second_up, (outputs, rank)),
        (_LOHA[3], second_down, (rank, inputs)),
    ):
        if tensor.shape != shape:
            raise _contradiction(f"{layer}.{role}", tensor)
    return Expansion(
        layer=layer,
        is_kronecker=False,
        up=(first_up, second_up),
        down=(first_down, second_down),
        alpha=alpha,
        own_rank=rank,
        rank=rank * rank,
        outputs=outputs,
        inputs=inputs,
    )


def _lokr(layer: str, own: Mapping[str, Tensor], alpha: Tensor | None) -> Expansion:
    up, down = own["lokr_w2_a"], own["lokr_w2_b"]
    left = own.get("lokr_w1") or own["lokr_w1_a"]
    right = own.get("lokr_w1_b")
    rank = up.shape[1]
    if down.shape[0] != rank:
        raise _contradiction(f"{layer}.lokr_w2_b", down)
    if right is not None and right.shape[0] != left.shape[1]:
        raise _contradiction(f"{layer}.lokr_w1_b", right)
    columns = left.shape[1] if right is None else right.shape[1]
    return Expansion(
        layer=layer,
        is_kronecker=True,
        up=(left, up),
        down=(right, down),
        alpha=alpha,
        own_rank=rank,
        rank=left.shape[1] * rank,
        outputs=left.shape[0] * up.shape[0],
        inputs=columns * down.shape[1],
    )


def _contradiction(name: str, tensor: Tensor) -> LoaderError:
    return LoaderError(
        Reason.CONVERSION_FAILED,
        f"{shown(name)} has the shape {list(tensor.shape)} and the type {tensor.dtype.label}, which"
        " does not fit the other tensors of its layer",
    )


@dataclass(frozen=True)
class Shapes:
    """The shapes of an expanded layer's matrices. Convolutions have four dimensions."""

    down: tuple[int, ...]
    up: tuple[int, ...]


def shapes_of(
    expansions: Sequence[Expansion],
    others: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None,
) -> list[Shapes]:
    """Return the shapes of the LoRA layers, in the order of `expansions`.

    The shapes are those of the family that the layers fit, or those of the likeliest family if they
    fit none. Raise LoaderError if the layers fit several families with different shapes.

    others: the file's tensors that are not expanded.
    base_model: the family that the user specifies.
    """
    candidates = {
        family: [_shapes(item, _kernel(item.layer, family)) for item in expansions]
        for family in FAMILIES
    }
    family = fitting_family(
        {family: _tensors(expansions, shapes, others) for family, shapes in candidates.items()},
        metadata,
        base_model,
    )
    if family is not None:
        return candidates[family]
    if len({tuple(shapes) for shapes in candidates.values()}) > 1:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the layers fit {' and '.join(FAMILIES)} models alike, but become convolutions in one"
            " and matrices in another; spec.baseModel says which",
        )
    return candidates[FAMILIES[0]]


def others_of(tensors: Mapping[str, Tensor], expansions: Sequence[Expansion]) -> dict[str, Tensor]:
    """The tensors of the file that are not expanded."""
    expanded = {item.layer for item in expansions}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in expanded
        or name.rpartition(".")[2] not in {*_LOHA, *_LOKR, *_LOKR_OF_TWO, _ALPHA}
    }


def _kernel(layer: str, family: BaseModelName) -> tuple[int, ...]:
    """The size of the layer's kernel in the family. Empty for a matrix and for an unknown layer."""
    key = parse(canonical_name(f"{layer}.lora_down.weight"))
    module = modules(family).get((key.component, key.layer)) if key is not None else None
    return () if module is None else tuple(int(size) for size in module.shape.split()[2:])


def _shapes(item: Expansion, kernel: tuple[int, ...]) -> Shapes:
    if not kernel or item.inputs % (kernel[0] * kernel[1]):
        return Shapes((item.rank, item.inputs), (item.outputs, item.rank))
    inputs = item.inputs // (kernel[0] * kernel[1])
    return Shapes((item.rank, inputs, *kernel), (item.outputs, item.rank, 1, 1))


def lora_names(item: Expansion) -> tuple[str, str, str]:
    """The names of the LoRA layer's down matrix, up matrix and alpha."""
    return f"{item.layer}.lora_down.weight", f"{item.layer}.lora_up.weight", f"{item.layer}.alpha"


def _tensors(
    expansions: Sequence[Expansion], shapes: Sequence[Shapes], others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of the expanded LoRA. The new ones have only a shape, no content."""
    made = dict(others)
    for item, shape in zip(expansions, shapes, strict=True):
        down, up, _ = lora_names(item)
        made[down] = Tensor(-1, Dtype.F32, shape.down, 0)
        made[up] = Tensor(-1, Dtype.F32, shape.up, 0)
    return made
