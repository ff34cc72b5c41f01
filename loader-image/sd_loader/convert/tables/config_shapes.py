"""The tensors that diffusers makes from a config: their names and shapes.

A model that lacks one of them does not open, or opens with random numbers. The functions cover the
block types and embeddings that `config_limits` allows. They yield tensors one by one, so that the
check of a config with very many layers can stop at the first missing tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]
Config = Mapping[str, Any]


class ShortListError(Exception):
    """A list in the config has no item for one of the layers."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is too short")
        self.key = key


def unet(config: Config) -> Tensors:
    """The tensors of a UNet2DConditionModel. config: complete, with the defaults of its class."""
    levels = len(config["block_out_channels"])
    widths = config["block_out_channels"]
    time = config["time_embedding_dim"] or 4 * widths[0]
    yield from conv_layer("conv_in", widths[0], config["in_channels"], config["conv_in_kernel"])
    yield from embedding_layers("time_embedding", widths[0], time)
    if config["time_cond_proj_dim"] is not None:
        yield "time_embedding.cond_proj.weight", (widths[0], config["time_cond_proj_dim"])
    yield from _conditions(config, time)
    in_blocks = time * (2 if config["class_embeddings_concat"] else 1)
    yield from _down_blocks(config, in_blocks)
    key = "reverse_transformer_layers_per_block"
    depths = config[key]
    if depths is None:
        key = "transformer_layers_per_block"
        depths = _per_level(config, key)[::-1]
    blocks = _Blocks(config, in_blocks)
    layers = _per_level(config, "layers_per_block")[::-1]
    contexts = _per_level(config, "cross_attention_dim")[::-1]
    crossing = _per_level(config, "only_cross_attention")[::-1]
    upwards = widths[::-1]
    before = upwards[0]
    for level, (kind, width) in enumerate(zip(config["up_block_types"], upwards, strict=True)):
        skipped = upwards[min(level + 1, levels - 1)]
        for layer in range(layers[level] + 1):
            name = f"up_blocks.{level}"
            into = before if layer == 0 else width
            beside = skipped if layer == layers[level] else width
            yield from blocks.resnet(f"{name}.resnets.{layer}", into + beside, width)
            if kind == "CrossAttnUpBlock2D":
                yield from blocks.transformer(
                    f"{name}.attentions.{layer}",
                    width,
                    _layer(depths[level], layer, key),
                    contexts[level],
                    only_crossing=crossing[level],
                )
        if level < levels - 1:
            yield from conv_layer(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3)
        before = width
    yield from norm_layer("conv_norm_out", widths[0])
    yield from conv_layer("conv_out", config["out_channels"], widths[0], config["conv_out_kernel"])


def controlnet(config: Config) -> Tensors:
    """The tensors of a ControlNetModel. config: complete, with the defaults of its class."""
    widths = config["block_out_channels"]
    time = 4 * widths[0]
    yield from conv_layer("conv_in", widths[0], config["in_channels"], 3)
    yield from embedding_layers("time_embedding", widths[0], time)
    yield from _conditions(config, time)
    hints = config["conditioning_embedding_out_channels"]
    start = "controlnet_cond_embedding"
    yield from conv_layer(f"{start}.conv_in", hints[0], config["conditioning_channels"], 3)
    for number, (into, out) in enumerate(pairwise(hints)):
        yield from conv_layer(f"{start}.blocks.{2 * number}", into, into, 3)
        yield from conv_layer(f"{start}.blocks.{2 * number + 1}", out, into, 3)
    yield from conv_layer(f"{start}.conv_out", widths[0], hints[-1], 3)
    yield from _down_blocks(config, time)
    outputs = [widths[0]]
    for level, width in enumerate(widths):
        outputs += [width] * (config["layers_per_block"] + (level < len(widths) - 1))
    for number, width in enumerate(outputs):
        yield from conv_layer(f"controlnet_down_blocks.{number}", width, width, 1)
    yield from conv_layer("controlnet_mid_block", widths[-1], widths[-1], 1)


