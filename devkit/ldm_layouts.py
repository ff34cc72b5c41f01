"""Names and shapes of the tensors in checkpoints of the original (LDM, SGM) layout.

The rules come from the architectures, not from any converter, so a test that converts such a
checkpoint compares two independent implementations. Widths are parameters: `SD15`, `SD2`, `SDXL`
and `REFINER` have the published widths. `TINY_SD15`, `TINY_SD2`, `TINY_SDXL` and `TINY_REFINER`
have the same structures, with every key of the real models, and the smallest widths that the
architectures allow: norms have 32 groups, SD 1 has 8 heads, and the others and the text encoders
have heads with 64 channels. The other entries of `STRUCTURES` are distilled UNets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from devkit.layers import Shapes, conv, linear, norm, pointwise, under

VOCABULARY = 49408
POSITIONS = 77
TIMESTEPS = 1000
VAE_MULTIPLIERS = (1, 2, 4, 4)
RESNETS_PER_LEVEL = 2
LATENTS = 4
"""The latent channels of the VAEs of Stable Diffusion 1, 2 and XL."""
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
class Structure:
    """The structure of a UNet, in the terms of openaimodel.py."""

    multipliers: tuple[int, ...]
    """The width of each level, as a multiple of the base width."""
    down: tuple[int, ...]
    """The depth of the transformer after each resnet of input_blocks; 0 if it has none."""
    up: tuple[int, ...]
    """The depth of the transformer after each resnet of output_blocks; 0 if it has none."""
    middle: int | None
    """The depth of the middle block's transformer.

    With 0, the middle block is one resnet. With None, there is no middle block.
    """
    linear: bool = False
    """Whether transformers project with matrices instead of convolutions."""
    time_ids: int = 0
    """How many numbers SDXL embeds in addition to the pooled text."""

    @property
    def resnets(self) -> int:
        """The number of resnets in each level of input_blocks; output_blocks have one more."""
        return len(self.down) // len(self.multipliers)


_SD15 = Structure((1, 2, 4, 4), (1,) * 6 + (0,) * 2, (0,) * 3 + (1,) * 9, middle=1)
_SDXL = Structure(
    (1, 2, 4),
    (0, 0, 2, 2, 10, 10),
    (10,) * 3 + (2,) * 3 + (0,) * 3,
    middle=10,
    linear=True,
    time_ids=6,
)
_BK_BASE = replace(_SD15, down=(1, 1, 1, 0), up=(0, 0) + (1,) * 6)
_THREE_LEVELS = Structure((1, 2, 4), (1,) * 3, (1,) * 6, middle=1)
_KOALA = replace(_SDXL, down=(0, 2, 10), up=(10, 10, 2, 2, 0, 0))
STRUCTURES = {
    "sd15": _SD15,
    "sd-2": replace(_SD15, linear=True),
    "sdxl": _SDXL,
    "refiner": Structure(
        (1, 2, 4, 4),
        (0, 0, 4, 4, 4, 4, 0, 0),
        (0,) * 3 + (4,) * 6 + (0,) * 3,
        middle=4,
        linear=True,
        time_ids=5,
    ),
    # The largest form of some distilled UNets; the published ones lack some blocks of it.
    "three-levels": _THREE_LEVELS,
    "three-levels-v2": replace(_THREE_LEVELS, linear=True),
    "koala": _KOALA,
    # Distilled SD 1 from Nota and Segmind (BK-SDM, small-sd, tiny-sd), and their SD 2 versions.
    "bk-base": _BK_BASE,
    "bk-small": replace(_BK_BASE, middle=None),
    "bk-tiny": replace(_THREE_LEVELS, middle=None),
    "bk-v2-base": replace(_BK_BASE, linear=True),
    "bk-v2-tiny": replace(_THREE_LEVELS, linear=True, middle=None),
    # Distilled SDXL: SSD-1B and Vega from Segmind, KOALA from ETRI.
    "ssd-1b": replace(_SDXL, down=(0, 0, 2, 2, 4, 4), up=(4, 4, 10, 2, 1, 1, 0, 0, 0), middle=0),
    "vega": replace(_SDXL, down=(0, 0, 1, 1, 2, 2), up=(2, 2, 2, 1, 1, 1, 0, 0, 0), middle=0),
    "koala-1b": replace(_KOALA, down=(0, 2, 6), up=(6, 6, 2, 2, 0, 0), middle=6),
    "koala-700m": replace(_KOALA, down=(0, 2, 5), up=(5, 5, 2, 2, 0, 0), middle=None),
}


@dataclass(frozen=True)
class Widths:
    """The dimensions that may differ between two models of one structure."""

    architecture: str
    """The name of the UNet's structure, a key of STRUCTURES."""
    unet: int
    """The base width of the UNet."""
    vae: int
    """The base width of the VAE."""
    text: tuple[int, ...]
    """The hidden size of each text encoder."""
    text_layers: tuple[int, ...]
    """The number of layers of each text encoder."""
    vocabulary: int = VOCABULARY
    inputs: int = 4
    """The UNet's input channels: 4, 9 for inpainting or 8 for instruct-pix2pix."""

    @property
    def structure(self) -> Structure:
        """The structure of the UNet."""
        return STRUCTURES[self.architecture]

    @property
    def unet_levels(self) -> tuple[int, ...]:
        """The width of each level of the UNet."""
        return tuple(self.unet * factor for factor in self.structure.multipliers)

    @property
    def vae_levels(self) -> tuple[int, ...]:
        """The width of each level of the VAE."""
        return tuple(self.vae * factor for factor in VAE_MULTIPLIERS)

    @property
    def context(self) -> int:
        """The width of the cross attention's input: all text encoders together."""
        return sum(self.text)


