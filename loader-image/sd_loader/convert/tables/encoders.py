"""The text encoders and VAEs that files of SD 3 and FLUX contain, under the names in the files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sd_loader.convert.tables.architecture import Component, Row, load_architecture

CLIP_L = "text_encoders.clip_l.transformer."
CLIP_G = "text_encoders.clip_g.transformer."
T5 = "text_encoders.t5xxl.transformer."
VAE_PREFIXES = ("first_stage_model.", "vae.")

_T5_BLOCK = "encoder.block."
_T5_LAYER = (
    ("0.layer_norm.weight", "t5"),
    ("0.SelfAttention.q.weight", "t5_inner t5"),
    ("0.SelfAttention.k.weight", "t5_inner t5"),
    ("0.SelfAttention.v.weight", "t5_inner t5"),
    ("0.SelfAttention.o.weight", "t5 t5_inner"),
    ("1.layer_norm.weight", "t5"),
    ("1.DenseReluDense.wi_0.weight", "t5_mlp t5"),
    ("1.DenseReluDense.wi_1.weight", "t5_mlp t5"),
    ("1.DenseReluDense.wo.weight", "t5 t5_mlp"),
)
_T5_OUTER = (
    ("shared.weight", "t5_vocabulary t5"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "t5_buckets t5_heads"),
    ("encoder.final_layer_norm.weight", "t5"),
)
_T5_COPY = "encoder.embed_tokens.weight"
"""A second name of the embedding: some files have the tensor under both names."""

KEPT_IN_FP32 = "wo"
"""The module of T5 whose results are too large for fp16. transformers keeps it in fp32."""


def clip_l(name: str) -> Component:
    """CLIP-L. Its key table is that of SDXL's first text encoder, which is the same model."""
    sdxl = load_architecture("sdxl").component("text_encoder")
    return replace(sdxl.in_diffusers_layout(CLIP_L), name=name)


def clip_g(name: str) -> Component:
    """CLIP-G. Checkpoints of SDXL have the same model in another layout."""
    sdxl = load_architecture("sdxl").component("text_encoder_2")
    return replace(sdxl.in_diffusers_layout(CLIP_G), name=name)


def t5(name: str, names: Iterable[str]) -> Component:
    """T5's encoder, with the layers that the named tensors show."""
    layers = t5_layers(names)
    rows = [
        (f"{_T5_BLOCK}{layer}.layer.{part}", shape)
        for layer in range(layers)
        for part, shape in _T5_LAYER
    ]
    return Component(
        name,
        T5,
        tuple(Row(T5 + part, part, "", shape) for part, shape in (*_T5_OUTER, *rows)),
        frozenset({T5 + _T5_COPY}),
    )


def t5_layers(names: Iterable[str]) -> int:
    """The number of T5's layers in a file, up to the first gap in their numbers."""
    blocks = T5 + _T5_BLOCK
    found = {
        name.removeprefix(blocks).partition(".")[0] for name in names if name.startswith(blocks)
    }
    count = 0
    while str(count) in found:
        count += 1
    return count


def vae(prefix: str, *, quantizing: bool = False) -> Component:
    """The VAE: SDXL's with another number of latent channels.

    quantizing: whether it has the convolutions before and after the latents (quant_conv and
    post_quant_conv), as SDXL's VAE does.
    """
    sdxl = load_architecture("sdxl").component("vae").under(prefix)
    channels = {"8": "2*latents", "4": "latents"}
    rows = tuple(
        replace(row, shape=" ".join(channels.get(size, size) for size in row.shape.split()))
        for row in sdxl.rows
        if quantizing or "quant_conv" not in row.source
    )
    return replace(sdxl, rows=rows)
