"""Weights in fp8 with a scale become `fp8 * scale`, rounded once. Other formats are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.needs import needs
from sd_loader.convert.plan.scaled_fp8 import scaled
from sd_loader.convert.write.cast import cast, storage_dtype
from sd_loader.convert.write.files import Item, weights_file
from sd_loader.convert.write.writer import write_folder
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.tensors import Dtype

CHECKPOINT = Conversion(ModelType.CUSTOM_CKPT, "model")
LAYER = "model.diffusion_model.layer"
FP8 = bytes(code for code in range(256) if code & 0x7F != 0x7F)  # all but NaN
SHAPE = (2, len(FP8) // 2)
Content = dict[str, tuple[str, tuple[int, ...], bytes]]


def decoded(content: bytes = FP8) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the numbers that the bytes stand for in float8_e4m3fn."""

    def number(code: int) -> float:
        exponent, mantissa = code >> 3 & 15, code & 7
        size = (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
        return -size if code & 0x80 else size

    return np.array([number(code) for code in content], np.float32)


def rounded(values: np.ndarray[Any, Any], dtype: Dtype) -> bytes:
    """Round single precision once, to nearest even."""
    if dtype is Dtype.F16:
        return values.astype("<f2").tobytes()
    if dtype is Dtype.F32:
        return values.astype("<f4").tobytes()
    bits = values.view("<u4").astype("<u8")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def save(path: Path, content: Content, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file of raw bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (label, shape, raw) in content.items():
        header[name] = {
            "dtype": label,
            "shape": list(shape),
            "data_offsets": [position, position + len(raw)],
        }
        position += len(raw)
    text = json.dumps(header).encode()
    body = b"".join(raw for _, _, raw in content.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def f32(value: float, shape: tuple[int, ...] = ()) -> tuple[str, tuple[int, ...], bytes]:
    """Return a tensor with a scale."""
    return "F32", shape, struct.pack("<f", value)


def described(form: object) -> tuple[str, tuple[int, ...], bytes]:
    """Return a tensor with ComfyUI's description of a weight's format."""
    text = json.dumps({"format": form}).encode()
    return "U8", (len(text),), text


WEIGHT = ("F8_E4M3", SHAPE, FP8)
OLD = {
    f"{LAYER}.weight": WEIGHT,
    f"{LAYER}.scale_weight": f32(0.0123),
    f"{LAYER}.scale_input": f32(3.0),
    "scaled_fp8": ("F8_E4M3", (2,), b"\0\0"),
}
NEW = {
    f"{LAYER}.weight": WEIGHT,
    f"{LAYER}.weight_scale": f32(0.0123, (1,)),
    f"{LAYER}.input_scale": f32(3.0),
    f"{LAYER}.comfy_quant": described("float8_e4m3fn"),
}
LAYERS = json.dumps({"layers": {LAYER: {"format": "float8_e4m3fn"}}})
IN_HEADER = {name: value for name, value in NEW.items() if "comfy_quant" not in name}


@pytest.mark.parametrize("dtype", [Dtype.F16, Dtype.BF16, Dtype.F32])
@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        pytest.param(OLD, None, id="older files of ComfyUI"),
        pytest.param(NEW, None, id="described by a tensor"),
        pytest.param(IN_HEADER, {"_quantization_metadata": LAYERS}, id="described in the header"),
    ],
)
def test_weight_is_multiplied_and_rounded_once(
    tmp_path: Path, content: Content, metadata: dict[str, str] | None, dtype: Dtype
) -> None:
    """A published weight is `fp8 * scale`, rounded once; scales and descriptions are left out."""
    with open_tensor_file(save(tmp_path / "file", content, metadata)) as file:
        found = scaled(file).tensors
        assert found.keys() == {f"{LAYER}.weight"}
        planned = weights_file("out", [Item("w", found[f"{LAYER}.weight"], dtype)])
        write_folder(tmp_path, [planned], lambda _: None)
    written = (tmp_path / "out").read_bytes().removeprefix(planned.header)
    assert written == rounded(decoded() * np.float32(0.0123), dtype)


def test_weight_without_a_scale_keeps_its_value(tmp_path: Path) -> None:
    """An fp8 weight without a scale, beside weights with scales, keeps its value."""
    other = {"other.weight": WEIGHT, "other.bias": ("F16", (1,), b"\0\x3c")}
    with open_tensor_file(save(tmp_path / "file", OLD | other)) as file:
        found = scaled(file).tensors
    assert found["other.weight"].scale is None
    assert found[f"{LAYER}.weight"].scale == pytest.approx(0.0123)
    assert "other.bias" in found


@pytest.mark.parametrize("count", [0, 1, 2, 5, 254])
def test_any_number_of_elements_is_cast(count: int) -> None:
    """Elements are cast in pairs, and the last one may be alone."""
    values = np.frombuffer(FP8, "u1")[:count]
    out = np.empty(count, "<f2")
    assert cast(values, Dtype.F8_E4M3, Dtype.F16, out, 0.5) == 0
    assert out.tobytes() == rounded(decoded()[:count] * np.float32(0.5), Dtype.F16)


@pytest.mark.parametrize("target", [Dtype.F16, Dtype.BF16, Dtype.F32])
@pytest.mark.parametrize("source", [Dtype.F8_E4M3, Dtype.F8_E5M2])
def test_finite_weights_that_become_infinite_are_counted(source: Dtype, target: Dtype) -> None:
    """Weights that a large scale makes infinite count. Weights that were infinite do not."""
    values = np.arange(256, dtype="u1")
    out = np.empty(256, storage_dtype(target))
    single = np.empty(256, "<f4")
    cast(values, source, Dtype.F32, single)
    before = np.isfinite(single)
    with np.errstate(over="ignore", invalid="ignore"):
        after = single * np.float32(3e38)
        limit = 65520 if target is Dtype.F16 else np.inf
        infinite = np.abs(after) >= limit
    assert cast(values, source, target, out, 3e38) == int((before & infinite).sum())


@pytest.mark.parametrize("dtype", [Dtype.F8_E4M3, Dtype.F8_E5M2])
def test_nan_stays_nan(dtype: Dtype) -> None:
    """NaN stays with a scale and without one."""
    for scale in (None, 2.0):
        out = np.empty(2, "<f2")
        cast(np.array([0x7F, 0xFF], "u1"), dtype, Dtype.F16, out, scale)
        assert np.isnan(out).all()


REFUSED = [
    pytest.param(
        {f"{LAYER}.scale_weight": f32(1.0), "other.weight": WEIGHT},
        Reason.CONVERSION_FAILED,
        "layer.scale_weight is the scale of a weight that is missing",
        id="a scale without its weight",
    ),
    pytest.param(
        OLD | {f"{LAYER}.scale_weight": f32(float("nan"))},
        Reason.CONVERSION_FAILED,
        "layer.scale_weight is nan, not a number",
        id="NaN",
    ),
    pytest.param(
        NEW | {f"{LAYER}.weight_scale": f32(float("-inf"))},
        Reason.CONVERSION_FAILED,
        "layer.weight_scale is -inf, not a number",
        id="infinite",
    ),
    pytest.param(
        NEW | {f"{LAYER}.scale_weight": f32(1.0)},
        Reason.CONVERSION_FAILED,
        "layer.weight has two scales",
        id="two scales",
    ),
    pytest.param(
        NEW | {f"{LAYER}.weight_scale": ("F32", (2, 1), bytes(8))},
        Reason.UNSUPPORTED_FORMAT,
        "(scaled fp8, with a scale for each row or block)",
        id="a scale for each row",
    ),
    pytest.param(
        NEW | {f"{LAYER}.comfy_quant": described("float8_e5m2")},
        Reason.CONVERSION_FAILED,
        "says float8_e5m2, but the weight is of F8_E4M3",
        id="a description that contradicts the weight",
    ),
    pytest.param(
        NEW | {f"{LAYER}.comfy_quant": ("U8", (3,), b"{[}")},
        Reason.CONVERSION_FAILED,
        "comfy_quant is not a JSON object",
        id="a damaged description",
    ),
    pytest.param(
        NEW | {f"{LAYER}.comfy_quant": described(["x"])},
        Reason.UNSUPPORTED_FORMAT,
        "(of an unnamed format)",
        id="a format that is not a word",
    ),
    *(
        pytest.param(
            NEW | {f"{LAYER}.comfy_quant": described(form)},
            Reason.UNSUPPORTED_FORMAT,
            f"the weights are quantized ({form}), which is not supported",
            id=form,
        )
        for form in ("nvfp4", "mxfp8", "int8_tensorwise", "int8_blockwise", "convrot_int4")
    ),
]


@pytest.mark.parametrize(("content", "reason", "message"), REFUSED)
def test_bad_scales_and_other_formats_are_refused(
    tmp_path: Path, content: Content, reason: Reason, message: str
) -> None:
    """The message names the tensor, or the format."""
    with (
        open_tensor_file(save(tmp_path / "file", content)) as file,
        pytest.raises(LoaderError) as caught,
    ):
        scaled(file)
    assert caught.value.reason is reason
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": {"a": {"format": "nvfp4"}}}', "(nvfp4)"),
        ('{"layers": {"a": 1}}', "(of an unnamed format)"),
        ('{"layers": 1}', "has no layers"),
        ("[", "is not a JSON object"),
    ],
)
def test_description_in_the_header_is_checked(tmp_path: Path, text: str, message: str) -> None:
    """A description in the header with a wrong format, or that is not readable, is refused."""
    path = save(tmp_path / "file", IN_HEADER, {"_quantization_metadata": text})
    with open_tensor_file(path) as file, pytest.raises(LoaderError) as caught:
        scaled(file)
    assert message in caught.value.message


