"""The key tables are what diffusers' converters say today, and cover the published models."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import pytest
from ldm_layouts import SD15, SDXL, sd15_shapes, sdxl_shapes

from sd_loader.convert import architecture
from sd_loader.convert.architecture import ARCHITECTURES, DATA
from sd_loader.convert.bind import bind, left_over
from sd_loader.convert.dimensions import describe, evaluate, matches
from sd_loader.convert.folder import Choices, clip_vocabulary, small_files
from sd_loader.tensors import Dtype, Tensor

TOOLS = Path(__file__).parent.parent / "tools"
PUBLISHED = {"sd1": sd15_shapes(SD15), "sdxl": sdxl_shapes(SDXL)}


@pytest.fixture
def tool(monkeypatch):
    """Opens one of the developers' scripts as a module."""

    def open_tool(name):
        monkeypatch.syspath_prepend(str(TOOLS))
        return importlib.import_module(name)

    return open_tool


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tables_are_those_that_diffusers_makes(tool, name):
    """tools/make_tables.py, run on the installed diffusers, writes the very same file."""
    make_tables = tool("make_tables")
    made = make_tables.render(make_tables.make_table(name))
    assert made == (DATA / name / "table.json").read_text()


def published(name):
    """The published model as tensors without bytes."""
    return {key: Tensor(-1, Dtype.F16, shape, 0) for key, shape in PUBLISHED[name].items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_of_the_published_model_has_its_place(name):
    """Every element is published once, but for those of position ids and CLIP's logit scale."""
    tensors, dimensions = published(name), {}
    bound = [
        tensor
        for component in architecture.load(name).components
        for tensor in bind(component, tensors, dimensions).values()
    ]
    nowhere = ("position_ids", "logit_scale")
    weights = [
        tensor for key, tensor in tensors.items() if "." in key and not key.endswith(nowhere)
    ]
    assert sum(tensor.count for tensor in bound) == sum(tensor.count for tensor in weights)
    assert not any(left_over(part, tensors) for part in architecture.load(name).components)


CONFIGS = [
    pytest.param(
        "sd1",
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


@pytest.mark.parametrize(("name", "expected"), CONFIGS)
def test_the_published_shapes_give_the_published_configs(name, expected):
    """What the models' own repositories say, as far as it decides what is computed."""
    known, dimensions = architecture.load(name), {}
    for component in known.components:
        bind(component, published(name), dimensions)
    dtypes = {component.name: {Dtype.F16} for component in known.components}
    files = {file.path: file for file in small_files(known, dimensions, dtypes, Choices())}
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
def test_the_bundled_vocabulary_is_clips_own(name, digest):
    """Byte for byte what the repositories of Stable Diffusion ship."""
    assert hashlib.sha256(clip_vocabulary(name)).hexdigest() == digest


def test_the_vocabulary_follows_from_its_merges(tool):
    """tools/make_tokenizers.py makes both files from a list of merges, as open_clip ships it."""
    title, merges = clip_vocabulary("merges.txt").decode().split("\n", 1)
    made = tool("make_tokenizers").make(f"a title\n{merges}")
    assert title == "#version: 0.2"
    assert made == {name: clip_vocabulary(name) for name in ("merges.txt", "vocab.json")}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("a", 64), ("4*a", 256), ("a+b", 74), ("a+1536", 1600), ("a//64", 1), ("b//64", 1)],
)
def test_expressions_stand_for_numbers(expression, value):
    """Sums of multiples; divisions never fall below one."""
    assert evaluate(expression, {"a": 64, "b": 10}) == value


@pytest.mark.parametrize(
    ("pattern", "shape", "known", "learned"),
    [
        pytest.param("a 4 3", (9, 4, 3), {}, {"a": 9}, id="a name takes its value"),
        pytest.param("a a", (9, 9), {"a": 9}, {"a": 9}, id="and keeps it"),
        pytest.param("a", (8,), {"a": 9}, None, id="a contradiction"),
        pytest.param("4*a", (12,), {}, {"a": 3}, id="a multiple"),
        pytest.param("4*a", (13,), {}, None, id="no multiple"),
        pytest.param("a", (0,), {}, None, id="nothing is no width"),
        pytest.param("a b", (1,), {}, None, id="too few dimensions"),
        pytest.param("a+b", (5,), {"a": 2, "b": 3}, {"a": 2, "b": 3}, id="a sum"),
    ],
)
def test_shapes_tell_dimensions(pattern, shape, known, learned):
    """A shape either agrees with what is known, and adds to it, or is a contradiction."""
    assert matches(pattern, shape, known) is (learned is not None)
    if learned is not None:
        assert known == learned


def test_an_expected_shape_is_described_as_far_as_it_is_known():
    """Names stand for numbers nobody knows yet."""
    assert describe("a 4*b 3", {"a": 32}) == "32, 4*b, 3"
