"""LoRAs as numpy arrays, loaded by the loader without torch."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from sd_api.load import LoadRequest
from sd_loader.convert.run import convert
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Converted, Fetched
from sd_loader.request import conversion_of

Arrays = dict[str, np.ndarray]

_TYPES = {"float32": "F32", "float16": "F16"}


def random(seed: int, *shape: int, dtype: str = "float16") -> np.ndarray:
    """Return reproducible numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def write(path: Path, arrays: Arrays) -> Path:
    """Write a safetensors file."""
    entries, position = [], 0
    for name, array in arrays.items():
        shape, end = list(array.shape), position + array.nbytes
        kind = _TYPES[str(array.dtype)]
        entries.append(
            f'"{name}":{{"dtype":"{kind}","shape":{shape},"data_offsets":[{position},{end}]}}'
        )
        position = end
    header = ("{" + ",".join(entries) + "}").encode()
    content = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


def read(path: Path) -> Arrays:
    """Read a safetensors file."""
    types = {label: dtype for dtype, label in _TYPES.items()}
    content = path.read_bytes()
    with open_tensor_file(path) as file:
        return {
            name: np.frombuffer(
                content, types[tensor.dtype.label], tensor.count, tensor.offset
            ).reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }


def request(**fields: object) -> LoadRequest:
    """Return a request to load a LoRA."""
    return LoadRequest.model_validate(
        {
            "owner": {"uid": "0" * 8, "namespace": "default", "name": "model"},
            "model_id": "model",
            "model_type": "lora",
            "url": "https://models.example.com/model",
            "load_hash": "0" * 16,
            **fields,
        }
    )


def loaded(folder: Path, arrays: Arrays, **fields: object) -> tuple[Converted, Arrays]:
    """Load a LoRA into the new folder `out`; return the result and the published arrays."""
    out = folder / "out"
    out.mkdir(parents=True)
    write(folder / "file", arrays)
    fetched = Fetched.model_validate({"kind": "file", "path": "file", "source": {}})
    converted = convert(fetched, folder, conversion_of(request(**fields)), out, lambda _: None)
    assert sorted(path.name for path in folder.iterdir()) == ["file", "out"]
    return converted, read(out / "pytorch_lora_weights.safetensors")
