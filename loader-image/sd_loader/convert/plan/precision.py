"""Chooses the type of published weights, and makes the config entry for this type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sd_api.choices import Revision
from sd_loader.convert.write.files import Item
from sd_loader.diffusers_repo.classes import kept_in_fp32
from sd_loader.tensors import Dtype, Source

TORCH_NAMES = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}
"""torch's names of the types that pipelines compute in."""

_ASKED = {Revision.FP32: Dtype.F32, Revision.FP16: Dtype.F16, Revision.BF16: Dtype.BF16}
_WIDENED = {Dtype.F64: Dtype.F32, Dtype.F8_E5M2: Dtype.F16, Dtype.F8_E4M3: Dtype.F16}


def published_dtype(source: Dtype, precision: Revision | None) -> Dtype:
    """The type in which a tensor is published: the requested one, or else its own.

    No pipeline computes in 8-bit types or in double precision. Without a requested precision, 8-bit
    types become fp16, which holds all their values, and double precision becomes single. Integers
    keep their type.
    """
    if not source.is_float:
        return source
    if precision is not None:
        return _ASKED[precision]
    return _WIDENED.get(source, source)


def dtype_in(class_name: str, name: str, own: Dtype, precision: Revision | None) -> Dtype:
    """The published type of a tensor, for a component whose class is in the generated list.

    A tensor keeps its own type unless another precision is requested. Some modules stay in fp32
    when a model is narrowed, as in diffusers and transformers.
    """
    if precision is None:
        return own
    asked = published_dtype(own, precision)
    is_kept = not kept_in_fp32(class_name, precision.value).isdisjoint(name.split("."))
    return Dtype.F32 if is_kept and asked is not own else asked


def published_items(tensors: Mapping[str, Source], precision: Revision | None) -> list[Item]:
    """The tensors, by their published names, in their published types."""
    return [
        Item(name, tensor, published_dtype(tensor.dtype, precision))
        for name, tensor in tensors.items()
    ]


def torch_dtype(dtypes: Iterable[Dtype]) -> dict[str, str]:
    """Return the config entry for the precision of a transformers model. Empty if tensors differ.

    transformers loads a model in the precision that its config names. The configs of diffusers do
    not name one.
    """
    found = set(dtypes)
    return {"torch_dtype": TORCH_NAMES[found.pop()]} if len(found) == 1 else {}