def vae(config: Config) -> Tensors:
    """The tensors of an AutoencoderKL. config: complete, with the defaults of its class."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    latents, blocks = config["latent_channels"], _Blocks(config, None)
    yield from conv_layer("encoder.conv_in", widths[0], config["in_channels"], 3)
    before = widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            name = f"encoder.down_blocks.{level}.resnets.{layer}"
            yield from blocks.resnet(name, width if layer else before, width)
        if level < len(widths) - 1:
            yield from conv_layer(
                f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width, 3
            )
        before = width
    for side in ("encoder", "decoder"):
        yield from _vae_middle(f"{side}.mid_block", config, blocks)
    yield from norm_layer("encoder.conv_norm_out", widths[-1])
    yield from conv_layer("encoder.conv_out", 2 * latents, widths[-1], 3)
    yield from conv_layer("decoder.conv_in", widths[-1], latents, 3)
    before = widths[-1]
    for level, width in enumerate(widths[::-1]):
        for layer in range(layers + 1):
            name = f"decoder.up_blocks.{level}.resnets.{layer}"
            yield from blocks.resnet(name, width if layer else before, width)
        if level < len(widths) - 1:
            yield from conv_layer(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width, 3)
        before = width
    yield from norm_layer("decoder.conv_norm_out", widths[0])
    yield from conv_layer("decoder.conv_out", config["out_channels"], widths[0], 3)
    if config["use_quant_conv"]:
        yield from conv_layer("quant_conv", 2 * latents, 2 * latents, 1)
    if config["use_post_quant_conv"]:
        yield from conv_layer("post_quant_conv", latents, latents, 1)


CLASSES: Mapping[str, Callable[[Config], Tensors]] = {
    "AutoencoderKL": vae,
    "ControlNetModel": controlnet,
    "UNet2DConditionModel": unet,
}
"""The functions of this module, by the names of diffusers' classes."""


def _conditions(config: Config, time: int) -> Tensors:
    """The embeddings of a UNet or ControlNet, without that of the time step.

    time: the width of the time embedding.
    """
    widths = config["block_out_channels"]
    if config["encoder_hid_dim"] is not None:
        context = config["cross_attention_dim"]
        yield from linear_layer("encoder_hid_proj", context, config["encoder_hid_dim"])
    added = config["projection_class_embeddings_input_dim"]
    kind = config["class_embed_type"]
    if kind is None and config["num_class_embeds"] is not None:
        yield "class_embedding.weight", (config["num_class_embeds"], time)
    elif kind == "timestep":
        yield from embedding_layers("class_embedding", widths[0], time)
    elif kind == "projection":
        yield from embedding_layers("class_embedding", added, time)
    elif kind == "simple_projection":
        yield from linear_layer("class_embedding", time, added)
    if config["addition_embed_type"] == "text_time":
        yield from embedding_layers("add_embedding", added, time)


def _down_blocks(config: Config, time: int) -> Tensors:
    """The down blocks and the middle block of a UNet or ControlNet.

    time: the width of the time embedding, for all blocks.
    """
    widths, blocks = config["block_out_channels"], _Blocks(config, time)
    layers = _per_level(config, "layers_per_block")
    key = "transformer_layers_per_block"
    depths = _per_level(config, key)
    contexts = _per_level(config, "cross_attention_dim")
    crossing = _per_level(config, "only_cross_attention")
    before = widths[0]
    for level, (kind, width) in enumerate(zip(config["down_block_types"], widths, strict=True)):
        name = f"down_blocks.{level}"
        for layer in range(layers[level]):
            yield from blocks.resnet(f"{name}.resnets.{layer}", width if layer else before, width)
            if kind == "CrossAttnDownBlock2D":
                yield from blocks.transformer(
                    f"{name}.attentions.{layer}",
                    width,
                    _layer(depths[level], layer, key),
                    contexts[level],
                    only_crossing=crossing[level],
                )
        if level < len(widths) - 1:
            yield from conv_layer(f"{name}.downsamplers.0.conv", width, width, 3)
        before = width
    middle = config["mid_block_type"]
    if middle is not None:
        yield from blocks.resnet("mid_block.resnets.0", before, before)
    if middle == "UNetMidBlock2DCrossAttn":
        depth = _layer(depths[-1], 0, key)
        yield from blocks.transformer("mid_block.attentions.0", before, depth, contexts[-1])
        yield from blocks.resnet("mid_block.resnets.1", before, before)


