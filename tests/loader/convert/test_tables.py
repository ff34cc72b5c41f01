"""The key tables match the installed diffusers and cover the published models."""

from __future__ import annotations

import hashlib
import json

import pytest

from devkit.ldm_layouts import (
    REFINER,
    SD2,
    SD15,
    SDXL,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from sd_api.choices import PredictionType
from sd_loader.convert.plan.small_files import Choices, small_files
from sd_loader.convert.tables.architecture import ARCHITECTURES, DATA, load_architecture, take
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.clip import vocabulary_file
from sd_loader.convert.tables.dimensions import describe, evaluate, matches
from sd_loader.tensors import Dtype, Tensor
from tools import make_controlnet_tables, make_tables, make_tokenizers

PUBLISHED = {
    "sd-1": sd15_shapes(SD15),
    "sd-2": sd2_shapes(SD2),
    "sdxl": sdxl_shapes(SDXL),
    "sdxl-refiner": refiner_shapes(REFINER),
}
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
OPEN_CLIP = "cond_stage_model.model."
TABLES = sorted(path.parent.relative_to(DATA).as_posix() for path in DATA.rglob("table.json"))
QUICK = ("controlnet-sd-1", "sd-1")
"""The tables that `make test` makes: one with each tool."""


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in TABLES if name not in QUICK)],
)
def test_tables_are_up_to_date(name):
    """The tools that make the tables give the same files with the installed diffusers."""
    maker = make_controlnet_tables if name.startswith("controlnet-") else make_tables
    made = make_tables.render(maker.make_table(name))
    assert made == (DATA / name / "table.json").read_text()


