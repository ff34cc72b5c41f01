"""Configs keep the keys that their classes document, with values that the classes can have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.config_keys import allowed_config, allowed_scheduler, known_classes
from sd_loader.errors import LoaderError

UNET, VAE, TEXT = "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"
DPM = "DPMSolverMultistepScheduler"
NUMBER = "a whole number from 0 to 65,536"
SIZE = "a whole number from 1 to 65,536"
SIZES = "a list of whole numbers from 1 to 65,536"


def kept(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    """Return the allowed part of a config."""
    return allowed_config(config, class_name, "x/config.json")


@pytest.mark.parametrize(
    "key",
    [
        "_attn_implementation",
        "_name_or_path",
        "attn_implementation",
        "chunk_size_feed_forward",
        "decay",
        "dtype",
        "experts_implementation",
        "fusion_config",
        "id2label",
        "kernel_config",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "transformers_weights",
        "use_cache",
    ],
)
def test_key_that_no_class_documents_is_left_out(key):
    """Base classes of both libraries read such keys: some name code, kernels or files."""
    for value in ("../../other", {"x": {"y": 1}}, [1], None):
        for class_name in (UNET, VAE, TEXT, DPM):
            assert kept({key: value}, class_name) == {}
            assert allowed_scheduler({key: value}, class_name, "x.json") == {}


def test_unknown_class_has_no_keys():
    """A class that is not on the list has an empty config."""
    assert kept({"sample_size": 64, "hidden_size": 8}, "Evil") == {}


REFUSED = [
    (UNET, "sample_size", "x", f"{SIZE}, or a list of such"),
    (UNET, "sample_size", 10**9, f"{SIZE}, or a list of such"),
    (UNET, "sample_size", {"a": 1}, f"{SIZE}, or a list of such"),
    (UNET, "block_out_channels", [[8]], SIZES),
    (UNET, "num_class_embeds", 2 * 10**9, NUMBER),
    (UNET, "num_class_embeds", -1, NUMBER),
    (UNET, "num_class_embeds", 1.5, NUMBER),
    (UNET, "num_class_embeds", True, NUMBER),
    (UNET, "time_embedding_dim", 1 << 31, NUMBER),
    (UNET, "encoder_hid_dim", 1 << 31, NUMBER),
    (UNET, "layers_per_block", 65, "a whole number from 0 to 64, or a list of such"),
    (UNET, "act_fn", "evil", "gelu or mish or relu or silu or swish"),
    (UNET, "only_cross_attention", None, "true or false, or a list of such"),
    ("ControlNetModel", "only_cross_attention", None, "true or false, or a list of such"),
    (UNET, "act_fn", None, "gelu or mish or relu or silu or swish"),
    (UNET, "dropout", "x", "a number from 0 to 1"),
    (UNET, "down_block_types", ["x"], "a list of CrossAttnDownBlock2D or DownBlock2D"),
    (UNET, "class_embed_type", "x", "identity or projection or simple_projection or timestep"),
    (UNET, "attention_type", "gated", "default"),
    (UNET, "use_linear_projection", 1, "true or false"),
    (UNET, "num_attention_heads", 8, "null"),
    (UNET, "cross_attention_norm", "layer_norm", "null"),
    (UNET, "dual_cross_attention", True, "false"),
    (VAE, "scaling_factor", 0, "a number above 0 and up to 65,536"),
    (VAE, "down_block_types", ["DownBlock2D"], "a list of DownEncoderBlock2D"),
    (VAE, "latents_std", [0.0], "a list of numbers above 0 and up to 65,536"),
    (TEXT, "hidden_act", "evil", "quick_gelu"),
    (TEXT, "vocab_size", 1 << 31, "a whole number from 1 to 1,048,576"),
    (TEXT, "layer_norm_eps", None, "a number from 0 to 65,536"),
    (TEXT, "num_hidden_layers", 0, "a whole number from 1 to 64"),
    (DPM, "num_train_timesteps", 2_000_000_000, "a whole number from 1 to 4,096"),
    (DPM, "trained_betas", "x", "a list of numbers from 0 to 1"),
    (DPM, "trained_betas", [2.0], "a list of numbers from 0 to 1"),
    (DPM, "beta_schedule", "../../evil", "linear or scaled_linear or squaredcos_cap_v2"),
    (DPM, "use_karras_sigmas", None, "true or false"),
    (DPM, "beta_start", -math.inf, "a number from 0 to 1"),
    ("StableDiffusionPipeline", "requires_safety_checker", "x", "true or false"),
]


@pytest.mark.parametrize(("class_name", "key", "value", "expected"), REFUSED)
def test_value_that_a_class_cannot_have_is_refused(class_name, key, value, expected):
    """The message names the file, the key, the wrong value and the allowed values."""
    with pytest.raises(LoaderError) as caught:
        kept({key: value}, class_name)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert caught.value.message.startswith(f"x/config.json: {key} is ")
    assert "; it should be " in caught.value.message
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("class_name", "key", "count", "most"),
    [
        (UNET, "block_out_channels", 0, "16"),
        (UNET, "block_out_channels", 17, "16"),
        (UNET, "attention_head_dim", 17, "16"),
        (DPM, "trained_betas", 0, "65,536"),
        ("UniPCMultistepScheduler", "disable_corrector", 70_000, "65,536"),
    ],
)
def test_list_of_a_wrong_length_is_refused(class_name, key, count, most):
    """Each item is valid, so the message states the number of items."""
    with pytest.raises(LoaderError) as caught:
        kept({key: [1] * count}, class_name)
    assert caught.value.message == (
        f"x/config.json: {key} has {count} items; it should have 1 to {most}"
    )


@pytest.mark.parametrize(
    ("class_name", "key", "value", "shown"),
    [
        (UNET, "center_input_sample", "true", '"true"'),
        (TEXT, "num_hidden_layers", "11", '"11"'),
        (UNET, "act_fn", "", '""'),
        (UNET, "norm_num_groups", None, "null"),
        (UNET, "cross_attention_dim", True, "true"),
        (UNET, "up_block_types", ["x"], '["x"]'),
        ("EulerDiscreteScheduler", "sigma_min", math.inf, "Infinity"),
    ],
)
def test_value_is_shown_as_json_has_it(class_name, key, value, shown):
    """Without quotation marks, the text "true" would look like the value that is expected."""
    with pytest.raises(LoaderError) as caught:
        kept({key: value}, class_name)
    assert caught.value.message.startswith(f"x/config.json: {key} is {shown}; it should be ")


@pytest.mark.parametrize("number", [10**4000, -(10**4000), -(2**65)])
def test_whole_number_with_too_many_digits_is_refused(number):
    """JSON does not limit whole numbers, but a float cannot hold the largest of these."""
    for key in ("lambda_min_clipped", "beta_start", "num_train_timesteps"):
        with pytest.raises(LoaderError, match=f"{key} is -?\\d{{19}}"):
            kept({key: number}, DPM)
        assert allowed_scheduler({"sigma_min": number}, DPM, "x.json") == {}


ACCEPTED = [
    (UNET, {"sample_size": None}),
    (UNET, {"sample_size": [64, 96]}),
    (UNET, {"upcast_attention": None}),
    (UNET, {"transformer_layers_per_block": [0, 2, [4, 4]]}),
    (UNET, {"reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}),
    (UNET, {"only_cross_attention": [True, False]}),
    (UNET, {"dual_cross_attention": False, "cross_attention_norm": None}),
    (VAE, {"shift_factor": -0.5, "latents_mean": [-1.5] * 32, "sample_size": [512, 512]}),
    (TEXT, {"eos_token_id": [2, 49407], "projection_dim": None, "attention_dropout": 0}),
    (DPM, {"lambda_min_clipped": -math.inf, "thresholding": None}),
    (DPM, {"trained_betas": [0.1] * 1000}),
    ("UniPCMultistepScheduler", {"disable_corrector": [], "sigma_max": 14.6}),
    ("UniPCMultistepScheduler", {"disable_corrector": list(range(1000))}),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction"}),
]


@pytest.mark.parametrize(("class_name", "config"), ACCEPTED)
def test_value_that_a_class_can_have_is_kept(class_name, config):
    """The published value is the one of the source."""
    assert kept(config, class_name) == config


def test_whole_number_in_the_place_of_a_float_becomes_a_float():
    """Transformers refuses a config with `1` in the place of `1.0`."""
    published = kept({"layer_norm_eps": 1, "hidden_size": 8}, TEXT)
    assert repr(published) == "{'hidden_size': 8, 'layer_norm_eps': 1.0}"


def test_nested_config_takes_the_place_of_the_one_around_it():
    """Transformers reads `text_config` in a CLIP model's config, and ignores the keys beside it."""
    inner = {"hidden_size": 8, "attn_implementation": "evil/kernel", "auto_map": {"x": "y"}}
    assert kept({"hidden_size": 16, "text_config": inner}, TEXT) == {"hidden_size": 8}


