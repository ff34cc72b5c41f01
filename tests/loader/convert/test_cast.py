"""Casts of 8-bit weights convert two elements at once. test_writer.py compares casts with torch."""

from __future__ import annotations

import numpy as np
import pytest

from sd_loader.convert.write.cast import cast, storage_dtype
from sd_loader.tensors import Dtype


@pytest.mark.parametrize("source", [Dtype.F8_E4M3, Dtype.F8_E5M2])
@pytest.mark.parametrize("target", [Dtype.F16, Dtype.BF16, Dtype.F32])
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256])
def test_pairs_give_the_same_as_single_elements(source: Dtype, target: Dtype, count: int) -> None:
    """Casting by pairs equals casting one by one, also if the last element has no partner."""
    values = np.arange(count, dtype="u1")[::-1]
    out = np.empty(count, storage_dtype(target))
    single = np.empty(1, storage_dtype(target))
    assert cast(values, source, target, out) == 0
    for value, found in zip(values, out, strict=True):
        cast(np.array([value], "u1"), source, target, single)
        assert found.tobytes() == single.tobytes()
