"""Names and shapes of the tensors in checkpoints of the original (LDM, SGM) layout.

Written down from the architecture's own rules, not from any converter, so that a test which
converts such a checkpoint compares two independent things. Widths are parameters: `SD15` and
`SDXL` are the published models, `TINY_SD15` and `TINY_SDXL` the same structure (every key of the
real ones) with as few numbers as the architecture's fixed parts allow: 32 groups per norm, 8 heads
(SD 1) or heads of 64 (SDXL, text encoders).
"""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

VOCABULARY = 49408
POSITIONS = 77
TIMESTEPS = 1000
MULTIPLIERS = {"sd15": (1, 2, 4, 4), "sdxl": (1, 2, 4)}
TRANSFORMER_DEPTHS = {"sd15": (1, 1, 1, 0), "sdxl": (0, 2, 10)}
MIDDLE_DEPTHS = {"sd15": 1, "sdxl": 10}
VAE_MULTIPLIERS = (1, 2, 4, 4)
RESNETS_PER_LEVEL = 2
TIME_IDS = 6
TIME_ID_EMBEDDING = 256

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


@dataclass(frozen=True)
class Widths:
    """The dimensions in which two models of one architecture may differ.

    text: hidden sizes of the text encoders. text_layers: their depths.
    """

    architecture: str
    unet: int
    vae: int
    text: tuple[int, ...]
    text_layers: tuple[int, ...]
    vocabulary: int = VOCABULARY

    @property
    def unet_levels(self) -> tuple[int, ...]:
        """Width of each of the UNet's levels."""
        return tuple(self.unet * factor for factor in MULTIPLIERS[self.architecture])

    @property
    def vae_levels(self) -> tuple[int, ...]:
        """Width of each of the autoencoder's levels."""
        return tuple(self.vae * factor for factor in VAE_MULTIPLIERS)

    @property
    def context(self) -> int:
        """Width of what the UNet's cross attention sees: the text encoders, side by side."""
        return sum(self.text)


SD15 = Widths("sd15", unet=320, vae=128, text=(768,), text_layers=(12,))
SDXL = Widths("sdxl", unet=320, vae=128, text=(768, 1280), text_layers=(12, 32))
TINY_SD15 = Widths("sd15", unet=32, vae=32, text=(64,), text_layers=(12,))
TINY_SDXL = Widths("sdxl", unet=32, vae=32, text=(64, 128), text_layers=(12, 32))


def sd15_shapes(widths: Widths = SD15) -> Shapes:
    """All tensors of a Stable Diffusion 1.x checkpoint, schedule buffers among them."""
    return {
        **dict.fromkeys(SCHEDULE_BUFFERS, (TIMESTEPS,)),
        **_under("model.diffusion_model.", unet_shapes(widths)),
        **_under("first_stage_model.", vae_shapes(widths)),
        **_under("cond_stage_model.transformer.text_model.", _clip(widths, 0)),
    }


def sdxl_shapes(widths: Widths = SDXL) -> Shapes:
    """All tensors of a Stable Diffusion XL base checkpoint."""
    return {
        **_under("conditioner.embedders.0.transformer.text_model.", _clip(widths, 0)),
        **_under("conditioner.embedders.1.model.", _open_clip(widths, 1)),
        **_under("first_stage_model.", vae_shapes(widths)),
        **_under("model.diffusion_model.", unet_shapes(widths)),
    }


def ema_shapes(widths: Widths) -> Shapes:
    """The averaged copy that training keeps of the UNet: dots left out of the names."""
    return {
        "model_ema.decay": (),
        "model_ema.num_updates": (),
        **{
            "model_ema.diffusion_model" + name.replace(".", ""): shape
            for name, shape in unet_shapes(widths).items()
        },
    }