def published(name):
    """Return the published model's tensors, without their content."""
    return {key: Tensor(-1, Dtype.F16, shape, 0) for key, shape in PUBLISHED[name].items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_key_table_covers_every_tensor_of_the_published_model(name):
    """Every element is published once, except those that no pipeline uses."""
    tensors, dimensions = published(name), {}
    bound = [
        tensor
        for component in load_architecture(name).components
        for tensor in bind(component, tensors, dimensions).values()
    ]
    nowhere = ("position_ids", "logit_scale")
    # SD 2 uses the output of the last layer but one, without the projection.
    not_in_sd2 = (f"{OPEN_CLIP}transformer.resblocks.23.", f"{OPEN_CLIP}text_projection")
    weights = [
        tensor
        for key, tensor in tensors.items()
        if "." in key and not key.endswith(nowhere) and not key.startswith(not_in_sd2)
    ]
    assert sum(tensor.count for tensor in bound) == sum(tensor.count for tensor in weights)
    assert not any(left_over(part, tensors) for part in load_architecture(name).components)


CONFIGS = [
    pytest.param(
        "sd-1",
        {
            "unet/config.json": {
                "block_out_channels": [320, 640, 1280, 1280],
                "attention_head_dim": 8,
                "cross_attention_dim": 768,
                "sample_size": 64,
            },
            "vae/config.json": {
                "block_out_channels": [128, 256, 512, 512],
                "scaling_factor": 0.18215,
            },
            "text_encoder/config.json": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "vocab_size": 49408,
                "max_position_embeddings": 77,
                "hidden_act": "quick_gelu",
                "eos_token_id": 2,
                "torch_dtype": "float16",
            },
            "scheduler/scheduler_config.json": {
                "_class_name": "PNDMScheduler",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "skip_prk_steps": True,
                "steps_offset": 1,
            },
            "model_index.json": {
                "_class_name": "StableDiffusionPipeline",
                "safety_checker": [None, None],
                "requires_safety_checker": False,
                "feature_extractor": [None, None],
            },
            "tokenizer/special_tokens_map.json": {"pad_token": "<|endoftext|>"},
        },
        id="SD 1.5",
    ),
    pytest.param(
        "sdxl",
        {
            "unet/config.json": {
                "block_out_channels": [320, 640, 1280],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "projection_class_embeddings_input_dim": 2816,
                "transformer_layers_per_block": [1, 2, 10],
                "use_linear_projection": True,
                "sample_size": 128,
            },
            "vae/config.json": {"scaling_factor": 0.13025, "force_upcast": True},
            "text_encoder_2/config.json": {
                "architectures": ["CLIPTextModelWithProjection"],
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_attention_heads": 20,
                "num_hidden_layers": 32,
                "projection_dim": 1280,
                "hidden_act": "gelu",
            },
            "scheduler/scheduler_config.json": {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_spacing": "leading",
                "steps_offset": 1,
            },
            "model_index.json": {
                "_class_name": "StableDiffusionXLPipeline",
                "force_zeros_for_empty_prompt": True,
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "tokenizer/special_tokens_map.json": {"pad_token": "<|endoftext|>"},
            "tokenizer_2/special_tokens_map.json": {"pad_token": "!"},
            "tokenizer_2/tokenizer_config.json": {"pad_token": "!", "model_max_length": 77},
        },
        id="SDXL",
    ),
]


VARIANTS = [
    pytest.param(
        "sd-1",
        "inpainting",
        {
            "unet/config.json": {"in_channels": 9, "sample_size": 64},
            "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "steps_offset": 1},
            "model_index.json": {"_class_name": "StableDiffusionInpaintPipeline"},
        },
        id="SD 1.5 inpainting",
    ),
    pytest.param(
        "sd-1",
        "instruct-pix2pix",
        {
            "unet/config.json": {"in_channels": 8, "cross_attention_dim": 768},
            "scheduler/scheduler_config.json": {"_class_name": "EulerAncestralDiscreteScheduler"},
            "model_index.json": {"_class_name": "StableDiffusionInstructPix2PixPipeline"},
        },
        id="InstructPix2Pix",
    ),
    pytest.param(
        "sd-2",
        None,
        {
            "unet/config.json": {
                "block_out_channels": [320, 640, 1280, 1280],
                "attention_head_dim": [5, 10, 20, 20],
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
                "sample_size": 64,
            },
            "vae/config.json": {"sample_size": 512, "scaling_factor": 0.18215},
            "text_encoder/config.json": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 23,
                "hidden_act": "gelu",
                "projection_dim": 512,
            },
            "scheduler/scheduler_config.json": {
                "_class_name": "PNDMScheduler",
                "prediction_type": "epsilon",
                "skip_prk_steps": True,
                "set_alpha_to_one": False,
                "steps_offset": 1,
            },
            "tokenizer/special_tokens_map.json": {"pad_token": "!"},
        },
        id="SD 2 base",
    ),
    pytest.param(
        "sd-2",
        "768-v",
        {
            "unet/config.json": {"sample_size": 96, "upcast_attention": True},
            "vae/config.json": {"sample_size": 768},
            "scheduler/scheduler_config.json": {
                "_class_name": "DDIMScheduler",
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
            },
        },
        id="SD 2.1",
    ),
    pytest.param(
        "sd-2",
        "inpainting",
        {
            "unet/config.json": {"in_channels": 9, "sample_size": 64},
            "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler"},
            "model_index.json": {"_class_name": "StableDiffusionInpaintPipeline"},
        },
        id="SD 2 inpainting",
    ),
    pytest.param(
        "sdxl",
        "inpainting",
        {
            "unet/config.json": {"in_channels": 9, "sample_size": 128},
            "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
            "model_index.json": {
                "_class_name": "StableDiffusionXLInpaintPipeline",
                "force_zeros_for_empty_prompt": True,
                "requires_aesthetics_score": False,
            },
        },
        id="SDXL inpainting",
    ),
    pytest.param(
        "sdxl-refiner",
        None,
        {
            "unet/config.json": {
                "block_out_channels": [384, 768, 1536, 1536],
                "attention_head_dim": [6, 12, 24, 24],
                "cross_attention_dim": 1280,
                "projection_class_embeddings_input_dim": 2560,
                "transformer_layers_per_block": 4,
                "down_block_types": [
                    "DownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                    "DownBlock2D",
                ],
                "sample_size": 128,
            },
            "vae/config.json": {"scaling_factor": 0.13025, "force_upcast": True},
            "text_encoder_2/config.json": {
                "architectures": ["CLIPTextModelWithProjection"],
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "projection_dim": 1280,
            },
            "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
            "model_index.json": {
                "_class_name": "StableDiffusionXLImg2ImgPipeline",
                "force_zeros_for_empty_prompt": False,
                "requires_aesthetics_score": True,
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "tokenizer_2/special_tokens_map.json": {"pad_token": "!"},
        },
        id="SDXL refiner",
    ),
]


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [pytest.param(*case.values[:1], None, case.values[1], id=case.id) for case in CONFIGS]
    + VARIANTS,
)
def test_published_shapes_give_the_published_configs(name, variant, expected):
    """The planned configs have the published values of all keys that affect the computation."""
    known, dimensions = load_architecture(name), {}
    if variant is not None:
        known = known.varied(variant)
    channels = expected.get("unet/config.json", {}).get("in_channels", 4)
    tensors = published(name)
    tensors[CONV_IN] = Tensor(-1, Dtype.F16, (*tensors[CONV_IN].shape[:1], channels, 3, 3), 0)
    for component in known.components:
        bind(component, tensors, dimensions)
    dtypes = {component.name: {Dtype.F16} for component in known.components}
    choices = Choices(PredictionType.V_PREDICTION if variant == "768-v" else PredictionType.EPSILON)
    files = {file.path: file for file in small_files(known, dimensions, dtypes, choices)}
    for path, values in expected.items():
        config = json.loads(files[path].content)
        assert {key: config[key] for key in values} == values, path


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("merges.txt", "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
        ("vocab.json", "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"),
    ],
)
def test_bundled_vocabulary_is_that_of_clip(name, digest):
    """The files equal those in the repos of Stable Diffusion."""
    assert hashlib.sha256(vocabulary_file(name)).hexdigest() == digest


