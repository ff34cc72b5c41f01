"""Changes of precision, bit for bit as torch makes them, by way of single precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numkong
import numpy as np
import numpy.typing as npt

from sd_loader.tensors import Dtype

Array = npt.NDArray[Any]

# What numpy reads an element as. It knows neither bfloat16 nor 8-bit floats: those stay bit
# patterns.
_STORAGE: dict[Dtype, str] = {
    Dtype.F64: "<f8",
    Dtype.F32: "<f4",
    Dtype.F16: "<f2",
    Dtype.BF16: "<u2",
    Dtype.F8_E5M2: "u1",
    Dtype.F8_E4M3: "u1",
}


def storage_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The numpy type that holds one element, bit patterns where numpy knows no better."""
    return np.dtype(_STORAGE.get(dtype, f"V{dtype.itemsize}"))


# The smallest number that rounds to infinity, as bits shifted left to be without sign.
_BF16_INFINITE = 0x7F7F8000 << 1
_F16_INFINITE = 0x7C00
_F16_MINUS_INFINITE = 0xFC00


def cast(values: Array, source: Dtype, target: Dtype) -> tuple[Array, int]:
    """Convert elements; also say how many finite ones became infinite.

    Both arrays are of `storage_dtype`. A NaN stays a NaN, rounding is to nearest even.
    """
    if source is target:
        return values, 0
    single = _DECODE[source](values)
    result, overflows = _ENCODE[target](single)
    if source is Dtype.F64:
        overflows += int(np.isinf(single).sum() - np.isinf(values).sum())
    return result, overflows


def not_finite(values: Array, dtype: Dtype) -> tuple[int, int]:
    """How many elements are NaN, and how many infinite."""
    single = _DECODE[dtype](values)
    return int(np.isnan(single).sum()), int(np.isinf(single).sum())


def _decode_f64(values: Array) -> Array:
    with np.errstate(over="ignore"):  # `cast` counts
        return values.astype("<f4")


def _decode_bf16(values: Array) -> Array:
    bits = values.astype("<u4")
    bits <<= 16
    return bits.view("<f4")


def _encode_f32(values: Array) -> tuple[Array, int]:
    return values, 0


def _encode_f16(values: Array) -> tuple[Array, int]:
    # numpy's own cast gives the same bits in ten times the time.
    result = np.empty(values.shape, "<f2")
    numkong.astype(values, "float16", out=result)
    # What is infinite or NaN has the largest bits of its sign; counting is for those alone.
    positive = result.view("<i2").max(initial=0)
    negative = result.view("<u2").max(initial=0)
    if positive < _F16_INFINITE and negative < _F16_MINUS_INFINITE:
        return result, 0
    return result, int(np.isinf(result).sum() - np.isinf(values).sum())


def _encode_bf16(values: Array) -> tuple[Array, int]:
    bits = values.view("<u4")
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype("<u2")
    unusual = np.flatnonzero(bits + bits >= _BF16_INFINITE)
    overflows = 0
    if unusual.size:
        nan = unusual[np.isnan(values[unusual])]
        result[nan] = (bits[nan] >> 16).astype("<u2") | 0x40  # rounding may have emptied it
        overflows = int(np.isfinite(values[unusual]).sum())
    return result, overflows


def _eight_bit(exponent_bits: int, *, infinities: bool) -> Array:
    """All 256 values of an 8-bit float, by their bit pattern."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    table = np.empty(256, "<f4")
    for pattern in range(256):
        exponent = pattern >> mantissa_bits & (2**exponent_bits - 1)
        mantissa = pattern & (2**mantissa_bits - 1)
        fraction = mantissa / 2**mantissa_bits
        value = (fraction + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
        if infinities and exponent == 2**exponent_bits - 1:
            value = np.nan if mantissa else np.inf
        elif not infinities and pattern & 0x7F == 0x7F:
            value = np.nan
        table[pattern] = -value if pattern & 0x80 else value
    return table


_E5M2 = _eight_bit(5, infinities=True)
_E4M3 = _eight_bit(4, infinities=False)


_DECODE: dict[Dtype, Callable[[Array], Array]] = {
    Dtype.F64: _decode_f64,
    Dtype.F32: lambda values: values,
    Dtype.F16: lambda values: values.astype("<f4"),
    Dtype.BF16: _decode_bf16,
    Dtype.F8_E5M2: lambda values: _E5M2[values],
    Dtype.F8_E4M3: lambda values: _E4M3[values],
}

_ENCODE: dict[Dtype, Callable[[Array], tuple[Array, int]]] = {
    Dtype.F32: _encode_f32,
    Dtype.F16: _encode_f16,
    Dtype.BF16: _encode_bf16,
}
