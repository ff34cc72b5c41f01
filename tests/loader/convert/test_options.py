"""Options of a conversion that the spec or the file sets, and messages about contradictions."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from devkit.ldm_layouts import Widths, sd15_shapes
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.models.checkpoints import (
    random_tensors,
    save_ckpt,
    save_safetensors,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import convert_file, identical


def test_mixed_precision_is_kept(tmp_path):
    """Without spec.revision, each tensor keeps its precision."""
    tensors = tiny_sd15(torch.float16)
    for name in tensors:
        if name.startswith("first_stage_model."):
            tensors[name] = tensors[name].float()
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    converted = convert_file(path, tmp_path / "out")
    vae = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    text = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert converted.precision == "mixed"
    assert {tensor.dtype for tensor in vae.values()} == {torch.float32}
    assert text["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("dtype", "published"),
    [
        pytest.param(torch.float8_e4m3fn, torch.float16, id="8 bits"),
        pytest.param(torch.float64, torch.float32, id="double precision", marks=pytest.mark.slow),
    ],
)
def test_unusable_precision_is_converted(tmp_path, dtype, published):
    """8-bit floats fit into half precision without loss. Double precision becomes single."""
    tensors = tiny_sd15(dtype)
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    converted = convert_file(path, tmp_path / "out")
    found = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    expected = tensors["model.diffusion_model.input_blocks.0.0.weight"].to(published)
    assert converted.precision == {torch.float16: "fp16", torch.float32: "fp32"}[published]
    assert identical(found["conv_in.weight"], expected)


def test_ema_weights_replace_the_unet(tmp_path):
    """`weights: ema` gives the same UNet as diffusers' option and changes no other file."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tensors = tiny_sd15(ema=True)
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    standard = convert_file(path, tmp_path / "standard").files
    averaged = convert_file(path, tmp_path / "averaged", weights="ema").files

    unet = "unet/diffusion_pytorch_model.safetensors"
    assert {name for name in standard if standard[name] != averaged[name]} == {unet}
    expected = convert_ldm_unet_checkpoint(tensors, {"layers_per_block": 2}, extract_ema=True)
    found = load_file(tmp_path / "averaged" / unet)
    assert found.keys() == expected.keys()
    assert all(identical(found[name], expected[name]) for name in found)


def test_text_encoder_of_another_depth_is_recognised(tmp_path):
    """A file without the last layer is accepted, and the config has the real number of layers."""
    tensors = {name: value for name, value in tiny_sd15().items() if ".layers.11." not in name}
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    convert_file(path, tmp_path / "out")
    config = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert config["num_hidden_layers"] == 11


@pytest.mark.parametrize(
    ("make", "encoder"),
    [
        (tiny_sd15, "cond_stage_model.transformer."),
        pytest.param(tiny_sdxl, "conditioner.embedders.0.transformer.", marks=pytest.mark.slow),
    ],
    ids=["sd-1", "sdxl"],
)
def test_names_of_a_text_encoder_without_text_model_are_understood(tmp_path, make, encoder):
    """The published text encoder is the same if the file's names lack the part `text_model`.

    Early fine-tunes lack it, and also those made with transformers 5.6 and newer.
    """
    tensors = make()
    renamed = {name.replace(f"{encoder}text_model.", encoder): v for name, v in tensors.items()}
    assert renamed.keys() != tensors.keys()
    new = convert_file(save_safetensors(tmp_path / "new.safetensors", tensors), tmp_path / "new")
    old = convert_file(save_safetensors(tmp_path / "old.safetensors", renamed), tmp_path / "old")
    assert new.files == old.files


SCHEDULERS = [
    pytest.param({}, {}, {"prediction_type": "epsilon"}, id="no marker", marks=pytest.mark.slow),
    pytest.param(
        {"v_pred": torch.tensor([])}, {}, {"prediction_type": "v_prediction"}, id="marker"
    ),
    pytest.param(
        {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
        {},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "_class_name": "DDIMScheduler",
        },
        id="marker, zero terminal SNR",
    ),
    pytest.param(
        {"v_pred": torch.tensor([])},
        {"prediction_type": "epsilon"},
        {"prediction_type": "epsilon"},
        id="the spec decides",
    ),
]


@pytest.mark.parametrize(("marks", "fields", "expected"), SCHEDULERS)
def test_scheduler_gets_the_prediction_type(tmp_path, marks, fields, expected):
    """spec.predictionType takes precedence over marker tensors.

    diffusers opens the published scheduler with the same prediction type.
    """
    from diffusers import DDIMScheduler, PNDMScheduler

    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15() | marks)
    converted = convert_file(path, tmp_path / "out", **fields)
    folder = tmp_path / "out"
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    assert expected.items() <= config.items()
    assert converted.prediction_type == config["prediction_type"]
    assert index["scheduler"] == ["diffusers", config["_class_name"]]
    kind = {"DDIMScheduler": DDIMScheduler, "PNDMScheduler": PNDMScheduler}
    loaded = kind[config["_class_name"]].from_pretrained(folder, subfolder="scheduler")
    assert loaded.config.prediction_type == config["prediction_type"]


