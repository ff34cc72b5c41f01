"""Parses the names of a LoRA's tensors: which half of which layer each is, and in which style.

There are three styles: kohya's (`lora_unet_…_to_q.lora_down.weight`, with an alpha for each layer),
diffusers' (`unet.….to_q.lora.down.weight`, formerly `….processor.to_q_lora.down.weight`) and PEFT's
(`unet.….to_q.lora_A.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import refuse_other_adapters, shown
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

UNET = "unet"
TEXT_ENCODER = "text_encoder"
TEXT_ENCODER_2 = "text_encoder_2"


class Style(Enum):
    """How a tensor is named."""

    KOHYA = "kohya"
    OLD = "old diffusers"
    """diffusers' former names (`to_q_lora`), from the time of attention processors."""
    DIFFUSERS = "diffusers"
    PEFT = "PEFT"


class Half(Enum):
    """The role of a tensor in its layer. The value is PEFT's name of the role, except for ALPHA."""

    DOWN = "lora_A.weight"
    UP = "lora_B.weight"
    BIAS = "lora_B.bias"
    MAGNITUDE = "lora_magnitude_vector"
    ALPHA = "alpha"


@dataclass(frozen=True, slots=True)
class Key:
    """The parsed name of a tensor."""

    component: str
    layer: str
    """Name of the layer. In kohya's style it has underscores instead of dots."""

    half: Half
    style: Style

    bare: bool = False
    """True if the tensor's name does not begin with a component. It belongs to the UNet then."""


@dataclass
class Layer:
    """The tensors of one layer."""

    component: str
    name: str
    keys: dict[Half, Key] = field(default_factory=dict)
    names: dict[Half, str] = field(default_factory=dict)
    """The tensors' names in the file."""

    @property
    def styles(self) -> set[Style]:
        """The styles of its tensors' names: more than one if the names do not agree."""
        return {key.style for key in self.keys.values()}


_KOHYA_COMPONENTS = {
    "unet": UNET,
    "te": TEXT_ENCODER,
    "te1": TEXT_ENCODER,
    "te2": TEXT_ENCODER_2,
}
_KOHYA = re.compile(
    r"lora_(unet|te1|te2|te)_([^.]+)\.(lora_down\.weight|lora_up\.weight|alpha)", re.ASCII
)
_KOHYA_HALVES = {
    "lora_down.weight": Half.DOWN,
    "lora_up.weight": Half.UP,
    "alpha": Half.ALPHA,
}
_COMPONENT = re.compile(r"(unet|text_encoder_2|text_encoder)\.(.+)")
_TEXT_ENCODER = re.compile(r"lora_te[12]?_|text_encoder(?:_2)?\.")
_BARE = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\."
)

_DIRECTIONS = {"down": Half.DOWN, "up": Half.UP}
_OLD = re.compile(r"(.+?)\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight")
_DIFFUSERS = re.compile(r"(.+)\.lora\.(down|up)\.weight")
_DIFFUSERS_TEXT = re.compile(r"(.+)\.lora_linear_layer\.(down|up)\.weight")
_PEFT = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector)(?:\.weight)?"
)


def canonical_name(name: str) -> str:
    """Return a text encoder's name with `text_model`, which every version of transformers reads.

    Other names are returned unchanged.
    """
    encoder = _TEXT_ENCODER.match(name)
    if encoder is None:
        return name
    prefix = encoder[0]
    return prefix + with_prefix(name.removeprefix(prefix), separator=prefix[-1])


def parse(name: str) -> Key | None:
    """Parse a tensor's canonical name. None if the name has none of the styles."""
    kohya = _KOHYA.fullmatch(name)
    if kohya:
        component, layer, half = kohya.groups()
        return Key(_KOHYA_COMPONENTS[component], layer, _KOHYA_HALVES[half], Style.KOHYA)
    named = _COMPONENT.fullmatch(name)
    if named:
        return _parse_rest(named[1], named[2], bare=False)
    if _BARE.match(name):
        return _parse_rest(UNET, name, bare=True)
    return None


def _parse_rest(component: str, rest: str, *, bare: bool) -> Key | None:
    if found := _OLD.fullmatch(rest):
        prefix, letter, direction = found.groups()
        layer = f"{prefix}.{_projection(component, letter)}"
        return Key(component, layer, _DIRECTIONS[direction], Style.OLD, bare)
    pattern = _DIFFUSERS if component == UNET else _DIFFUSERS_TEXT
    if found := pattern.fullmatch(rest):
        return Key(component, found[1], _DIRECTIONS[found[2]], Style.DIFFUSERS, bare)
    if found := _PEFT.fullmatch(rest):
        return Key(component, found[1], Half(found[2]), Style.PEFT, bare)
    return None


def _projection(component: str, letter: str) -> str:
    if component == UNET:
        return "to_out.0" if letter == "out" else f"to_{letter}"
    return f"{letter}_proj"


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """The layers that the LoRA changes. Refuses a file with other tensors or incomplete layers."""
    keys: dict[str, Key] = {}
    for name in tensors:
        key = parse(canonical_name(name))
        if key is None:
            refuse_other_adapters(tensors)
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"no LoRA has a tensor named like {shown(name)}; names of kohya's, diffusers' and"
                " PEFT's style are read",
            )
        keys[name] = key
    _check_styles(keys)
    layers: dict[tuple[str, str], Layer] = {}
    for name, key in keys.items():
        layer = layers.setdefault((key.component, key.layer), Layer(key.component, key.layer))
        if key.half in layer.keys:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"two tensors are the {key.half.value} of one layer: {shown(name)} and"
                f" {shown(layer.names[key.half])}",
            )
        layer.keys[key.half] = key
        layer.names[key.half] = name
    found = list(layers.values())
    for layer in found:
        _check_whole(layer)
    return found


def _check_whole(layer: Layer) -> None:
    for half, other in ((Half.DOWN, Half.UP), (Half.UP, Half.DOWN)):
        if half not in layer.keys:
            seen = layer.names.get(other) or next(iter(layer.names.values()))
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"a layer lacks its {half.value} (or lora_{half.name.lower()}): the file holds"
                f" {shown(seen)} alone",
            )


def _check_styles(keys: Mapping[str, Key]) -> None:
    """Refuse kohya's names together with names of other styles.

    diffusers reads kohya's names only if all names of the file are kohya's.
    """
    kohya = [name for name, key in keys.items() if key.style is Style.KOHYA]
    others = [name for name, key in keys.items() if key.style is not Style.KOHYA]
    if kohya and others:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file mixes kohya's names with others: {shown(kohya[0])} and {shown(others[0])}",
        )
