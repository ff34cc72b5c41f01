"""Plans of checkpoints, made from their headers alone."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from devkit.ldm_layouts import (
    STRUCTURES,
    TINY_REFINER,
    TINY_SD2,
    TINY_SD15,
    TINY_SDXL,
    ema_shapes,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from sd_api.choices import BaseModelName, PredictionType
from sd_api.reasons import Reason
from sd_loader.convert.plan.checkpoint import missing_components, plan_checkpoint
from sd_loader.convert.plan.original import NO_ORIGINAL, OriginalConfig
from sd_loader.convert.plan.planned_extras import NO_EXTRAS, PlannedComponent, PlannedExtras
from sd_loader.convert.write.files import Item, json_file, weights_file
from sd_loader.errors import LoaderError
from sd_loader.inspect import inspect
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion
from tests.support.models.tinymodels import MODELS

UNET = "model.diffusion_model."
SD1, SD2 = sd15_shapes(TINY_SD15), sd2_shapes(TINY_SD2)
SDXL, REFINER = sdxl_shapes(TINY_SDXL), refiner_shapes(TINY_REFINER)
SSD = sdxl_shapes(replace(TINY_SDXL, architecture="ssd-1b"))


def tensors(shapes):
    """Return tensors of these shapes, without their content."""
    return {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}


def plan(shapes, extras=NO_EXTRAS, original=NO_ORIGINAL, metadata=None, **fields):
    """Plan a checkpoint with tensors of these shapes."""
    file = TensorFile(Path("model"), -1, "safetensors", tensors(shapes), metadata or {})
    return plan_checkpoint(file, conversion(**fields), extras, original)


def config(planned, path):
    """Parse a JSON file of the plan."""
    (file,) = [it for it in planned.files if it.path == path]
    return json.loads(file.content)


def scheduler(planned):
    """Parse the scheduler's config of the plan."""
    return config(planned, "scheduler/scheduler_config.json")


