"""Builds torch archives around any pickle, and reads tensors of an open file as torch tensors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from sd_loader.tensors import Dtype, Tensor
from tests.support.formats.zipfiles import Part, zip_bytes

TORCH_DTYPES = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F8_E5M2: torch.float8_e5m2,
    Dtype.F8_E4M3: torch.float8_e4m3fn,
    Dtype.I64: torch.int64,
    Dtype.I32: torch.int32,
    Dtype.I16: torch.int16,
    Dtype.I8: torch.int8,
    Dtype.U64: torch.uint64,
    Dtype.U32: torch.uint32,
    Dtype.U16: torch.uint16,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
}


def archive(content: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Return a torch archive with this pickle and these storages."""
    data = [Part(f"archive/data/{key}", value) for key, value in (storages or {}).items()]
    version = Part("archive/version", b"3\n")
    return zip_bytes([Part("archive/data.pkl", content), *data, version])


def torch_tensor(tensor: Tensor) -> torch.Tensor:
    """Read the bytes of a tensor and return them as a torch tensor."""
    strides = tensor.strides
    if strides is None:
        data = os.pread(tensor.fd, tensor.nbytes, tensor.offset)
        flat = torch.frombuffer(bytearray(data) or bytearray(8), dtype=TORCH_DTYPES[tensor.dtype])
        return flat[: tensor.count].reshape(tensor.shape)
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
    data = os.pread(tensor.fd, span * tensor.dtype.itemsize, tensor.offset)
    flat = torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[tensor.dtype])
    return flat.as_strided(tensor.shape, strides)


class Call:
    """An object that pickle serializes as the call `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function = function
        self.arguments = arguments
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, self.state


class Numbers(pickle.Pickler):
    """A pickler that writes `Numbers.Storage` as torch.save writes a reference to a storage."""

    class Storage:
        """The storage that a persistent id names."""

        def __init__(self, *identity: Any) -> None:
            self.identity = identity

    def persistent_id(self, value: Any) -> Any:
        """Return the tuple that stands for a storage; None for any other value."""
        return value.identity if isinstance(value, Numbers.Storage) else None