def unet_shapes(widths: Widths) -> Shapes:
    """The UNet, as openaimodel.py builds it."""
    base = widths.unet
    levels = widths.unet_levels
    depths = TRANSFORMER_DEPTHS[widths.architecture]
    time = base * 4
    shapes: Shapes = {}
    _linear(shapes, "time_embed.0", time, base)
    _linear(shapes, "time_embed.2", time, time)
    if widths.architecture == "sdxl":
        _linear(shapes, "label_emb.0.0", time, widths.text[-1] + TIME_IDS * TIME_ID_EMBEDDING)
        _linear(shapes, "label_emb.0.2", time, time)
    _conv(shapes, "input_blocks.0.0", base, 4)
    width, skips, block = base, [base], 1
    for level, out in enumerate(levels):
        for _ in range(RESNETS_PER_LEVEL):
            _unet_resnet(shapes, f"input_blocks.{block}.0", out, width, time)
            width = out
            if depths[level]:
                _transformer(shapes, f"input_blocks.{block}.1", out, depths[level], widths)
            skips.append(width)
            block += 1
        if level < len(levels) - 1:
            _conv(shapes, f"input_blocks.{block}.0.op", width, width)
            skips.append(width)
            block += 1
    _unet_resnet(shapes, "middle_block.0", width, width, time)
    middle = MIDDLE_DEPTHS[widths.architecture]
    _transformer(shapes, "middle_block.1", width, middle, widths)
    _unet_resnet(shapes, "middle_block.2", width, width, time)
    block = 0
    for level, out in reversed(list(enumerate(levels))):
        for position in range(RESNETS_PER_LEVEL + 1):
            _unet_resnet(shapes, f"output_blocks.{block}.0", out, width + skips.pop(), time)
            width = out
            if depths[level]:
                _transformer(shapes, f"output_blocks.{block}.1", out, depths[level], widths)
            if level and position == RESNETS_PER_LEVEL:
                place = 2 if depths[level] else 1
                _conv(shapes, f"output_blocks.{block}.{place}.conv", width, width)
            block += 1
    _norm(shapes, "out.0", width)
    _conv(shapes, "out.2", 4, width)
    return shapes


def vae_shapes(widths: Widths) -> Shapes:
    """The autoencoder, as model.py of LDM builds it."""
    levels = widths.vae_levels
    top = levels[-1]
    shapes: Shapes = {}
    _conv(shapes, "encoder.conv_in", widths.vae, 3)
    width = widths.vae
    for level, out in enumerate(levels):
        for position in range(RESNETS_PER_LEVEL):
            _vae_resnet(shapes, f"encoder.down.{level}.block.{position}", out, width)
            width = out
        if level < len(levels) - 1:
            _conv(shapes, f"encoder.down.{level}.downsample.conv", width, width)
    _vae_middle(shapes, "encoder", top)
    _norm(shapes, "encoder.norm_out", top)
    _conv(shapes, "encoder.conv_out", 8, top)
    _conv(shapes, "decoder.conv_in", top, 4)
    _vae_middle(shapes, "decoder", top)
    width = top
    for level, out in reversed(list(enumerate(levels))):
        for position in range(RESNETS_PER_LEVEL + 1):
            _vae_resnet(shapes, f"decoder.up.{level}.block.{position}", out, width)
            width = out
        if level:
            _conv(shapes, f"decoder.up.{level}.upsample.conv", width, width)
    _norm(shapes, "decoder.norm_out", width)
    _conv(shapes, "decoder.conv_out", 3, width)
    _conv(shapes, "quant_conv", 8, 8, kernel=1)
    _conv(shapes, "post_quant_conv", 4, 4, kernel=1)
    return shapes


def _clip(widths: Widths, encoder: int) -> Shapes:
    hidden = widths.text[encoder]
    shapes: Shapes = {
        "embeddings.position_ids": (1, POSITIONS),
        "embeddings.token_embedding.weight": (widths.vocabulary, hidden),
        "embeddings.position_embedding.weight": (POSITIONS, hidden),
    }
    for index in range(widths.text_layers[encoder]):
        layer = f"encoder.layers.{index}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            _linear(shapes, f"{layer}.self_attn.{part}", hidden, hidden)
        _norm(shapes, f"{layer}.layer_norm1", hidden)
        _linear(shapes, f"{layer}.mlp.fc1", hidden * 4, hidden)
        _linear(shapes, f"{layer}.mlp.fc2", hidden, hidden * 4)
        _norm(shapes, f"{layer}.layer_norm2", hidden)
    _norm(shapes, "final_layer_norm", hidden)
    return shapes