def test_file_with_scales_is_downloaded_before_it_is_planned(tmp_path: Path) -> None:
    """`needs` asks for the whole file, because the plan reads the scales."""
    with open_tensor_file(save(tmp_path / "file", OLD)) as file:
        assert needs(file, CHECKPOINT).whole_file
        assert not needs(scaled(file), CHECKPOINT).whole_file


@pytest.mark.slow
@pytest.mark.parametrize("revision", [None, "bf16"])
def test_checkpoint_equals_one_that_torch_has_multiplied(
    tmp_path: Path, revision: str | None
) -> None:
    """A whole checkpoint in scaled fp8 gives the files of the same checkpoint in half precision."""
    import torch

    from tests.support.models.checkpoints import save_safetensors, tiny_sd15
    from tests.support.models.conversions import convert_file

    dtype = torch.float16 if revision is None else torch.bfloat16
    fp8, multiplied = {}, {}
    for name, tensor in tiny_sd15().items():
        if "diffusion_model" in name and name.endswith(".weight") and tensor.dim() == 2:
            scale = tensor.float().abs().max() / 448
            fp8[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            fp8[name.replace(".weight", ".scale_weight")] = scale
            multiplied[name] = (fp8[name].float() * scale).to(dtype)
        else:
            fp8[name] = multiplied[name] = tensor
    fp8["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    found = [
        convert_file(
            save_safetensors(tmp_path / f"{name}.safetensors", tensors),
            tmp_path / name,
            revision=revision,
        )
        for name, tensors in (("fp8", fp8), ("multiplied", multiplied))
    ]
    assert found[0].files == found[1].files
    assert found[0].warnings == found[1].warnings == ()
