"""Configs of other families keep what their classes document, if it is plain data."""

from __future__ import annotations

import pytest

from sd_loader.diffusers_repo.listed_config import listed_config, listed_scheduler
from sd_loader.errors import LoaderError


@pytest.mark.parametrize(
    "key",
    [
        "attn_implementation",
        "_attn_implementation",
        "backbone",
        "dtype",
        "kernel_config",
        "quantization_config",
        "transformers_weights",
    ],
)
def test_keys_that_no_class_of_a_family_documents_are_left_out(key):
    """Base classes of both libraries read keys that name code, kernels and files."""
    for class_name in ("FluxTransformer2DModel", "T5EncoderModel", "DPTForDepthEstimation"):
        for value in ("evil/kernel", {"x": 1}):
            assert listed_config({key: value}, class_name, "x") == {}
    nested = {"vision_config": {key: "evil/kernel", "hidden_size": 8}}
    assert listed_config(nested, "Qwen2_5_VLForConditionalGeneration", "x") == {
        "vision_config": {"hidden_size": 8, "model_type": "qwen2_5_vl_vision"}
    }


def test_a_language_model_keeps_the_keys_of_older_versions():
    """Qwen2.5-VL was published with the keys of its language model at the top level."""
    config = {
        "hidden_size": 3584,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0,
        "num_hidden_layers": 28,
        "vision_config": {"depth": 32, "model_type": "other"},
    }
    kept = listed_config(config, "Qwen2_5_VLForConditionalGeneration", "x")
    assert kept == {
        **config,
        "vision_config": {"depth": 32, "model_type": "qwen2_5_vl_vision"},
    }


@pytest.mark.parametrize(
    "value",
    ["a/b", "x" * 200, {"a": 1}, [[["x y"]]], 2**40, [1] * 5000],
    ids=["path", "long", "object", "spaces", "large", "many"],
)
def test_a_value_that_is_not_plain_data_is_refused(value):
    """Plain data are short names, sizes and short lists of these."""
    with pytest.raises(LoaderError, match=r"x: axes_dims_rope is .*, which FluxTransformer2DModel"):
        listed_config({"axes_dims_rope": value}, "FluxTransformer2DModel", "x")


def test_a_scheduler_keeps_the_keys_of_other_schedulers():
    """Diffusers uses them when a user changes the scheduler."""
    config = {"shift": 3.0, "beta_schedule": "scaled_linear", "evil": "x"}
    kept = listed_scheduler(config, "FlowMatchEulerDiscreteScheduler", "x")
    assert kept == {"shift": 3.0, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("class_name", "key"),
    [
        ("FluxTransformer2DModel", "num_layers"),
        ("FluxTransformer2DModel", "num_single_layers"),
        ("HiDreamImageTransformer2DModel", "num_routed_experts"),
        ("Kandinsky5Transformer3DModel", "num_visual_blocks"),
        ("Qwen2_5_VLForConditionalGeneration", "num_hidden_layers"),
        ("UNetMotionModel", "layers_per_block"),
        ("PixArtTransformer2DModel", "sample_size"),
        ("SD3Transformer2DModel", "pos_embed_max_size"),
    ],
)
def test_a_config_cannot_ask_for_any_number_of_layers_or_positions(class_name, key):
    """Their number is limited: both libraries allocate all of them before they read weights."""
    assert listed_config({key: 40}, class_name, "x") == {key: 40}
    with pytest.raises(LoaderError, match=f"x: {key} is 100000, which \\w+ cannot have"):
        listed_config({key: 100_000}, class_name, "x")
