"""Which parts of its family's UNet a model has: distilled ones leave blocks out.

A family's key table names the most blocks that a UNet of its kind has; what a model has of them,
its tensors or its config say.
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
class Blocks:
    """What a UNet has of its family's. depths: transformer blocks of each attention by its name.

    middle: diffusers' class of the middle block, None where there is none.
    """

    depths: Mapping[str, int]
    middle: str | None = WHOLE

    def rows(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows of these blocks."""
        return tuple(row for row in rows if self._has(row))

    def _has(self, row: Row) -> bool:
        if row.target.startswith(_MIDDLE) and self.middle != WHOLE:
            return self.middle == FIRST_RESNET and row.target.startswith(_MIDDLE_FIRST)
        found = _BLOCK.match(row.target)
        return found is None or int(found[2]) < self.depths[found[1]]


def fitting(family: Architecture, tensors: Mapping[str, Tensor]) -> Architecture:
    """The family with that of its UNets which has as many input blocks; else the usual one."""
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


def blocks_of(unet: Component, names: Iterable[str]) -> Blocks:
    """What a checkpoint has of the UNet's blocks; names are those of its tensors.

    A block of which anything is there counts: the rest of it is then missing. So does an
    attention's first, and all blocks before the last.
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
    return Blocks(found, middle)


def blocks_said(unet: Component, config: Mapping[str, Any]) -> Blocks | None:
    """What a UNet's config says it has of the family's blocks; None for more than the family has.

    The config's fields are of the right kinds (`repo_fields`).
    """
    middle = config.get("mid_block_type", WHOLE)
    if middle not in (WHOLE, FIRST_RESNET, None):
        return None
    down = config.get("transformer_layers_per_block", 1)
    if not isinstance(down, list):
        down = [down] * len(config["down_block_types"])
    up = config.get("reverse_transformer_layers_per_block") or list(reversed(down))
    full = full_depths(unet.rows)
    depths = {name: _depth_said(name, down, up) for name in full}
    if any(depths[name] > full[name] for name in full):
        return None
    return Blocks(depths, middle)


def _depth_said(attention: str, down: list[Any], up: list[Any] | int) -> int:
    """Transformer blocks of one attention; where the config does not say it, too many."""
    found = _ATTENTION.fullmatch(attention)
    side: list[Any] | int = up if found and found[1] == "up_blocks" else down
    level, position = (int(found[2]), int(found[3])) if found else (-1, 0)
    try:
        said = side[level] if isinstance(side, list) else side
        depth = said[position] if isinstance(said, list) else said
    except IndexError:
        return _TOO_MANY
    return depth if isinstance(depth, int) else _TOO_MANY


def full_depths(rows: Iterable[Row]) -> dict[str, int]:
    """The most transformer blocks of each attention."""
    depths: dict[str, int] = {}
    for row in rows:
        block = _BLOCK.match(row.target)
        if block is not None:
            depths[block[1]] = max(depths.get(block[1], 0), int(block[2]) + 1)
    return depths


def with_blocks(config: Mapping[str, Any], unet: Component, blocks: Blocks) -> dict[str, Any]:
    """The UNet's config, saying which blocks it has where they are not its family's own."""
    said = dict(config)
    if blocks.middle != WHOLE:
        said["mid_block_type"] = blocks.middle
    full = full_depths(unet.rows)
    if blocks.middle != WHOLE:
        full.pop(_MIDDLE_ATTENTION, None)
    depths = {name: blocks.depths[name] for name in full}
    if depths == full:
        return said
    levels = range(len(config["block_out_channels"]))
    down = [_layers(depths, "down_blocks", level) for level in levels]
    up = [_layers(depths, "up_blocks", level) for level in levels]
    is_mirrored = up == down[::-1] and not any(isinstance(depth, list) for depth in down)
    if _MIDDLE_ATTENTION in depths:
        down[-1] = _as_the_middle(depths[_MIDDLE_ATTENTION], down[-1])
    said["transformer_layers_per_block"] = [1 if depth is None else depth for depth in down]
    if not is_mirrored:
        said["reverse_transformer_layers_per_block"] = [
            1 if depth is None else depth for depth in up
        ]
    return said


def _as_the_middle(middle: int, last: Layers | None) -> Layers:
    """The last level's number, which diffusers gives the middle block, too."""
    if last is None:
        return middle
    if (last[0] if isinstance(last, list) else last) != middle:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the UNet's middle block has {middle} transformer blocks, its last level {last}:"
            " no config of diffusers says that",
        )
    return last


def _layers(depths: Mapping[str, int], side: str, level: int) -> Layers | None:
    """Transformer blocks of a level: one number where its attentions agree; None without any."""
    found = {
        int(match[3]): depth
        for name, depth in depths.items()
        if (match := _ATTENTION.fullmatch(name)) and (match[1], int(match[2])) == (side, level)
    }
    numbers = [found[index] for index in sorted(found)]
    if not numbers:
        return None
    return numbers[0] if len(set(numbers)) == 1 else numbers
