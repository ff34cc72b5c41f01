"""The styles of names in which diffusers reads LoRAs of transformers, by family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from sd_loader.convert.plan.lora_keys import Half, canonical_name

_KOHYA = {
    "lora_down.weight": Half.DOWN,
    "lora_up.weight": Half.UP,
    "alpha": Half.ALPHA,
}
_PEFT = {
    "lora_A.weight": Half.DOWN,
    "lora_B.weight": Half.UP,
    "lora_B.bias": Half.BIAS,
    "lora_magnitude_vector": Half.MAGNITUDE,
    "alpha": Half.ALPHA,
}
_BFL = {
    "lora_A.weight": Half.DOWN,
    "lora_B.weight": Half.UP,
    "lora_B.bias": Half.BIAS,
}
_NORMS = (".query_norm.scale", ".key_norm.scale")
_XLABS = {"down.weight": Half.DOWN, "up.weight": Half.UP}


class Layout(Enum):
    """The model or program that a style takes the names of layers from."""

    ORIGINAL = "original"
    DIFFUSERS = "diffusers"
    XLABS = "XLabs"


class Alphas(Enum):
    """The rule of diffusers for a style: each layer may, must, or must not have an alpha."""

    OPTIONAL = "optional"
    NEEDED = "needed"
    """diffusers fails without an alpha."""

    FORBIDDEN = "forbidden"
    """diffusers fails with an alpha."""


@dataclass(frozen=True)
class LoraStyle:
    """How the tensors of a LoRA are named: a prefix, the layer's name, and the tensor's role."""

    who: str
    """The program or company of the style, in the possessive, for messages."""

    prefix: str
    layout: Layout
    halves: Mapping[str, Half]
    separator: str = "."
    """The text between the parts of a layer's name."""

    alphas: Alphas = Alphas.OPTIONAL
    only: str = ""
    """Matches the beginning of the dotted names of the layers that diffusers reads.

    diffusers ignores other layers, so a file with such layers is refused.
    """

    whole_blocks: bool = False
    """True if diffusers needs a LoRA of the model's first blocks, with all layers of each block."""

    whole_model: bool = False
    """True if diffusers needs all layers of the model, and replacements of all norms of queries and
    keys."""

    published_prefix: str | None = None
    """The prefix of the published names. None keeps the names of the file."""

    clip: tuple[str, ...] = ()
    """Prefixes of CLIP-L's layers. Empty if a LoRA in this style cannot have layers of CLIP-L."""

    def read(self, name: str) -> tuple[str, Half] | None:
        """The layer's name and the role of a tensor. None if it is not named in this style."""
        if not name.startswith(self.prefix):
            return None
        rest = name.removeprefix(self.prefix)
        for ending, half in self.halves.items():
            layer = rest.removesuffix(f".{ending}")
            if layer != rest and (self.separator == "." or "." not in layer):
                return layer, half
        return None

    def is_of_clip(self, name: str) -> bool:
        """Whether a tensor belongs to a layer of CLIP-L."""
        return bool(self.clip) and name.startswith(self.clip)

    def is_norm(self, name: str) -> bool:
        """Return True if the tensor replaces a norm of queries or keys."""
        return self.whole_model and name.endswith(_NORMS)

    def matches(self, template: str) -> bool:
        """Return whether diffusers reads a layer. template: its name, with `{}` for numbers."""
        return re.match(self.only, template) is not None

    def published(self, name: str) -> str:
        """The published name of a tensor, which diffusers reads."""
        if self.is_of_clip(name):
            return canonical_name(name)
        if self.published_prefix is None:
            return name
        return self.published_prefix + name.removeprefix(self.prefix)


def _kohya(layout: Layout, only: str = "", clip: tuple[str, ...] = ()) -> LoraStyle:
    return LoraStyle("kohya's", "lora_unet_", layout, _KOHYA, "_", only=only, clip=clip)


def _of_comfy(layout: Layout, halves: Mapping[str, Half], only: str = "") -> LoraStyle:
    return LoraStyle("ComfyUI's", "diffusion_model.", layout, halves, only=only)


def _peft(alphas: Alphas = Alphas.FORBIDDEN, clip: tuple[str, ...] = ()) -> LoraStyle:
    return LoraStyle("PEFT's", "transformer.", Layout.DIFFUSERS, _PEFT, alphas=alphas, clip=clip)