def without(shapes, *prefixes):
    """The shapes without those whose names have these prefixes."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {"upcast_attention": True},
            ("v_prediction", "DDIMScheduler", 96, True),
            id="upcast attention means 2.1",
        ),
        pytest.param(
            {"prediction_type": "epsilon"},
            ("epsilon", "PNDMScheduler", 64, None),
            id="epsilon means base",
        ),
        pytest.param(
            {"prediction_type": "epsilon", "upcast_attention": True},
            ("epsilon", "PNDMScheduler", 64, True),
            id="epsilon with upcast attention",
        ),
        pytest.param(
            {"upcast_attention": False},
            ("v_prediction", "DDIMScheduler", 96, False),
            id="no upcast attention means 2.0",
        ),
    ],
)
def test_stable_diffusion_2_is_the_512_or_the_768_model(fields, expected):
    """The 512 model predicts noise, and the 768 model predicts v."""
    planned = plan(SD2, **fields)
    unet = config(planned, "unet/config.json")
    found = scheduler(planned)
    assert found["prediction_type"] == planned.prediction_type
    assert (
        planned.prediction_type,
        found["_class_name"],
        unet["sample_size"],
        unet.get("upcast_attention"),
    ) == expected


@pytest.mark.parametrize("shapes", [SDXL, SSD], ids=["SDXL", "SSD-1B"])
def test_sdxl_v_model_gets_a_zero_terminal_snr_schedule(shapes):
    """Checkpoints like NoobAI have both marker tensors. Euler then starts at the last timestep."""
    from diffusers import EulerDiscreteScheduler

    marked = plan(shapes | {"v_pred": (0,), "ztsnr": (0,)})
    found = EulerDiscreteScheduler.from_config(scheduler(marked))
    assert found.config.prediction_type == "v_prediction"
    assert found.config.rescale_betas_zero_snr is True
    assert found.config.timestep_spacing == "trailing"
    assert marked.warnings == ()


@pytest.mark.parametrize("weights", ["standard", "ema"])
@pytest.mark.parametrize(
    ("shapes", "widths"),
    [
        pytest.param(SD2, TINY_SD2, id="SD 2"),
        pytest.param(SDXL, TINY_SDXL, id="SDXL", marks=pytest.mark.slow),
        pytest.param(REFINER, TINY_REFINER, id="refiner", marks=pytest.mark.slow),
        pytest.param(
            sd15_shapes(replace(TINY_SD15, architecture="bk-small")),
            replace(TINY_SD15, architecture="bk-small"),
            id="BK-SDM small",
        ),
    ],
)
def test_ema_weights_give_the_same_files(shapes, widths, weights):
    """The plan lists the same paths and sizes for both sets of weights."""
    planned = plan(shapes | ema_shapes(widths), weights=weights)
    plain = plan(shapes)
    assert [(it.path, it.size) for it in planned.files] == [
        (it.path, it.size) for it in plain.files
    ]


MISSING = [
    pytest.param(without(SD1, "first_stage_model."), ("vae",), "no VAE", id="VAE"),
    pytest.param(
        without(SD2, "cond_stage_model."),
        ("text_encoder",),
        "no text encoder",
        id="SD 2's text encoder",
    ),
    pytest.param(
        without(SDXL, "conditioner.embedders.1."),
        ("text_encoder_2",),
        "no second text encoder (conditioner.embedders.1.model.*)",
        id="SDXL's second text encoder",
    ),
    pytest.param(
        without(REFINER, "conditioner.", "first_stage_model."),
        ("text_encoder_2", "vae"),
        "no second text encoder (conditioner.embedders.0.model.*) and no VAE (first_stage_model.*)",
        id="a UNet alone",
    ),
]


@pytest.mark.parametrize(("shapes", "parts", "message"), MISSING)
def test_missing_components_are_named(shapes, parts, message):
    """`missing_components` and the refusal name all missing components at once."""
    assert missing_components(tensors(shapes)) == parts
    with pytest.raises(LoaderError, match=re.escape(message)) as caught:
        plan(shapes)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_complete_checkpoint_misses_no_component():
    """A complete checkpoint misses no component, even with old names of the text encoder."""
    for shapes in (SD1, SD2, SDXL, REFINER):
        assert missing_components(tensors(shapes)) == ()
    old = {name.replace(".text_model.", "."): shape for name, shape in SD1.items()}
    assert missing_components(tensors(old)) == ()


def planned_component(component, dimensions=None):
    """A component that was planned from another file, and the dimensions that it fixes."""
    weights = weights_file(
        f"{component}/weights.safetensors", [Item("w", Tensor(-1, Dtype.F16, (2,), 0), Dtype.F16)]
    )
    own = json_file(f"{component}/config.json", {"theirs": True})
    return PlannedComponent((weights, own), dimensions or {})


@pytest.mark.parametrize("shapes", [SD1, without(SD1, "first_stage_model.")], ids=["own", "none"])
def test_component_may_come_from_another_file(shapes):
    """The component replaces the checkpoint's own VAE or a missing one.

    Its files are published unchanged.
    """
    planned = plan(shapes, PlannedExtras({"vae": planned_component("vae")}))
    files = {file.path for file in planned.files}
    assert {path for path in files if path.startswith("vae/")} == {
        "vae/weights.safetensors",
        "vae/config.json",
    }
    assert config(planned, "vae/config.json") == {"theirs": True}
    plain = {file.path for file in plan(SD1).files}
    assert plain - files == {"vae/diffusion_pytorch_model.safetensors"}


def test_extra_text_encoder_must_fit_the_unet():
    """An extra text encoder whose width does not fit the UNet is refused."""
    shapes = without(SDXL, "conditioner.embedders.0.")
    part = planned_component("text_encoder", {"text_encoder": 64})
    planned = plan(shapes, PlannedExtras({"text_encoder": part}))
    assert config(planned, "unet/config.json")["cross_attention_dim"] == 192
    assert "tokenizer/vocab.json" in {file.path for file in planned.files}
    with pytest.raises(LoaderError, match="it should be") as caught:
        plan(
            shapes,
            PlannedExtras(
                {"text_encoder": planned_component("text_encoder", {"text_encoder": 72})}
            ),
        )
    assert caught.value.reason is Reason.CONVERSION_FAILED


def block(name, number):
    """The name of a tensor of a transformer block."""
    return f"{UNET}{name}.transformer_blocks.{number}.norm1.weight"


CONTRADICTIONS = [
    pytest.param(
        without(SSD, f"{UNET}output_blocks.0.1.transformer_blocks.1."),
        {},
        f"missing: {UNET}output_blocks.0.1.transformer_blocks.1.",
        id="a block between others",
    ),
    pytest.param(
        without(SSD, f"{UNET}input_blocks.4.1.transformer_blocks."),
        {},
        f"missing: {UNET}input_blocks.4.1.transformer_blocks.0.",
        id="an attention without blocks",
    ),
    pytest.param(
        without(SSD, f"{UNET}middle_block.0.in_layers"),
        {},
        f"missing: {UNET}middle_block.0.in_layers",
        id="half a middle block",
    ),
    pytest.param(
        without(SDXL, f"{UNET}middle_block.2."),
        {},
        f"missing: {UNET}middle_block.2.",
        id="a middle block without its end",
    ),
    pytest.param(
        SSD,
        {block("input_blocks.4.1", 2): (64,)},
        "does not have",
        id="more blocks than the family",
    ),
    pytest.param(
        without(SDXL, f"{UNET}middle_block.1.transformer_blocks.9."),
        {},
        "the UNet's middle block has 9 transformer blocks, its last level 10",
        id="no config describes it",
    ),
    pytest.param(
        without(SD1, f"{UNET}output_blocks.11."), {}, "missing", id="a block of the last level"
    ),
    pytest.param(
        without(SD1, f"{UNET}input_blocks.11."), {}, "missing", id="a block of the first half"
    ),
]


@pytest.mark.parametrize(("shapes", "extra", "message"), CONTRADICTIONS)
def test_incomplete_unet_is_not_taken_for_a_distilled_one(shapes, extra, message):
    """A UNet without some blocks is refused if no config of diffusers can describe it."""
    with pytest.raises(LoaderError, match=re.escape(message)) as caught:
        plan(shapes | extra)
    assert caught.value.reason is Reason.CONVERSION_FAILED


def test_config_lists_blocks_only_if_they_differ():
    """A model that has all blocks of its family gets the config of the family."""
    for shapes in (SD1, SD2, SDXL, REFINER):
        unet = config(plan(shapes), "unet/config.json")
        assert "reverse_transformer_layers_per_block" not in unet
    assert len(STRUCTURES["ssd-1b"].up) == 9
    unet = config(plan(SSD), "unet/config.json")
    assert unet["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]


def test_original_config_supplies_what_tensors_do_not_show():
    """Tensors do not show the image size, the number of heads or the noise schedule.

    The config's prediction type also tells which kind of SD 2 the model is.
    """
    original = OriginalConfig(
        prediction_type=PredictionType.EPSILON,
        image_size=80,
        head_channels=32,
        beta_start=0.001,
        beta_end=0.02,
        timesteps=500,
        in_channels=4,
        model_channels=32,
        context_dim=64,
    )
    planned = plan(SD2, original=original)
    unet = config(planned, "unet/config.json")
    found = scheduler(planned)
    assert unet["sample_size"] == 80
    assert unet["attention_head_dim"] == [1, 2, 4, 4]
    assert (found["beta_start"], found["beta_end"]) == (0.001, 0.02)
    assert found["num_train_timesteps"] == 500
    assert found["_class_name"] == "PNDMScheduler"
    assert planned.warnings == ()
    other = plan(SD1, original=OriginalConfig(heads=4))
    assert config(other, "unet/config.json")["attention_head_dim"] == 4


@pytest.mark.parametrize(
    ("original", "message"),
    [
        pytest.param(
            OriginalConfig(in_channels=9),
            "says in_channels: 9, but the checkpoint's is 4",
            id="inputs",
        ),
        pytest.param(
            OriginalConfig(model_channels=320),
            "says model_channels: 320, but the checkpoint's is 32",
            id="width",
        ),
        pytest.param(
            OriginalConfig(context_dim=768),
            "says context_dim: 768, but the checkpoint's is 64",
            id="text encoder",
        ),
        pytest.param(OriginalConfig(heads=5), "does not divide into 5 parts", id="heads"),
    ],
)
def test_original_config_of_another_model_is_refused(original, message):
    """An original config whose values contradict the checkpoint's tensors is refused."""
    with pytest.raises(LoaderError, match=message) as caught:
        plan(SD1, original=original)
    assert caught.value.reason is Reason.CONVERSION_FAILED