def test_upcast_attention_goes_into_the_unet_config(tmp_path):
    """Without spec.upcastAttention, the config does not contain the key."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    convert_file(path, tmp_path / "as is")
    convert_file(path, tmp_path / "upcast", upcast_attention=True)
    assert "upcast_attention" not in (tmp_path / "as is/unet/config.json").read_text()
    config = json.loads((tmp_path / "upcast/unet/config.json").read_text())
    assert config["upcast_attention"] is True


UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
EMA_BIAS = "model_ema.diffusion_modelout0bias"
CONTRADICTIONS = [
    pytest.param(
        f"{UNET}middle_block.1.norm.bias",
        {},
        {},
        f"missing: {UNET}middle_block.1.norm.bias",
        id="a tensor is missing",
    ),
    pytest.param(
        None,
        {f"{UNET}out.0.weight": torch.zeros(48)},
        {},
        f"{UNET}out.0.weight has the shape [48]; as conv_norm_out.weight it should be [32]",
        id="a shape contradicts the others",
    ),
    pytest.param(
        None,
        {f"{UNET}out.0.weight": torch.zeros(32, dtype=torch.int64)},
        {},
        f"{UNET}out.0.weight should hold floating-point numbers, but its type is ",
        id="integers for weights",
    ),
    pytest.param(
        None,
        {f"{UNET}input_blocks.12.0.op.weight": torch.zeros(1)},
        {},
        f"does not have: {UNET}input_blocks.12.0.op.weight",
        id="an extra level",
    ),
    pytest.param(
        None,
        {f"{TEXT}encoder.layers.12.x": torch.zeros(1)},
        {},
        f"does not have: {TEXT}encoder.layers.12.x",
        id="an extra text layer",
    ),
    pytest.param(
        None,
        {f"{TEXT.removesuffix('text_model.')}final_layer_norm.bias": torch.zeros(64)},
        {},
        f"two tensors {TEXT}final_layer_norm.bias",
        id="a tensor under its old name and its new one",
    ),
    pytest.param(
        EMA_BIAS, {}, {"weights": "ema"}, f"missing: {EMA_BIAS}", id="an EMA tensor is missing"
    ),
]


@pytest.mark.parametrize(("without", "extra", "fields", "message"), CONTRADICTIONS)
def test_contradicting_tensor_is_named(tmp_path, without, extra, fields, message):
    """The message names the first wrong tensor and the problem. Nothing is written."""
    tensors = {
        name: value
        for name, value in tiny_sd15(ema="weights" in fields).items()
        if without is None or not name.startswith(without)
    }
    path = save_safetensors(tmp_path / "model.safetensors", tensors | extra)
    with pytest.raises(LoaderError, match=re.escape(message)) as caught:
        convert_file(path, tmp_path / "out", **fields)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("without", "fields", "reason", "message"),
    [
        pytest.param("first_stage_model.", {}, Reason.UNSUPPORTED_FORMAT, "no VAE", id="VAE"),
        pytest.param(
            "cond_stage_model.", {}, Reason.UNSUPPORTED_FORMAT, "no text encoder", id="text encoder"
        ),
        pytest.param(
            "model_ema.",
            {"weights": "ema"},
            Reason.INVALID_SPEC,
            "no EMA weights",
            id="EMA weights",
        ),
    ],
)
def test_missing_component_or_ema_weights_are_named(tmp_path, without, fields, reason, message):
    """The message names what is missing; the reason shows whether file or spec must change."""
    tensors = {name: it for name, it in tiny_sd15(ema=True).items() if not name.startswith(without)}
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(LoaderError, match=message) as caught:
        convert_file(path, tmp_path / "out", **fields)
    assert caught.value.reason is reason


def test_unused_tensors_are_left_out_with_a_warning(tmp_path):
    """Tensors that no component uses, such as a training loss, are named in a warning."""
    tensors = tiny_sd15() | {"first_stage_model.loss.discriminator.main.0.bias": torch.zeros(2)}
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    (warning,) = convert_file(path, tmp_path / "out").warnings
    assert "1 tensors have no place" in warning
    assert "first_stage_model.loss.discriminator.main.0.bias" in warning


def test_impossible_width_is_refused(tmp_path):
    """A width that is not a multiple of 32 is refused: the folder would not open."""
    widths = Widths("sd15", unet=40, vae=32, text=(64,), text_layers=(1,), vocabulary=300)
    tensors = random_tensors(sd15_shapes(widths), torch.float16)
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(LoaderError, match="unet: a width of 40 does not divide into 32") as caught:
        convert_file(path, tmp_path / "out")
    assert caught.value.reason is Reason.CONVERSION_FAILED


def test_from_safetensors_refuses_a_pickle(tmp_path):
    """With spec.fromSafetensors: true a pickle is refused; with false it is accepted."""
    path = save_ckpt(tmp_path / "model.ckpt", tiny_sd15())
    with pytest.raises(LoaderError, match=r"spec\.fromSafetensors") as caught:
        convert_file(path, tmp_path / "refused", from_safetensors=True)
    assert caught.value.reason is Reason.UNSAFE_MODEL
    assert convert_file(path, tmp_path / "taken", from_safetensors=False).files


def test_lightning_checkpoint_is_converted(tmp_path):
    """The weights of a Lightning checkpoint are converted; diffusers refuses such a pickle."""
    tensors = tiny_sd15()
    plain = save_safetensors(tmp_path / "plain.safetensors", tensors)
    lightning = save_ckpt(tmp_path / "lightning.ckpt", tensors, lightning=True)
    expected = convert_file(plain, tmp_path / "expected")
    assert convert_file(lightning, tmp_path / "other").files == expected.files