def _bare(alphas: Alphas = Alphas.FORBIDDEN) -> LoraStyle:
    return LoraStyle(
        "PEFT's", "", Layout.DIFFUSERS, _PEFT, alphas=alphas, published_prefix="transformer."
    )


_BARE_WITH_ALPHAS = LoraStyle("PEFT's", "", Layout.DIFFUSERS, _PEFT, alphas=Alphas.NEEDED)


_BLOCKS = r"(double|single)_blocks\."
_FLUX = (
    _kohya(Layout.ORIGINAL, _BLOCKS, clip=("lora_te1_", "lora_te_")),
    _of_comfy(Layout.ORIGINAL, _KOHYA, _BLOCKS),
    LoraStyle(
        "OneTrainer's",
        "lora_transformer_",
        Layout.DIFFUSERS,
        _KOHYA,
        "_",
        alphas=Alphas.NEEDED,
        only=r"(single_)?transformer_blocks\.\{\}\.attn\.",
        clip=("lora_te1_",),
    ),
    LoraStyle("XLabs'", "", Layout.XLABS, _XLABS),
    LoraStyle("XLabs'", "diffusion_model.", Layout.XLABS, _XLABS),
    _peft(Alphas.OPTIONAL, clip=("text_encoder.",)),
    _bare(Alphas.OPTIONAL),
)

STYLES: Mapping[str, tuple[LoraStyle, ...]] = {
    "flux": (
        *_FLUX,
        LoraStyle("BFL's", "", Layout.ORIGINAL, _BFL, alphas=Alphas.FORBIDDEN, whole_model=True),
    ),
    "chroma": tuple(replace(style, clip=()) for style in _FLUX),
    "flux2": (
        _kohya(Layout.ORIGINAL, rf"{_BLOCKS}|(img|txt)_in$|time_in\.|final_layer\.linear$"),
        LoraStyle(
            "ai-toolkit's",
            "diffusion_model.",
            Layout.ORIGINAL,
            _PEFT,
            alphas=Alphas.FORBIDDEN,
            only=r"(?!final_layer\.adaLN)",
        ),
        _peft(),
        _bare(),
    ),
    "sd-3": (_peft(), _bare()),
    "qwen-image": (
        _kohya(Layout.DIFFUSERS),
        _of_comfy(Layout.DIFFUSERS, _KOHYA),
        _of_comfy(Layout.DIFFUSERS, _PEFT),
        _peft(),
        _BARE_WITH_ALPHAS,
        _bare(),
    ),
    "z-image": (
        _kohya(Layout.DIFFUSERS),
        _kohya(Layout.ORIGINAL, r"(layers|noise_refiner|context_refiner)\."),
        _of_comfy(Layout.DIFFUSERS, _KOHYA),
        _of_comfy(Layout.DIFFUSERS, _PEFT),
        _peft(),
        _BARE_WITH_ALPHAS,
        _bare(),
    ),
    "wan": (
        LoraStyle(
            "musubi's",
            "lora_unet_",
            Layout.ORIGINAL,
            _KOHYA,
            "_",
            alphas=Alphas.NEEDED,
            only=r"blocks\.",
            whole_blocks=True,
        ),
        _of_comfy(Layout.ORIGINAL, _KOHYA, r"blocks\."),
        _of_comfy(Layout.ORIGINAL, _PEFT, r"blocks\."),
        _peft(),
        _bare(),
    ),
    "lumina2": (
        LoraStyle(
            "ComfyUI's",
            "diffusion_model.",
            Layout.ORIGINAL,
            {ending: half for ending, half in _PEFT.items() if half in (Half.DOWN, Half.UP)},
            alphas=Alphas.FORBIDDEN,
            only=r"(layers|noise_refiner|context_refiner)\.",
            whole_blocks=True,
        ),
        _peft(),
        _bare(),
    ),
}
"""The styles of each family, by the name of its key table."""

_NUMBERS = {
    separator: re.compile(rf"{re.escape(separator)}(\d+)(?={re.escape(separator)})", re.ASCII)
    for separator in "._"
}


def template_of(layer: str, separator: str) -> tuple[str, int | None]:
    """A layer's name with `{}` in place of its block's number, and the number. None without one."""
    found = _NUMBERS[separator].search(layer)
    # No model has a number with more than 4 digits, and Python refuses very long numbers.
    if found is None or len(found[1]) > 4:
        return layer, None
    return f"{layer[: found.start(1)]}{{}}{layer[found.end(1) :]}", int(found[1])