def _open_clip(widths: Widths, encoder: int) -> Shapes:
    hidden = widths.text[encoder]
    shapes: Shapes = {
        "positional_embedding": (POSITIONS, hidden),
        "text_projection": (hidden, hidden),
        "logit_scale": (),
        "token_embedding.weight": (widths.vocabulary, hidden),
    }
    for index in range(widths.text_layers[encoder]):
        layer = f"transformer.resblocks.{index}"
        _norm(shapes, f"{layer}.ln_1", hidden)
        shapes[f"{layer}.attn.in_proj_weight"] = (hidden * 3, hidden)
        shapes[f"{layer}.attn.in_proj_bias"] = (hidden * 3,)
        _linear(shapes, f"{layer}.attn.out_proj", hidden, hidden)
        _norm(shapes, f"{layer}.ln_2", hidden)
        _linear(shapes, f"{layer}.mlp.c_fc", hidden * 4, hidden)
        _linear(shapes, f"{layer}.mlp.c_proj", hidden, hidden * 4)
    _norm(shapes, "ln_final", hidden)
    return shapes


def _unet_resnet(shapes: Shapes, name: str, out: int, width: int, time: int) -> None:
    _norm(shapes, f"{name}.in_layers.0", width)
    _conv(shapes, f"{name}.in_layers.2", out, width)
    _linear(shapes, f"{name}.emb_layers.1", out, time)
    _norm(shapes, f"{name}.out_layers.0", out)
    _conv(shapes, f"{name}.out_layers.3", out, out)
    if out != width:
        _conv(shapes, f"{name}.skip_connection", out, width, kernel=1)


def _transformer(shapes: Shapes, name: str, width: int, depth: int, widths: Widths) -> None:
    """A spatial transformer; SDXL projects in and out by matrices, SD 1 by 1x1 convolutions."""
    _norm(shapes, f"{name}.norm", width)
    project = _linear if widths.architecture == "sdxl" else _pointwise
    project(shapes, f"{name}.proj_in", width, width)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, context in (("attn1", width), ("attn2", widths.context)):
            shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
            shapes[f"{block}.{attention}.to_k.weight"] = (width, context)
            shapes[f"{block}.{attention}.to_v.weight"] = (width, context)
            _linear(shapes, f"{block}.{attention}.to_out.0", width, width)
        _linear(shapes, f"{block}.ff.net.0.proj", width * 8, width)
        _linear(shapes, f"{block}.ff.net.2", width, width * 4)
        for norm in ("norm1", "norm2", "norm3"):
            _norm(shapes, f"{block}.{norm}", width)
    project(shapes, f"{name}.proj_out", width, width)


def _vae_middle(shapes: Shapes, side: str, width: int) -> None:
    _vae_resnet(shapes, f"{side}.mid.block_1", width, width)
    _norm(shapes, f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        _pointwise(shapes, f"{side}.mid.attn_1.{part}", width, width)
    _vae_resnet(shapes, f"{side}.mid.block_2", width, width)


def _vae_resnet(shapes: Shapes, name: str, out: int, width: int) -> None:
    _norm(shapes, f"{name}.norm1", width)
    _conv(shapes, f"{name}.conv1", out, width)
    _norm(shapes, f"{name}.norm2", out)
    _conv(shapes, f"{name}.conv2", out, out)
    if out != width:
        _conv(shapes, f"{name}.nin_shortcut", out, width, kernel=1)


def _norm(shapes: Shapes, name: str, width: int) -> None:
    shapes[f"{name}.weight"] = (width,)
    shapes[f"{name}.bias"] = (width,)


def _linear(shapes: Shapes, name: str, out: int, width: int) -> None:
    shapes[f"{name}.weight"] = (out, width)
    shapes[f"{name}.bias"] = (out,)


def _conv(shapes: Shapes, name: str, out: int, width: int, kernel: int = 3) -> None:
    shapes[f"{name}.weight"] = (out, width, kernel, kernel)
    shapes[f"{name}.bias"] = (out,)


def _pointwise(shapes: Shapes, name: str, out: int, width: int) -> None:
    _conv(shapes, name, out, width, kernel=1)


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}