SD15 = Widths("sd15", unet=320, vae=128, text=(768,), text_layers=(12,))
SD2 = Widths("sd-2", unet=320, vae=128, text=(1024,), text_layers=(24,))
SDXL = Widths("sdxl", unet=320, vae=128, text=(768, 1280), text_layers=(12, 32))
REFINER = Widths("refiner", unet=384, vae=128, text=(1280,), text_layers=(32,))
TINY_SD15 = Widths("sd15", unet=32, vae=32, text=(64,), text_layers=(12,))
TINY_SD2 = Widths("sd-2", unet=32, vae=32, text=(64,), text_layers=(24,))
TINY_SDXL = Widths("sdxl", unet=32, vae=32, text=(64, 128), text_layers=(12, 32))
TINY_REFINER = Widths("refiner", unet=32, vae=32, text=(64,), text_layers=(32,))


def sd15_shapes(widths: Widths = SD15) -> Shapes:
    """Return all tensors of a Stable Diffusion 1.x checkpoint, including schedule buffers."""
    return {
        **_first_generation(widths),
        **under("cond_stage_model.transformer.text_model.", clip_shapes(widths, 0)),
    }


def sd2_shapes(widths: Widths = SD2) -> Shapes:
    """Return all tensors of a Stable Diffusion 2.x checkpoint, including schedule buffers."""
    return {
        **_first_generation(widths),
        **under("cond_stage_model.model.", _open_clip(widths, 0)),
    }


def sdxl_shapes(widths: Widths = SDXL) -> Shapes:
    """Return all tensors of a Stable Diffusion XL base checkpoint."""
    return {
        **under("conditioner.embedders.0.transformer.text_model.", clip_shapes(widths, 0)),
        **under("conditioner.embedders.1.model.", _open_clip(widths, 1)),
        **under("first_stage_model.", vae_shapes(widths)),
        **under("model.diffusion_model.", unet_shapes(widths)),
    }


def refiner_shapes(widths: Widths = REFINER) -> Shapes:
    """Return all tensors of a Stable Diffusion XL refiner checkpoint."""
    return {
        **under("conditioner.embedders.0.model.", _open_clip(widths, 0)),
        **under("first_stage_model.", vae_shapes(widths)),
        **under("model.diffusion_model.", unet_shapes(widths)),
    }


def _first_generation(widths: Widths) -> Shapes:
    return {
        **dict.fromkeys(SCHEDULE_BUFFERS, (TIMESTEPS,)),
        **under("model.diffusion_model.", unet_shapes(widths)),
        **under("first_stage_model.", vae_shapes(widths)),
    }


