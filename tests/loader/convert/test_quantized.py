"""Quantized weights of any model type are refused, and the message names their format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from devkit.ldm_layouts import TINY_SDXL, sdxl_shapes
from sd_api.reasons import Reason
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.repo_component import component_tensors
from sd_loader.convert.plan.repo_configs import component_config
from sd_loader.diffusers_repo.index import Pipeline
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.checkpoints import save_safetensors, tiny_sd15
from tests.support.models.conversions import conversion, convert_file

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k"
VAE = "first_stage_model.encoder.mid.attn_1.q"
LORA = "lora_unet_mid_block_attentions_0_proj_in.lora_down"
CONTROLNET = "control_model.middle_block.1.proj_in"


def message(what: str, seen: str) -> str:
    """The whole message about a format."""
    return (
        f"the weights are quantized ({what}), which is not supported: use a version of the model"
        f" in fp16, bf16 or fp32 (seen: {seen})"
    )


def described(types: dict[str, Dtype], shape: tuple[int, ...] = (4, 4)) -> dict[str, Tensor]:
    """Return tensors of these types, without their content."""
    return {name: Tensor(-1, dtype, shape, 0) for name, dtype in types.items()}


F8, F16, F32, U8, I8 = Dtype.F8_E4M3, Dtype.F16, Dtype.F32, Dtype.U8, Dtype.I8
FORMATS = [
    pytest.param(
        {f"{UNET}.weight": F8, f"{UNET}.scale_weight": F32}, "scaled fp8", ".scale_weight", id="fp8"
    ),
    pytest.param(
        {f"{UNET}.weight": F8, f"{UNET}.weight_scale": F32, f"{UNET}.comfy_quant": U8},
        "scaled fp8",
        ".weight_scale",
        id="fp8 of 2026",
    ),
    pytest.param(
        {f"{UNET}.weight": Dtype.F8_E5M2, f"{UNET}.comfy_quant": U8},
        "scaled fp8",
        ".comfy_quant",
        id="fp8 with a description alone",
    ),
    pytest.param(
        {f"{UNET}.weight": F8, f"{UNET}.input_scale": F32}, "scaled fp8", ".input_scale", id="input"
    ),
    pytest.param(
        {f"{UNET}.weight": F8, f"{UNET}.weight_scale_inv": F32},
        "scaled fp8, in blocks",
        ".weight_scale_inv",
        id="fp8 in blocks",
    ),
    pytest.param(
        {f"{UNET}.weight": U8, f"{UNET}.weight_scale": F8, f"{UNET}.weight_scale_2": F32},
        "nvfp4",
        ".weight_scale_2",
        id="nvfp4",
    ),
    pytest.param(
        {f"{UNET}.weight": F8, f"{UNET}.weight_scale": U8}, "mxfp8", ".weight_scale", id="mxfp8"
    ),
    pytest.param(
        {f"{UNET}.weight": U8, f"{UNET}.weight_scale": U8}, "mxfp4", ".weight_scale", id="mxfp4"
    ),
    pytest.param(
        {f"{UNET}.weight": I8, f"{UNET}.weight_scale": F32}, "int8", ".weight_scale", id="int8"
    ),
    pytest.param({f"{UNET}.weight": I8}, "int8", ".weight", id="int8 alone"),
    pytest.param({f"{UNET}.weight": U8}, "packed 4-bit numbers", ".weight", id="uint8 alone"),
    pytest.param(
        {f"{UNET}.weight": I8, f"{UNET}.SCB": F32}, "int8, by bitsandbytes", ".SCB", id="bnb int8"
    ),
    pytest.param(
        {
            f"{UNET}.weight": U8,
            f"{UNET}.weight.absmax": U8,
            f"{UNET}.weight.quant_map": F32,
            f"{UNET}.weight.quant_state.bitsandbytes__nf4": U8,
        },
        "nf4, by bitsandbytes",
        ".weight.quant_state.bitsandbytes__nf4",
        id="nf4",
    ),
    pytest.param(
        {f"{UNET}.weight": U8, f"{UNET}.weight.absmax": U8},
        "4-bit, by bitsandbytes",
        ".weight.absmax",
        id="bnb 4-bit",
    ),
    pytest.param(
        {f"{UNET}.qweight": Dtype.I32, f"{UNET}.qzeros": Dtype.I32, f"{UNET}.g_idx": Dtype.I32},
        "GPTQ",
        ".g_idx",
        id="GPTQ",
    ),
    pytest.param(
        {f"{UNET}.qweight": Dtype.I32, f"{UNET}.qzeros": Dtype.I32},
        "GPTQ or AWQ",
        ".qzeros",
        id="AWQ",
    ),
    pytest.param(
        {f"{UNET}.qweight": I8, f"{UNET}.wscales": F16},
        "SVDQuant, by Nunchaku",
        ".wscales",
        id="SVDQuant",
    ),
    pytest.param({f"{UNET}.W_q": U8}, "HQQ", ".W_q", id="HQQ"),
    pytest.param(
        {f"{UNET}.weight._data": I8, f"{UNET}.weight._scale": F16},
        "quanto",
        ".weight._data",
        id="quanto",
    ),
    pytest.param({f"{UNET}.weight_scale": F32}, "with scales", ".weight_scale", id="scale alone"),
    pytest.param({f"{UNET}.weight": F8, f"{UNET}.scale": F32}, "scaled fp8", ".scale", id="scale"),
    pytest.param(
        {
            f"{UNET}.weight_packed": U8,
            f"{UNET}.weight_scale": F8,
            f"{UNET}.weight_global_scale": F32,
        },
        "nvfp4",
        ".weight_global_scale",
        id="nvfp4, global scale",
    ),
    *(
        pytest.param({f"{UNET}.{part}": U8, f"{UNET}.scale": F32}, what, f".{part}", id=part)
        for part, what in (
            ("_weight_qdata", "torchao"),
            ("encoded_exponent", "DFloat11"),
            ("input_quantizer._amax", "by NVIDIA ModelOpt"),
            ("q_weight", "EXL2"),
            ("weight:_data", "torchao"),
            ("weight_packed", "by compressed-tensors"),
            ("zero_point", "by SDNQ"),
        )
    ),
]


@pytest.mark.parametrize(("types", "what", "seen"), FORMATS)
def test_format_is_named(types, what, seen):
    """The message names a tensor that shows the format, and the remedy."""
    for order in (types, dict(reversed(types.items()))):
        with pytest.raises(LoaderError) as caught:
            refuse_quantized(described(order))
        assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
        assert caught.value.message == message(what, UNET + seen)


@pytest.mark.parametrize("dtype", [Dtype.F8_E4M3, Dtype.F8_E5M2, Dtype.F16, Dtype.F32, Dtype.BF16])
def test_checkpoint_without_scales_is_not_quantized(dtype):
    """A checkpoint in plain fp8 is accepted; whole numbers such as position ids do not count."""
    found = {name: Tensor(-1, dtype, shape, 0) for name, shape in sdxl_shapes(TINY_SDXL).items()}
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": Dtype.I64}
    norm = {f"{UNET}.norm.scale": dtype}
    refuse_quantized(found | described(ids | norm))


KINDS = [
    ("custom_ckpt", "scaled fp8, in blocks", f"{UNET}.weight_scale_inv"),
    ("lora", "scaled fp8", f"{LORA}.scale_weight"),
    ("vae", "scaled fp8, in blocks", f"{VAE}.weight_scale_inv"),
    ("controlnet", "scaled fp8, in blocks", f"{CONTROLNET}.weight_scale_inv"),
]


@pytest.mark.parametrize(("model_type", "what", "scale"), KINDS)
def test_file_of_each_type_is_refused(tmp_path, model_type, what, scale):
    """The message is the same for each model type."""
    weight = f"{scale.rpartition('.')[0]}.weight"
    tensors = {weight: torch.ones(4, 4).to(torch.float8_e4m3fn), scale: torch.tensor(2.0)}
    file = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(file, tmp_path / "out", model_type=model_type)
    assert caught.value.message == message(what, scale)


def test_quantized_checkpoint_is_refused(tmp_path):
    """A checkpoint whose UNet has 8-bit whole numbers is refused."""
    tensors = {
        name: tensor.to(torch.int8) if "diffusion_model" in name and tensor.dim() == 2 else tensor
        for name, tensor in tiny_sd15().items()
    }
    file = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(file, tmp_path / "out")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message.startswith("the weights are quantized (int8), which is not")


def test_quantized_component_of_a_repo_is_named():
    """The message names the component and the format."""
    file = TensorFile(Path("x"), -1, "safetensors", described({"conv_in.SCB": F32}))
    with pytest.raises(LoaderError) as caught:
        component_tensors("unet", "UNet2DConditionModel", [file])
    assert caught.value.message == "unet: " + message("int8, by bitsandbytes", "conv_in.SCB")


BITSANDBYTES = {"quant_method": "bitsandbytes"}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {**BITSANDBYTES, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "nf4, by bitsandbytes",
        ),
        (
            {**BITSANDBYTES, "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"},
            "int8, by bitsandbytes",
        ),
        ({"quant_method": "torchao"}, "torchao"),
        ({"method": "svdquant", "weight": {"dtype": "int4"}}, "svdquant"),
        ({"x": 1}, "by an unknown method"),
        ([1], "by an unknown method"),
    ],
)
def test_quantizer_of_a_config_is_named(config, what):
    """The message names the component, the method and the type of the numbers."""
    pipeline = Pipeline("StableDiffusionPipeline", {"unet": "UNet2DConditionModel"}, {})
    with pytest.raises(LoaderError) as caught:
        component_config({"quantization_config": config}, "unet", pipeline, conversion())
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == "unet: " + message(what, "quantization_config")


@pytest.mark.parametrize(
    ("label", "what"),
    [("F4", "fp4"), ("F6_E2M3", "fp6"), ("F6_E3M2", "fp6"), ("F8_E8M0", "mxfp8 or mxfp4")],
)
def test_type_that_only_quantized_files_have_is_named(tmp_path, label, what):
    """The header shows the type, so the weights are not read."""
    entry = {"dtype": label, "shape": [8], "data_offsets": [0, 8]}
    header = json.dumps({f"{LORA}.weight": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(LoaderError) as caught:
        open_tensor_file(path)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == f"{path.name}: {message(what, f'{LORA}.weight')}"
