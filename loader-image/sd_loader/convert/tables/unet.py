"""Detects which blocks of its family's UNet a model has: distilled models lack some.

A family's key table lists every block that a UNet of the family may have. The tensors of a model,
or its config, show which of these blocks the model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.tables.architecture import Architecture, Component, Row
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

_BLOCK = re.compile(r"(.*\.attentions\.\d+)\.transformer_blocks\.(\d+)\.")
_ATTENTION = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)")
_INPUT_BLOCK = re.compile(r".*\binput_blocks\.(\d+)\.")
_TOO_MANY = 1 << 20
_MIDDLE = "mid_block."
_MIDDLE_FIRST = "mid_block.resnets.0."
_MIDDLE_ATTENTION = "mid_block.attentions.0"

WHOLE = "UNetMidBlock2DCrossAttn"
FIRST_RESNET = "UNetMidBlock2D"

Layers = int | list[int]


@dataclass(frozen=True)
class UNetBlocks:
    """The blocks of its family's UNet that a model has."""

    depths: Mapping[str, int]
    """Number of transformer blocks of each attention, by the attention's name."""

    middle: str | None = WHOLE
    """diffusers' class of the middle block. None if the UNet has no middle block."""

    def rows(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """Return the rows without those of the blocks that the model does not have."""
        return tuple(row for row in rows if self._has(row))

    def _has(self, row: Row) -> bool:
        if row.target.startswith(_MIDDLE) and self.middle != WHOLE:
            return self.middle == FIRST_RESNET and row.target.startswith(_MIDDLE_FIRST)
        found = _BLOCK.match(row.target)
        return found is None or int(found[2]) < self.depths[found[1]]


def fitting(family: Architecture, tensors: Mapping[str, Tensor]) -> Architecture:
    """Return the family with the UNet that has as many input blocks as the file.

    Return the family unchanged if it has no such UNet.
    """
    count = len(_input_blocks(tensors, family.unet.prefix))
    for known in family.unets():
        if len(_input_blocks((row.source for row in known.unet.rows), known.unet.prefix)) == count:
            return known
    return family


def _input_blocks(names: Iterable[str], prefix: str) -> set[str]:
    return {
        found[1]
        for name in names
        if name.startswith(prefix) and (found := _INPUT_BLOCK.match(name))
    }


def unet_blocks(unet: Component, names: Iterable[str]) -> UNetBlocks:
    """The UNet's blocks that a checkpoint with these tensor names has.

    A block counts if any of its tensors is there; its missing tensors are reported when the rows
    are bound. The first block of an attention always counts, and so does every block before the
    last one.
    """
    present = set(names)
    depths = full_depths(unet.rows)
    found = dict.fromkeys(depths, 1)
    middle = None
    for row in unet.rows:
        if row.source not in present:
            continue
        block = _BLOCK.match(row.target)
        if block is not None:
            found[block[1]] = max(found[block[1]], int(block[2]) + 1)
        if row.target.startswith(_MIDDLE) and middle != WHOLE:
            middle = FIRST_RESNET if row.target.startswith(_MIDDLE_FIRST) else WHOLE
    return UNetBlocks(found, middle)


def configured_blocks(unet: Component, config: Mapping[str, Any]) -> UNetBlocks | None:
    """The UNet's blocks that a config asks for. None if no UNet of the family has such blocks.

    The caller has checked the types of the config's fields (`config_keys`).
    """
    middle = config.get("mid_block_type", WHOLE)
    if middle not in (WHOLE, FIRST_RESNET, None):
        return None
    down = config.get("transformer_layers_per_block", 1)
    if not isinstance(down, list):
        down = [down] * len(config["down_block_types"])
    up = config.get("reverse_transformer_layers_per_block") or list(reversed(down))
    full = full_depths(unet.rows)
    depths = {name: _configured_depth(name, down, up) for name in full}
    if any(depths[name] > full[name] for name in full):
        return None
    return UNetBlocks(depths, middle)


def _configured_depth(attention: str, down: list[Any], up: list[Any] | int) -> int:
    """Number of transformer blocks of an attention. _TOO_MANY if the config has none."""
    found = _ATTENTION.fullmatch(attention)
    side: list[Any] | int = up if found and found[1] == "up_blocks" else down
    level, position = (int(found[2]), int(found[3])) if found else (-1, 0)
    try:
        at_level = side[level] if isinstance(side, list) else side
        depth = at_level[position] if isinstance(at_level, list) else at_level
    except IndexError:
        return _TOO_MANY
    return depth if isinstance(depth, int) else _TOO_MANY


def full_depths(rows: Iterable[Row]) -> dict[str, int]:
    """Return the largest number of transformer blocks of each attention in the family."""
    depths: dict[str, int] = {}
    for row in rows:
        block = _BLOCK.match(row.target)
        if block is not None:
            depths[block[1]] = max(depths.get(block[1], 0), int(block[2]) + 1)
    return depths


def with_blocks(config: Mapping[str, Any], unet: Component, blocks: UNetBlocks) -> dict[str, Any]:
    """Return the UNet's config, changed if the UNet lacks blocks of its family."""
    changed = dict(config)
    if blocks.middle != WHOLE:
        changed["mid_block_type"] = blocks.middle
    full = full_depths(unet.rows)
    if blocks.middle != WHOLE:
        full.pop(_MIDDLE_ATTENTION, None)
    depths = {name: blocks.depths[name] for name in full}
    if depths == full:
        return changed
    levels = range(len(config["block_out_channels"]))
    down = [_layers(depths, "down_blocks", level) for level in levels]
    up = [_layers(depths, "up_blocks", level) for level in levels]
    is_mirrored = up == down[::-1] and not any(isinstance(depth, list) for depth in down)
    if _MIDDLE_ATTENTION in depths:
        down[-1] = _as_the_middle(depths[_MIDDLE_ATTENTION], down[-1])
    changed["transformer_layers_per_block"] = [1 if depth is None else depth for depth in down]
    if not is_mirrored:
        changed["reverse_transformer_layers_per_block"] = [
            1 if depth is None else depth for depth in up
        ]
    return changed


def _as_the_middle(middle: int, last: Layers | None) -> Layers:
    """Return the last level's depth, or the middle block's if the last level has no attention.

    diffusers uses the last level's depth for the middle block. Refuse depths that differ.
    """
    if last is None:
        return middle
    if (last[0] if isinstance(last, list) else last) != middle:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the UNet's middle block has {middle} transformer blocks, its last level {last};"
            " diffusers' config cannot describe that",
        )
    return last


def _layers(depths: Mapping[str, int], side: str, level: int) -> Layers | None:
    """Depth of a level: a number if its attentions agree, else a list. None without attention."""
    found = {
        int(match[3]): depth
        for name, depth in depths.items()
        if (match := _ATTENTION.fullmatch(name)) and (match[1], int(match[2])) == (side, level)
    }
    numbers = [found[index] for index in sorted(found)]
    if not numbers:
        return None
    return numbers[0] if len(set(numbers)) == 1 else numbers
