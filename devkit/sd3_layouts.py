"""Names and shapes of the tensors of Stable Diffusion 3.5.

The rules come from the architecture (MMDiT-X), not from any converter.
"""

from __future__ import annotations

from dataclasses import dataclass

from devkit.layers import Shapes, linear, under
from devkit.ldm_layouts import SDXL, TINY_SDXL, Widths, clip_shapes, vae_shapes

_TIMESTEP = 256
SD3_LATENTS = 16
"""The latent channels of the VAE."""
_PATCH = 2


@dataclass(frozen=True)
class SD3Widths:
    """The dimensions that may differ between two models."""

    layers: int
    twofold: int
    """How many of the first layers have a second attention."""
    heads: int
    head: int
    """The width of a head."""
    positions: int
    """The number of positions along a side of the largest image."""
    others: Widths
    """The widths of both CLIP encoders and of the VAE."""
    t5: int = 4096
    """The width of T5."""

    @property
    def inner(self) -> int:
        """The width of the transformer."""
        return self.heads * self.head


SD35_MEDIUM = SD3Widths(24, 13, heads=24, head=64, positions=384, others=SDXL)
TINY_SD35 = SD3Widths(2, 1, heads=2, head=64, positions=96, others=TINY_SDXL)


def sd35_shapes(widths: SD3Widths = SD35_MEDIUM) -> Shapes:
    """Return all tensors of a file with the pipeline, without T5."""
    shapes = under("model.diffusion_model.", mmdit_shapes(widths))
    for encoder, name in enumerate(("clip_l", "clip_g")):
        clip = clip_shapes(widths.others, encoder)
        del clip["embeddings.position_ids"]
        shapes |= under(f"text_encoders.{name}.transformer.text_model.", clip)
    pooled = widths.others.text[1]
    shapes["text_encoders.clip_g.transformer.text_projection.weight"] = (pooled, pooled)
    return shapes | under("first_stage_model.", vae_shapes(widths.others, SD3_LATENTS))


def mmdit_shapes(widths: SD3Widths) -> Shapes:
    """Return the tensors of the transformer, as SD 3's mmditx.py builds it."""
    inner, output = widths.inner, _PATCH * _PATCH * SD3_LATENTS
    shapes: Shapes = {
        "pos_embed": (1, widths.positions**2, inner),
        "x_embedder.proj.weight": (inner, SD3_LATENTS, _PATCH, _PATCH),
        "x_embedder.proj.bias": (inner,),
    }
    for name, width in (("t_embedder", _TIMESTEP), ("y_embedder", widths.others.context)):
        linear(shapes, f"{name}.mlp.0", inner, width)
        linear(shapes, f"{name}.mlp.2", inner, inner)
    linear(shapes, "context_embedder", inner, widths.t5)
    for layer in range(widths.layers):
        block = f"joint_blocks.{layer}"
        if layer < widths.layers - 1:
            _side(shapes, f"{block}.context_block", widths, attentions=("attn",))
        else:
            # The last layer's text is only read.
            _attention(shapes, f"{block}.context_block.attn", widths, projects=False)
            linear(shapes, f"{block}.context_block.adaLN_modulation.1", 2 * inner, inner)
        attentions = ("attn", "attn2") if layer < widths.twofold else ("attn",)
        _side(shapes, f"{block}.x_block", widths, attentions)
    linear(shapes, "final_layer.linear", output, inner)
    linear(shapes, "final_layer.adaLN_modulation.1", 2 * inner, inner)
    return shapes


def _side(shapes: Shapes, block: str, widths: SD3Widths, attentions: tuple[str, ...]) -> None:
    """The text's or the image's half of a layer."""
    inner = widths.inner
    for name in attentions:
        _attention(shapes, f"{block}.{name}", widths, projects=True)
    linear(shapes, f"{block}.mlp.fc1", 4 * inner, inner)
    linear(shapes, f"{block}.mlp.fc2", inner, 4 * inner)
    modulated = 3 * (len(attentions) + 1)
    linear(shapes, f"{block}.adaLN_modulation.1", modulated * inner, inner)


def _attention(shapes: Shapes, name: str, widths: SD3Widths, *, projects: bool) -> None:
    linear(shapes, f"{name}.qkv", 3 * widths.inner, widths.inner)
    for norm in ("ln_q", "ln_k"):
        shapes[f"{name}.{norm}.weight"] = (widths.head,)
    if projects:
        linear(shapes, f"{name}.proj", widths.inner, widths.inner)
