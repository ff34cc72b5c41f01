"""The tensors that a config asks for are those of the model that diffusers builds from it."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from sd_api.reasons import Reason
from sd_loader.convert.plan.config_rules import check_opens
from sd_loader.convert.tables.config_shapes import CLASSES
from sd_loader.diffusers_repo.config_keys import defaults
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

KINDS = {kind.__name__: kind for kind in (AutoencoderKL, ControlNetModel, UNet2DConditionModel)}
UNET, VAE, CONTROLNET = "UNet2DConditionModel", "AutoencoderKL", "ControlNetModel"
Config = dict[str, Any]
SMALL: dict[str, Config] = {
    UNET: {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    },
    VAE: {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
    CONTROLNET: {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "conditioning_embedding_out_channels": [4, 6],
    },
}


def built(class_name: str, config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model that diffusers builds."""
    return dict(_built(class_name, json.dumps(config, sort_keys=True)))


@cache
def _built(class_name: str, config: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = KINDS[class_name].from_config(json.loads(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def asked(class_name: str, config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the loader expects. Assert that it lists no tensor twice."""
    found = list(CLASSES[class_name]({**defaults(class_name), **config}))
    assert len(dict(found)) == len(found)
    return dict(found)


FEATURES: list[tuple[str, Config]] = [
    *((name, {}) for name in SMALL),
    (UNET, {"time_cond_proj_dim": 6}),
    (UNET, {"time_embedding_dim": 20}),
    (UNET, {"num_class_embeds": 5}),
    (UNET, {"class_embed_type": "timestep", "class_embeddings_concat": True}),
    (UNET, {"class_embed_type": "identity"}),
    (UNET, {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6}),
    (UNET, {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6}),
    (UNET, {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 6}),
    (UNET, {"encoder_hid_dim": 6}),
    (
        UNET,
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 36,
        },
    ),
    (UNET, {"resnet_time_scale_shift": "scale_shift", "conv_in_kernel": 5, "conv_out_kernel": 1}),
    (UNET, {"only_cross_attention": True, "use_linear_projection": True}),
    (UNET, {"only_cross_attention": [True, False], "cross_attention_dim": [12, 20]}),
    (UNET, {"layers_per_block": [1, 3], "transformer_layers_per_block": [2, 3]}),
    (
        UNET,
        {
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
            "layers_per_block": 1,
            "transformer_layers_per_block": [[2], 1],
            "reverse_transformer_layers_per_block": [[1, 2], 3],
        },
    ),
    (UNET, {"mid_block_type": "UNetMidBlock2D"}),
    (UNET, {"mid_block_type": None}),
    (VAE, {"layers_per_block": 3, "latent_channels": 16}),
    (VAE, {"use_quant_conv": False, "use_post_quant_conv": False}),
    (VAE, {"mid_block_add_attention": False}),
    (CONTROLNET, {"num_class_embeds": 5}),
    (CONTROLNET, {"mid_block_type": "UNetMidBlock2D", "conditioning_channels": 5}),
    (CONTROLNET, {"transformer_layers_per_block": [1, 3], "use_linear_projection": True}),
    (CONTROLNET, {"conditioning_embedding_out_channels": [4], "num_attention_heads": 4}),
]


@pytest.mark.parametrize(("class_name", "changes"), FEATURES)
def test_tensors_of_each_feature_are_known(class_name, changes):
    """The loader expects the names and shapes that diffusers builds."""
    config = {**SMALL[class_name], **changes}
    assert asked(class_name, config) == built(class_name, config)


@pytest.mark.parametrize("count", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_tensors_of_random_configs_are_known(tally, count):
    """Configs combine features at random. Configs that diffusers cannot build are skipped."""
    rng = random.Random(0)
    for number in range(count):
        class_name = rng.choice(list(SMALL))
        own = [changes for name, changes in FEATURES if name == class_name]
        config = {**SMALL[class_name], **rng.choice(own), **rng.choice(own)}
        if "addition_embed_type" in config and "class_embed_type" in config:
            continue  # both may set projection_class_embeddings_input_dim
        if isinstance(config.get("cross_attention_dim"), list) and "encoder_hid_dim" in config:
            continue  # diffusers cannot build it
        try:
            theirs = built(class_name, config)
        except (ValueError, IndexError):
            continue
        assert asked(class_name, config) == theirs, (number, config)
        tally("random configs whose tensors are those of diffusers")


def has(class_name: str, **changes: Any) -> dict[str, Tensor]:
    """Return the tensors of a small model, without their content."""
    shapes = built(class_name, {**SMALL[class_name], **changes})
    return {name: Tensor(-1, Dtype.F32, shape, 0) for name, shape in shapes.items()}


REFUSED: list[tuple[str, Config, str]] = [
    (UNET, {"num_class_embeds": 5}, "lacks the tensor class_embedding.weight"),
    (UNET, {"class_embed_type": "timestep"}, "lacks the tensor class_embedding.linear_1.weight"),
    (UNET, {"class_embed_type": "projection"}, "projection_class_embeddings_input_dim is null"),
    (UNET, {"time_embedding_dim": 1 << 16}, "time_embedding.linear_1.weight has the shape [32, 8]"),
    (UNET, {"time_cond_proj_dim": 8}, "lacks the tensor time_embedding.cond_proj.weight"),
    (UNET, {"encoder_hid_dim": 8}, "lacks the tensor encoder_hid_proj.weight"),
    (UNET, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim is null"),
    (UNET, {"addition_embed_type": "text_time"}, "addition_time_embed_dim is null"),
    (UNET, {"conv_in_kernel": 7}, "conv_in.weight has the shape"),
    (UNET, {"layers_per_block": 64}, "lacks the tensor down_blocks.0.resnets.2.norm1.weight"),
    (UNET, {"attention_head_dim": 3}, "does not divide into 3 parts"),
    (UNET, {"norm_num_groups": 5}, "does not divide into 5 parts"),
    (UNET, {"sample_size": 64, "block_out_channels": [8]}, "one for each level"),
    (UNET, {"transformer_layers_per_block": [[1, 1], 1]}, "reverse_transformer_layers_per_block"),
    (UNET, {"reverse_transformer_layers_per_block": [[1], [1]]}, "one item for each layer"),
    (
        UNET,
        {"reverse_transformer_layers_per_block": [1, 1, 1]},
        "reverse_transformer_layers_per_block is [1, 1, 1]; it should be a list of 2 items, one"
        " for each",
    ),
    (
        UNET,
        {"reverse_transformer_layers_per_block": [1]},
        "reverse_transformer_layers_per_block is [1]; it should be a list of 2 items, one for"
        " each level",
    ),
    (
        UNET,
        {"reverse_transformer_layers_per_block": [1, [1]]},
        "reverse_transformer_layers_per_block is [1, [1]]; it should be a list with one item for"
        " each layer",
    ),
    (
        UNET,
        {
            "transformer_layers_per_block": [[1], 1],
            "reverse_transformer_layers_per_block": [1, [1, 1, 1]],
        },
        "transformer_layers_per_block is [[1], 1]; it should be a list with one item for each",
    ),
    (UNET, {"transformer_layers_per_block": 64}, "transformer_blocks.1.norm1.weight"),
    (VAE, {"latent_channels": 1 << 16}, "encoder.conv_out.weight has the shape"),
    (
        VAE,
        {"latents_mean": [0.5] * 3},
        "latents_mean is [0.5, 0.5, 0.5]; it should be a list of 4 items, one for each channel",
    ),
    (VAE, {"latents_std": [0.5] * 17}, "it should be a list of 4 items, one for each channel"),
    (VAE, {"layers_per_block": 64}, "lacks the tensor encoder.down_blocks.0.resnets.1"),
    (CONTROLNET, {"conditioning_channels": 1 << 16}, "controlnet_cond_embedding.conv_in.weight"),
    (CONTROLNET, {"num_attention_heads": 3}, "does not divide into 3 parts"),
    (
        CONTROLNET,
        {"conditioning_embedding_out_channels": [4, 6, 8]},
        "lacks the tensor controlnet_cond_embedding.blocks.2.weight",
    ),
]


@pytest.mark.parametrize(("class_name", "changes", "words"), REFUSED)
def test_config_without_its_tensors_is_refused(class_name, changes, words):
    """The error names the tensor or the config's key.

    diffusers could not open the model, would fill the missing tensors with random numbers, or would
    use all memory.
    """
    config = {**SMALL[class_name], **changes}
    with pytest.raises(LoaderError) as caught:
        check_opens("x", class_name, config, has(class_name))
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert words in caught.value.message


def test_config_with_its_tensors_is_accepted():
    """A file may also have tensors that its config does not ask for."""
    tensors = has(UNET, num_class_embeds=5)
    check_opens("x", UNET, {**SMALL[UNET], "num_class_embeds": 5}, tensors)
    check_opens("x", UNET, SMALL[UNET], tensors)
