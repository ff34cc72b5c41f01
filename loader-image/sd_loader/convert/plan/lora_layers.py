"""The layers that a LoRA of a transformer may change, from the key tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from sd_loader.convert.plan.lora_styles import Layout
from sd_loader.convert.tables.architecture import Row, take
from sd_loader.convert.tables.dimensions import Dimensions, matches, with_values
from sd_loader.convert.tables.transformers import Kind, load_transformer
from sd_loader.tensors import Tensor

WIDTH = "inner"
"""The name of a transformer's width in its table."""

_WEIGHT = ".weight"
_EMBEDDINGS = frozenset({"time_text_embed.addition_t_embedding.weight"})
"""The embeddings (lookup tables of vectors) of transformers. diffusers reads no LoRA of them."""

_HEAD = "head"
"""The pattern of the shape of a norm of queries or keys."""
_XLABS = {
    "double_blocks.{}.processor.qkv_lora1": "double_blocks.{}.img_attn.qkv",
    "double_blocks.{}.processor.qkv_lora2": "double_blocks.{}.txt_attn.qkv",
    "double_blocks.{}.processor.proj_lora1": "double_blocks.{}.img_attn.proj",
    "double_blocks.{}.processor.proj_lora2": "double_blocks.{}.txt_attn.proj",
    "single_blocks.{}.processor.proj_lora": "single_blocks.{}.linear2",
}
_XLABS_QKV = "single_blocks.{}.processor.qkv_lora"

BLOCKS: Mapping[str, Mapping[int, Mapping[str, int]]] = {
    "flux": {3072: {"double_blocks": 19, "single_blocks": 38}},
    "chroma": {3072: {"double_blocks": 19, "single_blocks": 38}},
    "flux2": {
        3072: {"double_blocks": 5, "single_blocks": 20},
        4096: {"double_blocks": 8, "single_blocks": 24},
        6144: {"double_blocks": 8, "single_blocks": 48},
    },
    "sd-3": {1536: {"joint_blocks": 24}, 2432: {"joint_blocks": 38}},
    "qwen-image": {3072: {"transformer_blocks": 60}},
    "z-image": {3840: {"layers": 30, "noise_refiner": 2, "context_refiner": 2}},
    "wan": {1536: {"blocks": 30}, 3072: {"blocks": 30}, 5120: {"blocks": 40}},
    "lumina2": {2304: {"layers": 26, "noise_refiner": 2, "context_refiner": 2}},
}
"""The number of blocks of each published model, by its family and width."""


_SIZES: Mapping[str, Mapping[str, str]] = {
    "flux2": {"time": "256", "mlp": "3*inner"},
    "lumina2": {"time": "1024", "mlp": "4*inner", "keys": "768"},
    "sd-3": {"patch": "2"},
    "wan": {"time": "256", "patch_0": "1", "patch_1": "2", "patch_2": "2", "image_keys": "inner"},
    "z-image": {"time": "256"},
}
"""The sizes that all published models of a family share, as expressions of `dimensions`."""


@dataclass(frozen=True)
class LayerKind:
    """A layer that a LoRA may change, in each block of its stack or outside of blocks."""

    stack: str
    """The original name of its blocks. Empty outside of blocks."""

    variants: tuple[tuple[Row, ...], ...]
    """For each version of the model, the modules of diffusers that the layer consists of."""

    is_optional: bool
    """True if some published versions of the model do not have this layer."""

    def fits(self, layer: Tensor, dimensions: Dimensions) -> tuple[Row, ...] | None:
        """The modules that a layer of this shape consists of. None if it fits no version.

        Adds the dimensions that the shape shows to `dimensions`.
        """
        for rows in self.variants:
            known = dict(dimensions)
            parts = [take(layer, row.op) for row in rows]
            if all(
                part is not None and matches(row.shape, part.shape, known)
                for row, part in zip(rows, parts, strict=True)
            ):
                dimensions.update(known)
                return rows
        return None


@cache
def layer_kinds(family: str, layout: Layout) -> Mapping[str, LayerKind]:
    """The layers of a family by their names in a layout, with `{}` for the block's number."""
    groups: dict[str, dict[str, list[Kind]]] = defaultdict(lambda: defaultdict(list))
    for kind in load_transformer(family).kinds:
        row = replace(kind.row, shape=with_values(kind.row.shape, _SIZES.get(family, {})))
        if row.source in _EMBEDDINGS:
            continue
        if row.source.endswith(_WEIGHT) and len(row.shape.split()) > 1:
            name = row.target if layout is Layout.DIFFUSERS else row.source
            groups[name.removesuffix(_WEIGHT)][kind.where].append(replace(kind, row=row))
    found = {name: _layer_kind(by_version, layout) for name, by_version in groups.items()}
    return _of_xlabs(found) if layout is Layout.XLABS else found


def norm_names(family: str) -> Mapping[str, str]:
    """The original names of the norms of queries and keys, each with its stack of blocks."""
    return {
        kind.row.source: kind.stack.removesuffix(".")
        for kind in load_transformer(family).kinds
        if kind.row.shape == _HEAD
    }


def _layer_kind(by_version: Mapping[str, list[Kind]], layout: Layout) -> LayerKind:
    first = next(iter(by_version.values()))[0]
    variants = [tuple(kind.row for kind in kinds) for kinds in by_version.values()]
    if layout is Layout.DIFFUSERS:
        variants = [(replace(row, op=""),) for rows in variants for row in rows]
    return LayerKind(
        stack=first.stack.removesuffix("."),
        variants=tuple(variants),
        is_optional="" not in by_version and len(by_version) == 1,
    )


def _of_xlabs(original: Mapping[str, LayerKind]) -> Mapping[str, LayerKind]:
    """The layers by XLabs' names. A single block has one for its queries, keys and values."""
    [linear] = original["single_blocks.{}.linear1"].variants
    attention = sorted((row for row in linear if ".attn." in row.target), key=lambda row: row.op)
    cut = tuple(
        replace(row, op=f"rows {number}-{number + 1} of {len(attention)}")
        for number, row in enumerate(attention)
    )
    return {
        **{xlabs: original[name] for xlabs, name in _XLABS.items()},
        _XLABS_QKV: LayerKind("single_blocks", (cut,), is_optional=False),
    }


def module_of(row: Row, number: int | None) -> str:
    """Return the name of a row's module in diffusers.

    number: the number of the module's block; None for a module outside of blocks.
    """
    module = row.target.removesuffix(_WEIGHT)
    return module if number is None else module.replace("{}", str(number), 1)
