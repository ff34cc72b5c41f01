"""Describes a transformer for `make_transformer_tables`, which makes its key table.

Most converters of diffusers rename the tensors of the checkpoint that they are given. For these,
`original` derives the checkpoint's names from diffusers' names. The others ask for each tensor by
name. For these, `seeds` has the names from which they count the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A transformer and its converter."""

    model: type
    """diffusers' class."""

    converter: Callable[..., Mapping[str, Any]]

    configs: tuple[Config, ...]
    """Configs of its published variants, with few layers and with sizes that all differ.

    A converter may contain a width as a number; such a width stays the published one.
    """

    sizes: Mapping[str, int]
    """Names of the sizes in the configs."""

    original: Callable[[str], str] | None = None
    """Returns the checkpoint's name for diffusers' name. None if the converter asks for names."""

    seeds: Callable[[Config], list[str]] = lambda _: []
    """Names that show a converter which layers there are."""

    unused: tuple[str, ...] = ()
    """Names of tensors in the checkpoint that the model does not use."""

    constants: frozenset[int] = field(default=frozenset({256}))
    """Sizes above 16 that are the same in every model: 256 frequencies of a time step."""

    exceptions: Mapping[str, str] = field(default_factory=dict)
    """Shapes with a constant that equals one of the sizes, by diffusers' names of the tensors."""

    ops: Mapping[str, str] = field(default_factory=dict)
    """Names, such as `queries`, for operations that take a range of rows whose share of all rows
    depends on the model."""


def layers(**counts: int) -> list[str]:
    """Return the beginnings of the names of all layers, by the number of layers of each stack."""
    return [f"{stack}.{number}." for stack, count in counts.items() for number in range(count)]


def sd3_seeds(config: Config) -> list[str]:
    """Return the names that show the layers of Stable Diffusion 3."""
    return [
        *layers(joint_blocks=config["num_layers"]),
        *(f"joint_blocks.{number}.attn2." for number in config.get("dual_attention_layers", ())),
        *(["ln_q"] if config.get("qk_norm") else []),
    ]


def flux_seeds(config: Config) -> list[str]:
    """Return the names that show the layers of FLUX.1."""
    blocks = layers(double_blocks=config["num_layers"], single_blocks=config["num_single_layers"])
    return [*blocks, *(["guidance"] if config.get("guidance_embeds") else [])]


def chroma_seeds(config: Config) -> list[str]:
    """Return the names that show the layers of Chroma."""
    approximator = "distilled_guidance_layer.layers"
    return flux_seeds(config) + layers(**{approximator: config["approximator_layers"]})


def sana_seeds(config: Config) -> list[str]:
    """Return the names that show the layers of Sana."""
    return [
        *layers(blocks=config["num_layers"]),
        *(["blocks.0.attn.q_norm.weight"] if config.get("qk_norm") else []),
        *(["cfg_embedder.mlp.0.weight"] if config.get("guidance_embeds") else []),
    ]


def auraflow_seeds(config: Config) -> list[str]:
    """Return the names that show the layers of AuraFlow."""
    return layers(
        double_layers=config["num_mmdit_layers"], single_layers=config["num_single_dit_layers"]
    )