def ema_shapes(widths: Widths) -> Shapes:
    """Return the EMA copy of the UNet that training keeps; its names have no dots."""
    return {
        "model_ema.decay": (),
        "model_ema.num_updates": (),
        **{
            "model_ema.diffusion_model" + name.replace(".", ""): shape
            for name, shape in unet_shapes(widths).items()
        },
    }


def unet_shapes(widths: Widths) -> Shapes:
    """Return the tensors of the UNet, as openaimodel.py builds it."""
    base = widths.unet
    levels = widths.unet_levels
    structure = widths.structure
    time = base * 4
    shapes: Shapes = {}
    linear(shapes, "time_embed.0", time, base)
    linear(shapes, "time_embed.2", time, time)
    if structure.time_ids:
        ids = structure.time_ids * TIME_ID_EMBEDDING
        linear(shapes, "label_emb.0.0", time, widths.text[-1] + ids)
        linear(shapes, "label_emb.0.2", time, time)
    conv(shapes, "input_blocks.0.0", base, widths.inputs)
    width, skips, block = base, [base], 1
    depths = iter(structure.down)
    for level, out in enumerate(levels):
        for _ in range(structure.resnets):
            _unet_resnet(shapes, f"input_blocks.{block}.0", out, width, time)
            width = out
            if depth := next(depths):
                _transformer(shapes, f"input_blocks.{block}.1", out, depth, widths)
            skips.append(width)
            block += 1
        if level < len(levels) - 1:
            conv(shapes, f"input_blocks.{block}.0.op", width, width)
            skips.append(width)
            block += 1
    if structure.middle is not None:
        _unet_resnet(shapes, "middle_block.0", width, width, time)
    if structure.middle:
        _transformer(shapes, "middle_block.1", width, structure.middle, widths)
        _unet_resnet(shapes, "middle_block.2", width, width, time)
    block = 0
    depths = iter(structure.up)
    for level, out in reversed(list(enumerate(levels))):
        for position in range(structure.resnets + 1):
            _unet_resnet(shapes, f"output_blocks.{block}.0", out, width + skips.pop(), time)
            width = out
            depth = next(depths)
            if depth:
                _transformer(shapes, f"output_blocks.{block}.1", out, depth, widths)
            if level and position == structure.resnets:
                place = 2 if depth else 1
                conv(shapes, f"output_blocks.{block}.{place}.conv", width, width)
            block += 1
    norm(shapes, "out.0", width)
    conv(shapes, "out.2", 4, width)
    return shapes


def vae_shapes(widths: Widths, latents: int = LATENTS) -> Shapes:
    """Return the tensors of the VAE, as LDM's model.py builds it.

    latents: its latent channels. A VAE with more than SD's has no convolutions beside the latents.
    """
    levels = widths.vae_levels
    top = levels[-1]
    shapes: Shapes = {}
    conv(shapes, "encoder.conv_in", widths.vae, 3)
    width = widths.vae
    for level, out in enumerate(levels):
        for position in range(RESNETS_PER_LEVEL):
            _vae_resnet(shapes, f"encoder.down.{level}.block.{position}", out, width)
            width = out
        if level < len(levels) - 1:
            conv(shapes, f"encoder.down.{level}.downsample.conv", width, width)
    _vae_middle(shapes, "encoder", top)
    norm(shapes, "encoder.norm_out", top)
    conv(shapes, "encoder.conv_out", 2 * latents, top)
    conv(shapes, "decoder.conv_in", top, latents)
    _vae_middle(shapes, "decoder", top)
    width = top
    for level, out in reversed(list(enumerate(levels))):
        for position in range(RESNETS_PER_LEVEL + 1):
            _vae_resnet(shapes, f"decoder.up.{level}.block.{position}", out, width)
            width = out
        if level:
            conv(shapes, f"decoder.up.{level}.upsample.conv", width, width)
    norm(shapes, "decoder.norm_out", width)
    conv(shapes, "decoder.conv_out", 3, width)
    if latents == LATENTS:
        pointwise(shapes, "quant_conv", 2 * latents, 2 * latents)
        pointwise(shapes, "post_quant_conv", latents, latents)
    return shapes


