"""The configs of a pipeline show its variant."""

from __future__ import annotations

import pytest

from sd_api.taxonomy import FAMILIES, UNETS
from sd_loader.convert.detect.variants import variant_of

FLUX = {"in_channels": 64, "out_channels": None, "guidance_embeds": True}
FILL = {**FLUX, "in_channels": 384, "out_channels": 64}
WAN = {"in_channels": 16, "num_attention_heads": 40, "attention_head_dim": 128}
FROM_IMAGE = {**WAN, "in_channels": 36}
TWO = ["transformer", "transformer_2"]
DISTILLED = {"is_distilled": True}


def flux2(heads: int) -> dict[str, int]:
    """The part of a transformer's config that differs between the sizes of FLUX.2."""
    return {"num_attention_heads": heads, "attention_head_dim": 128}


CASES = [
    *((base, "", {"in_channels": 4}, {}, [], "normal") for base in UNETS),
    *((base, "", {"in_channels": 9}, {}, [], "inpaint") for base in UNETS[:3]),
    *((base, "", {"in_channels": 8}, {}, [], "edit") for base in UNETS[:3]),
    ("sd-1", "", {"in_channels": 5}, {}, [], None),
    ("sd-1", "", {"in_channels": "4"}, {}, [], None),
    ("sd-1", "", {"in_channels": [4]}, {}, [], None),
    ("sd-3", "", {"qk_norm": None, "dual_attention_layers": []}, {}, [], "3_medium"),
    ("sd-3", "", {"qk_norm": "rms_norm", "dual_attention_layers": [0]}, {}, [], "3.5_medium"),
    ("sd-3", "", {"qk_norm": "rms_norm"}, {}, [], "3.5_large"),
    ("flux", "FluxPipeline", FLUX, {}, [], "dev"),
    ("flux", "FluxKontextPipeline", FLUX, {}, [], "dev"),
    ("flux", "FluxPipeline", {**FLUX, "guidance_embeds": False}, {}, [], "schnell"),
    ("flux", "FluxFillPipeline", FILL, {}, [], "dev_fill"),
    ("flux", "FluxControlPipeline", {**FILL, "in_channels": 128}, {}, [], None),
    ("flux", "FluxPipeline", {}, {}, [], None),
    ("flux2", "Flux2Pipeline", flux2(48), {}, [], "dev"),
    ("flux2", "Flux2KleinPipeline", flux2(24), DISTILLED, [], "klein_4b"),
    ("flux2", "Flux2KleinPipeline", flux2(24), {"is_distilled": False}, [], "klein_4b_base"),
    ("flux2", "Flux2KleinPipeline", flux2(32), DISTILLED, [], "klein_9b"),
    ("flux2", "Flux2KleinPipeline", flux2(32), {}, [], "klein_9b_base"),
    ("flux2", "Flux2KleinPipeline", flux2(2), DISTILLED, [], None),
    ("krea-2", "Krea2Pipeline", {}, DISTILLED, [], "krea2_turbo"),
    ("krea-2", "Krea2Pipeline", {}, {}, [], "krea2_base"),
    ("qwen-image", "QwenImagePipeline", {}, {}, [], "generate"),
    ("qwen-image", "QwenImageEditPlusPipeline", {}, {}, [], "edit"),
    ("qwen-image", "QwenImageLayeredPipeline", {}, {}, [], None),
    ("wan", "WanPipeline", WAN, {}, ["transformer"], "t2v_14b"),
    ("wan", "WanPipeline", {**WAN, "num_attention_heads": 12}, {}, ["transformer"], "t2v_1.3b"),
    ("wan", "WanPipeline", WAN, {}, TWO, "t2v_a14b"),
    ("wan", "WanImageToVideoPipeline", FROM_IMAGE, {}, ["transformer"], "i2v_14b"),
    ("wan", "WanImageToVideoPipeline", FROM_IMAGE, {}, TWO, "i2v_a14b"),
    (
        *("wan", "WanPipeline"),
        {"in_channels": 48, "num_attention_heads": 24, "attention_head_dim": 128},
        *({}, ["transformer"], "ti2v_5b"),
    ),
    ("wan", "WanPipeline", {**WAN, "num_attention_heads": 2}, {}, [], None),
    ("wan", "WanVACEPipeline", WAN, {}, [], None),
    ("z-image", "ZImagePipeline", {"in_channels": 4}, {}, [], None),
    (None, "KandinskyPipeline", {"in_channels": 4}, {}, [], None),
]


def test_the_configs_show_the_variant() -> None:
    """The variant is absent for an unknown size, and for a value of another type."""
    found = [variant_of(*row[:-1]) for row in CASES]
    assert [row for row, it in zip(CASES, found, strict=True) if it != row[-1]] == []


@pytest.mark.parametrize("base", FAMILIES)
def test_exactly_the_described_variants_are_found(base: str) -> None:
    """The variants that the loader finds are those that the contract describes."""
    found = {row[-1] for row in CASES if row[0] == base} - {None}
    assert found == FAMILIES[base].variants.keys()
