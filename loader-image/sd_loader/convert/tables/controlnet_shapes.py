"""The tensors that diffusers makes from the config of a ControlNet of FLUX.1 or SD 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sd_loader.convert.tables.config_shapes import (
    Config,
    Tensors,
    conv_layer,
    embedding_layers,
    linear_layer,
)

_FREQUENCIES = 256
"""The width of a time step's embedding, in all models."""

_HINT_WIDTH = 16
_HINT_LAYERS = 6
_COLOURS = 3


def flux(config: Config) -> Tensors:
    """The tensors of a FluxControlNetModel. config: complete, with the defaults of its class."""
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    guided = ("timestep_embedder", "guidance_embedder")
    for embedder in guided if config["guidance_embeds"] else guided[:1]:
        yield from embedding_layers(f"time_text_embed.{embedder}", _FREQUENCIES, width)
    yield from embedding_layers(
        "time_text_embed.text_embedder", config["pooled_projection_dim"], width
    )
    yield from linear_layer("context_embedder", width, config["joint_attention_dim"])
    yield from linear_layer("x_embedder", width, config["in_channels"])
    for number in range(config["num_layers"]):
        block = f"transformer_blocks.{number}"
        yield from _joint_block(block, width, head)
        yield from linear_layer(f"controlnet_blocks.{number}", width, width)
    for number in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{number}"
        yield from linear_layer(f"{block}.norm.linear", 3 * width, width)
        yield from linear_layer(f"{block}.proj_mlp", 4 * width, width)
        yield from linear_layer(f"{block}.proj_out", width, 5 * width)
        yield from _attention(f"{block}.attn", width, ("to_q", "to_k", "to_v"))
        yield from _norms(f"{block}.attn", head, ("norm_q", "norm_k"))
        yield from linear_layer(f"controlnet_single_blocks.{number}", width, width)
    if config["num_mode"] is not None:
        yield "controlnet_mode_embedder.weight", (config["num_mode"], width)
    if config["conditioning_embedding_channels"] is not None:
        yield from _hint(config["conditioning_embedding_channels"])
    yield from linear_layer("controlnet_x_embedder", width, config["in_channels"])


def sd3(config: Config) -> Tensors:
    """The tensors of an SD3ControlNetModel. config: complete, with the defaults of its class."""
    head, patch = config["attention_head_dim"], config["patch_size"]
    width = config["num_attention_heads"] * head
    if config["use_pos_embed"]:
        yield from conv_layer("pos_embed.proj", width, config["in_channels"], patch)
        if config["pos_embed_type"] is not None:
            yield "pos_embed.pos_embed", (1, config["pos_embed_max_size"] ** 2, width)
    yield from embedding_layers("time_text_embed.timestep_embedder", _FREQUENCIES, width)
    yield from embedding_layers(
        "time_text_embed.text_embedder", config["pooled_projection_dim"], width
    )
    reads_prompt = config["joint_attention_dim"] is not None
    if reads_prompt:
        context = config["caption_projection_dim"]
        yield from linear_layer("context_embedder", context, config["joint_attention_dim"])
    normed = head if config["qk_norm"] is not None else None
    for number in range(config["num_layers"]):
        block = f"transformer_blocks.{number}"
        if reads_prompt:
            is_dual = number in config["dual_attention_layers"]
            yield from _joint_block(block, width, normed, is_dual=is_dual)
        else:
            yield from linear_layer(f"{block}.norm1.linear", 6 * width, width)
            yield from _attention(f"{block}.attn", width, ("to_q", "to_k", "to_v", "to_out.0"))
            yield from _feed_forward(f"{block}.ff", width)
        yield from linear_layer(f"controlnet_blocks.{number}", width, width)
    channels = config["in_channels"] + config["extra_conditioning_channels"]
    yield from conv_layer("pos_embed_input.proj", width, channels, patch)


CLASSES: Mapping[str, Callable[[Config], Tensors]] = {
    "FluxControlNetModel": flux,
    "SD3ControlNetModel": sd3,
}
"""The functions of this module, by the names of diffusers' classes."""


def _joint_block(block: str, width: int, head: int | None, *, is_dual: bool = False) -> Tensors:
    """A block for image and prompt. head: the width of a head's norms. None without norms."""
    yield from linear_layer(f"{block}.norm1.linear", (9 if is_dual else 6) * width, width)
    yield from linear_layer(f"{block}.norm1_context.linear", 6 * width, width)
    image = ("to_q", "to_k", "to_v", "to_out.0")
    prompt = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    yield from _attention(f"{block}.attn", width, (*image, *prompt))
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    if head is not None:
        yield from _norms(f"{block}.attn", head, norms)
    if is_dual:
        yield from _attention(f"{block}.attn2", width, image)
        if head is not None:
            yield from _norms(f"{block}.attn2", head, norms[:2])
    yield from _feed_forward(f"{block}.ff", width)
    yield from _feed_forward(f"{block}.ff_context", width)


def _attention(name: str, width: int, layers: tuple[str, ...]) -> Tensors:
    for layer in layers:
        yield from linear_layer(f"{name}.{layer}", width, width)


def _norms(name: str, head: int, norms: tuple[str, ...]) -> Tensors:
    for norm in norms:
        yield f"{name}.{norm}.weight", (head,)


def _feed_forward(name: str, width: int) -> Tensors:
    yield from linear_layer(f"{name}.net.0.proj", 4 * width, width)
    yield from linear_layer(f"{name}.net.2", width, 4 * width)


def _hint(channels: int) -> Tensors:
    """The convolutions over the control image. channels: of their output."""
    yield from conv_layer("input_hint_block.conv_in", _HINT_WIDTH, _COLOURS, 3)
    for number in range(_HINT_LAYERS):
        yield from conv_layer(f"input_hint_block.blocks.{number}", _HINT_WIDTH, _HINT_WIDTH, 3)
    yield from conv_layer("input_hint_block.conv_out", channels, _HINT_WIDTH, 3)