@pytest.mark.parametrize("key", ["", "text_config", "unet_config"])
def test_nested_config_is_left_out_if_its_class_has_none(key):
    """Only classes of transformers have nested configs; the UNet is a class of diffusers."""
    assert kept({"in_channels": 9, key: {"in_channels": 4}}, UNET) == {"in_channels": 9}


def test_value_in_a_nested_config_is_checked():
    """The list of the nested class applies."""
    with pytest.raises(LoaderError, match="vocab_size is"):
        kept({"text_config": {"vocab_size": 1 << 31}}, TEXT)


def test_keys_of_other_schedulers_are_kept():
    """Diffusers keeps them as well, and uses them when a user changes the scheduler."""
    config = {
        "clip_sample": False,
        "lambda_min_clipped": -math.inf,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "beta_start": 0.00085,
    }
    assert allowed_scheduler(config, "EulerDiscreteScheduler", "x.json") == config


def test_value_that_no_scheduler_can_have_is_left_out():
    """The key belongs to another scheduler, so this one works without it."""
    config = {"clip_sample": {"x": 1}, "skip_prk_steps": "x", "solver_order": 10**9}
    assert allowed_scheduler(config, "EulerDiscreteScheduler", "x.json") == {}


def test_scheduler_with_an_impossible_value_is_unsupported():
    """The scheduler could not be made."""
    with pytest.raises(LoaderError) as caught:
        allowed_scheduler({"beta_schedule": "evil"}, "EulerDiscreteScheduler", "x.json")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_defaults_are_values_that_the_keys_can_have():
    """A config with every default has the same meaning as an empty config."""
    for name, entry in known_classes().items():
        defaults = {key: item["default"] for key, item in entry["keys"].items()}
        assert kept(defaults, name) == defaults