def clip_shapes(widths: Widths, encoder: int) -> Shapes:
    """Return the tensors of a CLIP text encoder, as transformers builds it.

    encoder: which of the text encoders of `widths`, from 0.
    """
    hidden = widths.text[encoder]
    shapes: Shapes = {
        "embeddings.position_ids": (1, POSITIONS),
        "embeddings.token_embedding.weight": (widths.vocabulary, hidden),
        "embeddings.position_embedding.weight": (POSITIONS, hidden),
    }
    for index in range(widths.text_layers[encoder]):
        layer = f"encoder.layers.{index}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(shapes, f"{layer}.self_attn.{part}", hidden, hidden)
        norm(shapes, f"{layer}.layer_norm1", hidden)
        linear(shapes, f"{layer}.mlp.fc1", hidden * 4, hidden)
        linear(shapes, f"{layer}.mlp.fc2", hidden, hidden * 4)
        norm(shapes, f"{layer}.layer_norm2", hidden)
    norm(shapes, "final_layer_norm", hidden)
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
        norm(shapes, f"{layer}.ln_1", hidden)
        shapes[f"{layer}.attn.in_proj_weight"] = (hidden * 3, hidden)
        shapes[f"{layer}.attn.in_proj_bias"] = (hidden * 3,)
        linear(shapes, f"{layer}.attn.out_proj", hidden, hidden)
        norm(shapes, f"{layer}.ln_2", hidden)
        linear(shapes, f"{layer}.mlp.c_fc", hidden * 4, hidden)
        linear(shapes, f"{layer}.mlp.c_proj", hidden, hidden * 4)
    norm(shapes, "ln_final", hidden)
    return shapes


def _unet_resnet(shapes: Shapes, name: str, out: int, width: int, time: int) -> None:
    norm(shapes, f"{name}.in_layers.0", width)
    conv(shapes, f"{name}.in_layers.2", out, width)
    linear(shapes, f"{name}.emb_layers.1", out, time)
    norm(shapes, f"{name}.out_layers.0", out)
    conv(shapes, f"{name}.out_layers.3", out, out)
    if out != width:
        conv(shapes, f"{name}.skip_connection", out, width, kernel=1)


def _transformer(shapes: Shapes, name: str, width: int, depth: int, widths: Widths) -> None:
    """A spatial transformer; SD 1 projects in and out by 1x1 convolutions, others by matrices."""
    norm(shapes, f"{name}.norm", width)
    project = linear if widths.structure.linear else pointwise
    project(shapes, f"{name}.proj_in", width, width)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, context in (("attn1", width), ("attn2", widths.context)):
            shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
            shapes[f"{block}.{attention}.to_k.weight"] = (width, context)
            shapes[f"{block}.{attention}.to_v.weight"] = (width, context)
            linear(shapes, f"{block}.{attention}.to_out.0", width, width)
        linear(shapes, f"{block}.ff.net.0.proj", width * 8, width)
        linear(shapes, f"{block}.ff.net.2", width, width * 4)
        for number in (1, 2, 3):
            norm(shapes, f"{block}.norm{number}", width)
    project(shapes, f"{name}.proj_out", width, width)


def _vae_middle(shapes: Shapes, side: str, width: int) -> None:
    _vae_resnet(shapes, f"{side}.mid.block_1", width, width)
    norm(shapes, f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        pointwise(shapes, f"{side}.mid.attn_1.{part}", width, width)
    _vae_resnet(shapes, f"{side}.mid.block_2", width, width)


def _vae_resnet(shapes: Shapes, name: str, out: int, width: int) -> None:
    norm(shapes, f"{name}.norm1", width)
    conv(shapes, f"{name}.conv1", out, width)
    norm(shapes, f"{name}.norm2", out)
    conv(shapes, f"{name}.conv2", out, out)
    if out != width:
        conv(shapes, f"{name}.nin_shortcut", out, width, kernel=1)