# What `make test` runs: each family, task and kind of UNet. `make test-all` runs all models.
QUICK = (
    "SD 2.1 (768, v)",
    "SDXL refiner",
    "SD 1.5 inpainting",
    "InstructPix2Pix (SD 1.5)",
    "BK-SDM tiny",
    "KOALA 700M",
)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model.title in QUICK else pytest.mark.slow)
        for model in MODELS
    ],
    ids=str,
)
def test_inspect_recognises_each_model(tmp_path, model):
    """Inspect finds the base model, pipeline and variant in the header. The file has no weights."""
    path = tmp_path / "model.safetensors"
    header, position = {}, 0
    for name, shape in model.shapes(model.widths).items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    found = inspect(path)
    assert found.base_model == model.base_model
    assert found.pipeline_class == model.pipeline
    variants = {"Inpaint": "inpaint", "InstructPix2Pix": "edit"}
    expected = [variant for task, variant in variants.items() if task in model.pipeline]
    assert found.variant == (expected or ["normal"])[0]
    assert len(found.warnings) == (model.base_model == "sd-2" and "Inpaint" not in model.pipeline)


def test_spec_may_confirm_the_base_model_but_not_change_it():
    """A baseModel that differs from the file's is refused."""
    assert plan(SD2, base_model="sd-2").base_model == BaseModelName.SD2
    with pytest.raises(LoaderError, match=r"spec\.baseModel is sd-1, but") as caught:
        plan(SD2, base_model="sd-1")
    assert caught.value.reason is Reason.INVALID_SPEC