def test_vocabulary_is_made_from_its_merges():
    """tools/make_tokenizers.py makes both files from the list of merges that open_clip ships."""
    title, merges = vocabulary_file("merges.txt").decode().split("\n", 1)
    made = make_tokenizers.make(f"a title\n{merges}")
    assert title == "#version: 0.2"
    assert made == {name: vocabulary_file(name) for name in ("merges.txt", "vocab.json")}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("a", 64), ("4*a", 256), ("a+b", 74), ("a+1536", 1600), ("a//64", 1), ("b//64", 1)],
)
def test_expressions_are_evaluated(expression, value):
    """An expression is a sum of multiples. A division gives at least one."""
    assert evaluate(expression, {"a": 64, "b": 10}) == value


@pytest.mark.parametrize(
    ("pattern", "shape", "known", "learned"),
    [
        pytest.param("a 4 3", (9, 4, 3), {}, {"a": 9}, id="a name gets its value"),
        pytest.param("a a", (9, 9), {"a": 9}, {"a": 9}, id="a name keeps its value"),
        pytest.param("a", (8,), {"a": 9}, None, id="a contradiction"),
        pytest.param("4*a", (12,), {}, {"a": 3}, id="a multiple"),
        pytest.param("4*a", (13,), {}, None, id="not a multiple"),
        pytest.param("a", (0,), {}, None, id="zero"),
        pytest.param("a b", (1,), {}, None, id="too few dimensions"),
        pytest.param("a+b", (5,), {"a": 2, "b": 3}, {"a": 2, "b": 3}, id="a sum"),
    ],
)
def test_shape_defines_or_contradicts_dimensions(pattern, shape, known, learned):
    """If a shape matches its pattern, the dimensions that were unknown become known."""
    assert matches(pattern, shape, known) is (learned is not None)
    if learned is not None:
        assert known == learned


def test_description_of_a_shape_keeps_unknown_names():
    """A name stands for a number that is not yet known."""
    assert describe("a 4*b 3", {"a": 32}) == "32, 4*b, 3"


def test_unknown_op_is_an_error():
    """Otherwise, a typo in a key table would be reported as a wrong shape of the user's file."""
    with pytest.raises(ValueError, match="no op of a key table: 'thrid 0'"):
        take(Tensor(-1, Dtype.F16, (6, 2), 0), "thrid 0")
