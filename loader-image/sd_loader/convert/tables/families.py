"""The published sizes of each family's models, and which width belongs to which family.

Models with other widths (pruned, distilled) exist: a width that is not listed does not identify a
family.
"""

from __future__ import annotations

from collections.abc import Mapping

from sd_api.choices import BaseModelName

SDXL_FAMILIES = frozenset({BaseModelName.SDXL, BaseModelName.SDXL_REFINER})

LATENT_CHANNELS: Mapping[BaseModelName, int] = {
    BaseModelName.SD1: 4,
    BaseModelName.SD2: 4,
    BaseModelName.SDXL: 4,
    BaseModelName.SDXL_REFINER: 4,
    BaseModelName.SD3: 16,
    BaseModelName.FLUX: 16,
}
"""The latent channels of each family's VAE. A VAE with another number does not fit."""
SD_LATENT_CHANNELS = LATENT_CHANNELS[BaseModelName.SD1]
"""The latent channels of SD 1, 2 and XL."""

FAMILY_BY_CONTEXT_WIDTH: Mapping[int, BaseModelName] = {
    768: BaseModelName.SD1,
    1024: BaseModelName.SD2,
    2048: BaseModelName.SDXL,
    1280: BaseModelName.SDXL_REFINER,
}
"""Families by the width of the input of the UNet's cross attention (`cross_attention_dim`)."""

CONTEXT_WIDTHS = {family: width for width, family in FAMILY_BY_CONTEXT_WIDTH.items()}
"""Widths of the input of the UNet's cross attention, by family."""

_VOCABULARY = 49408
_SD1 = {
    **{f"unet_{level}": width for level, width in enumerate((320, 640, 1280, 1280))},
    **{f"vae_{level}": width for level, width in enumerate((128, 256, 512, 512))},
    "text_encoder": 768,
    "text_encoder_layers": 12,
    "text_encoder_mlp": 3072,
    "text_encoder_positions": 77,
    "text_encoder_vocabulary": _VOCABULARY,
}
PUBLISHED_SIZES: Mapping[BaseModelName, Mapping[str, int]] = {
    BaseModelName.SD1: _SD1,
    BaseModelName.SD2: {
        **_SD1,
        "text_encoder": 1024,
        # The published SD 2 leaves out the last of its encoder's 24 layers.
        "text_encoder_layers": 23,
        "text_encoder_mlp": 4096,
    },
    BaseModelName.SDXL: {
        **_SD1,
        "text_encoder_2": 1280,
        "text_encoder_2_layers": 32,
        "text_encoder_2_mlp": 5120,
        "text_encoder_2_positions": 77,
        "text_encoder_2_projection": 1280,
        "text_encoder_2_vocabulary": _VOCABULARY,
    },
}
"""Dimensions of each family's published models, by the dimensions' names in the key tables."""


def families_by_text_width(width: int) -> frozenset[BaseModelName]:
    """Families whose (first) text encoder has this width. Empty if none has."""
    return frozenset(
        family for family, sizes in PUBLISHED_SIZES.items() if sizes["text_encoder"] == width
    )


def families_by_latent_channels(channels: int) -> list[BaseModelName]:
    """Families whose VAE has this number of latent channels. Empty if none has."""
    return [family for family, own in LATENT_CHANNELS.items() if own == channels]


def family_of_width(width: object) -> BaseModelName | None:
    """The family whose UNet has this cross_attention_dim. None if no published model has it."""
    return FAMILY_BY_CONTEXT_WIDTH.get(width) if isinstance(width, int) else None