class _Blocks:
    """Yields the tensors of the blocks of a model.

    time: the width of the time embedding. None for a VAE, which has none.
    """

    def __init__(self, config: Config, time: int | None) -> None:
        self._time = time
        self._scales = config.get("resnet_time_scale_shift") == "scale_shift"
        self._is_linear = config.get("use_linear_projection", False)

    def resnet(self, name: str, into: int, out: int) -> Tensors:
        yield from norm_layer(f"{name}.norm1", into)
        yield from conv_layer(f"{name}.conv1", out, into, 3)
        if self._time is not None:
            yield from linear_layer(
                f"{name}.time_emb_proj", out * (2 if self._scales else 1), self._time
            )
        yield from norm_layer(f"{name}.norm2", out)
        yield from conv_layer(f"{name}.conv2", out, out, 3)
        if into != out:
            yield from conv_layer(f"{name}.conv_shortcut", out, into, 1)

    def transformer(
        self, name: str, width: int, depth: int, context: int, *, only_crossing: bool = False
    ) -> Tensors:
        yield from norm_layer(f"{name}.norm", width)
        for projection in ("proj_in", "proj_out"):
            if self._is_linear:
                yield from linear_layer(f"{name}.{projection}", width, width)
            else:
                yield from conv_layer(f"{name}.{projection}", width, width, 1)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            for norm in ("norm1", "norm2", "norm3"):
                yield from norm_layer(f"{block}.{norm}", width)
            for attention, source in (
                ("attn1", context if only_crossing else width),
                ("attn2", context),
            ):
                yield f"{block}.{attention}.to_q.weight", (width, width)
                yield f"{block}.{attention}.to_k.weight", (width, source)
                yield f"{block}.{attention}.to_v.weight", (width, source)
                yield from linear_layer(f"{block}.{attention}.to_out.0", width, width)
            yield from linear_layer(f"{block}.ff.net.0.proj", 8 * width, width)
            yield from linear_layer(f"{block}.ff.net.2", width, 4 * width)


def _vae_middle(name: str, config: Config, blocks: _Blocks) -> Tensors:
    width = config["block_out_channels"][-1]
    yield from blocks.resnet(f"{name}.resnets.0", width, width)
    if config["mid_block_add_attention"]:
        yield from norm_layer(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear_layer(f"{name}.attentions.0.{part}", width, width)
    yield from blocks.resnet(f"{name}.resnets.1", width, width)


def _per_level(config: Config, key: str) -> list[Any]:
    value = config[key]
    return value if isinstance(value, list) else [value] * len(config["block_out_channels"])


def _layer(depth: int | list[int], layer: int, key: str) -> int:
    """Number of transformer blocks of a layer. depth: of its level, in the config's list `key`."""
    if not isinstance(depth, list):
        return depth
    if layer >= len(depth):
        raise ShortListError(key)
    return depth[layer]


def norm_layer(name: str, width: int) -> Tensors:
    """The tensors of a norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def linear_layer(name: str, out: int, into: int) -> Tensors:
    """The tensors of a linear layer."""
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def conv_layer(name: str, out: int, into: int, kernel: int) -> Tensors:
    """The tensors of a convolution."""
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield f"{name}.bias", (out,)


def embedding_layers(name: str, into: int, out: int) -> Tensors:
    """The tensors of an embedding: two linear layers."""
    yield from linear_layer(f"{name}.linear_1", out, into)
    yield from linear_layer(f"{name}.linear_2", out, out)
