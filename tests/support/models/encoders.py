"""Names and shapes of tiny text encoders, as files of SD 3 and FLUX.1 have them."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

CLIP_L = 64
CLIP_G = 128
T5 = CLIP_L + CLIP_G
VOCABULARY = 49408
T5_VOCABULARY = 32


def linear(name: str, out: int, width: int) -> Shapes:
    """Return the shapes of a linear layer with a bias."""
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def clip_shapes(width: int, *, projected: bool = False) -> Shapes:
    """Return the shapes of a CLIP text encoder with one layer, and a projection if `projected`."""
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (VOCABULARY, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
    }
    layer = "text_model.encoder.layers.0"
    for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
        shapes |= linear(f"{layer}.self_attn.{part}", width, width)
    shapes |= linear(f"{layer}.mlp.fc1", 4 * width, width)
    shapes |= linear(f"{layer}.mlp.fc2", width, 4 * width)
    for norm in (f"{layer}.layer_norm1", f"{layer}.layer_norm2", "text_model.final_layer_norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes | ({"text_projection.weight": (width, width)} if projected else {})


def t5_shapes(width: int = T5) -> Shapes:
    """Return the shapes of a T5 encoder with one layer."""
    block = "encoder.block.0.layer"
    attention = f"{block}.0.SelfAttention"
    return {
        "shared.weight": (T5_VOCABULARY, width),
        **{f"{attention}.{one}.weight": (64, width) for one in "qkv"},
        f"{attention}.o.weight": (width, 64),
        f"{attention}.relative_attention_bias.weight": (32, 1),
        f"{block}.0.layer_norm.weight": (width,),
        f"{block}.1.DenseReluDense.wi_0.weight": (64, width),
        f"{block}.1.DenseReluDense.wi_1.weight": (64, width),
        f"{block}.1.DenseReluDense.wo.weight": (width, 64),
        f"{block}.1.layer_norm.weight": (width,),
        "encoder.final_layer_norm.weight": (width,),
    }
