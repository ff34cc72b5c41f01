"""Detects models that have a transformer instead of a UNet, by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_loader.tensors import Tensor

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
"""Prefixes that the transformer's names may have in a file. Most files have none."""

_ENCODERS = ("text_encoders.", "text_encoder.", "text_encoder_2.", "cond_stage_model.")
_VAES = ("first_stage_model.", "vae.")
_ONE = "text encoder"
_SEVERAL = "text encoders"


@dataclass(frozen=True)
class Family:
    """A family of models with a transformer."""

    name: str
    """Its usual name."""

    mark: str
    """Matches the beginning of a name that shows the family, in either layout.

    Only earlier families may have such a name, too: see `_FAMILIES`.
    """

    diffusers: str | None = None
    """Matches the beginning of a name that only diffusers' layout has.

    None if both layouts have the same names.
    """

    table: str | None = None
    """Name of its key table. None if this loader has no table for it."""

    encoders: str = _ONE
    """How messages name the text encoders of its pipeline: as one or as several."""


_FAMILIES = (
    Family(
        "AuraFlow",
        r"(double_layers\.0\.attn\.|joint_transformer_blocks\.0\.|register_tokens$)",
        r"joint_transformer_blocks\.",
        "auraflow",
    ),
    Family(
        "Stable Diffusion 3",
        r"(joint_blocks\.0\.|pos_embed\.pos_embed$)",
        r"pos_embed\.pos_embed$",
        "sd-3",
        _SEVERAL,
    ),
    Family(
        "HunyuanVideo",
        r"(txt_in\.individual|context_embedder\.token_refiner)",
        r"context_embedder\.",
        encoders=_SEVERAL,
    ),
    Family("Chroma Radiance", r"nerf_(blocks|image_embedder|final_layer(_conv)?)\."),
    Family(
        "Chroma", r"distilled_guidance_layer\.", r"(single_)?transformer_blocks\.", table="chroma"
    ),
    Family(
        "FLUX.2",
        r"double_stream_modulation_img\.",
        r"double_stream_modulation_img\.linear\.",
        "flux2",
    ),
    Family("FLUX.3", r"(emb_in|x_embedders)\.", r"x_embedders\."),
    Family(
        "FLUX.1",
        r"(double_blocks\.0\.img_attn|single_blocks\.0\.linear1"
        r"|single_transformer_blocks\.0\.proj_mlp)\.",
        r"single_transformer_blocks\.",
        "flux",
        _SEVERAL,
    ),
    Family("Qwen-Image 2.1", r"transformer_blocks\.0\.img_mlp\.(gate_up|gate_layer)\."),
    Family("Qwen-Image", r"transformer_blocks\.0\.img_mod\.1\.", table="qwen-image"),
    Family("Z-Image Omni", r"siglip_(embedder|refiner|pad_token)\b", r"all_x_embedder\."),
    Family(
        "Z-Image",
        r"(layers\.0\.adaLN_modulation\.0|all_x_embedder)\.",
        r"all_x_embedder\.",
        "z-image",
    ),
    Family(
        "Lumina 2",
        r"(cap_embedder\.0\.weight$|time_caption_embed\.)",
        r"time_caption_embed\.",
        "lumina2",
    ),
    Family("HiDream", r"double_stream_blocks\.0\.block\.", table="hidream", encoders=_SEVERAL),
    Family("Krea 2", r"(txtfusion|text_fusion)\.", r"text_fusion\.", "krea-2"),
    Family(
        "Sana",
        r"(blocks\.0\.cross_attn\.(q|kv)_linear|transformer_blocks\.0\.ff\.conv_inverted)\.",
        r"transformer_blocks\.",
        "sana",
    ),
    Family("Wan VACE", r"vace_blocks\.0\.", r"condition_embedder\."),
    Family("Wan Animate", r"face_adapter\.", r"condition_embedder\."),
    Family(
        "Wan",
        r"(head\.modulation$|condition_embedder\.time_proj\.)",
        r"condition_embedder\.",
        "wan",
    ),
    Family("LTX-2", r"audio_(patchify_proj|proj_in)\.", r"audio_proj_in\."),
    Family(
        "LTX-Video",
        r"(patchify_proj|time_embed\.emb\.timestep_embedder)\.",
        r"time_embed\.",
        "ltx",
    ),
    Family(
        "Mochi",
        r"(blocks\.0\.attn\.qkv_x|transformer_blocks\.0\.attn1\.add_q_proj)\.",
        r"transformer_blocks\.",
    ),
)
"""The first family whose mark matches counts: an earlier one may also have a later one's names."""


# One pattern for all families: a file may have very many names.
_PREFIX = rf"(?P<prefix>{'|'.join(map(re.escape, PREFIXES))}|)"
_MARKS = "|".join(f"(?P<family{number}>{family.mark})" for number, family in enumerate(_FAMILIES))
_PATTERN = re.compile(rf"{_PREFIX}(?:{_MARKS})")
_SD35_MARKS = re.compile(r"(.*\.)?(joint_blocks|transformer_blocks)\.0\..*(ln_q|norm_q)\.")


@dataclass(frozen=True)
class TransformerFile:
    """A file that has the transformer of a family."""

    family: Family

    name: str
    """The family's usual name, or its version's, such as Stable Diffusion 3.5."""

    prefix: str
    """Prefix of the transformer's names."""

    is_in_diffusers_layout: bool

    has_encoders: bool
    """True if the file has at least one text encoder."""

    has_vae: bool

    @property
    def is_alone(self) -> bool:
        """True if the transformer is the only component in the file."""
        return not self.has_encoders and not self.has_vae

    @property
    def lacking(self) -> str:
        """The missing components of the pipeline, for messages. Empty if none is missing."""
        lacking = [] if self.has_encoders else [self.family.encoders]
        lacking += [] if self.has_vae else ["VAE"]
        return " and ".join(lacking)

    def __str__(self) -> str:
        if not self.lacking:
            return f"the pipeline of {self.name} in one file"
        what = "the transformer" if self.is_alone else "a file"
        layout = " in diffusers' layout" if self.is_in_diffusers_layout else ""
        return f"{what} of {self.name}{layout}, without its {self.lacking}"


def transformer_of(tensors: Mapping[str, Tensor]) -> TransformerFile | None:
    """The transformer in a file. None if the file has no transformer of a known family.

    A LoRA may have the same names: the caller rules it out.
    """
    matches = [match for name in tensors if (match := _PATTERN.match(name)) is not None]
    if not matches:
        return None
    number, prefix = min(map(_found, matches))
    family = _FAMILIES[number]
    return TransformerFile(
        family,
        _version(family, tensors),
        prefix,
        _is_in_diffusers_layout(family, tensors, prefix),
        has_encoders=_has(tensors, _ENCODERS),
        has_vae=_has(tensors, _VAES),
    )


def _found(match: re.Match[str]) -> tuple[int, str]:
    """The family's number, and the prefix of the names."""
    number = next(
        number for number in range(len(_FAMILIES)) if match[f"family{number}"] is not None
    )
    return number, match["prefix"]


def _is_in_diffusers_layout(family: Family, names: Iterable[str], prefix: str) -> bool:
    if family.diffusers is None:
        return False
    pattern = re.compile(re.escape(prefix) + family.diffusers)
    return any(pattern.match(name) for name in names)


def _has(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _version(family: Family, names: Iterable[str]) -> str:
    is_35 = family.table == "sd-3" and any(_SD35_MARKS.match(name) for name in names)
    return f"{family.name}.5" if is_35 else family.name
