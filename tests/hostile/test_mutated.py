"""Changed copies of good files are refused, or give the tensors that other readers find."""

from __future__ import annotations

import io
import os
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.tensors import TensorFile
from tests.support.formats.torchfiles import torch_tensor
from tests.support.hostile.benign import TENSORS, saved

Tensors = dict[str, torch.Tensor]
REASONS = {
    Reason.DAMAGED_FILE,
    Reason.NOT_A_MODEL,
    Reason.UNSAFE_MODEL,
    Reason.UNSUPPORTED_FORMAT,
    Reason.DIGEST_MISMATCH,
}
MEMORY = 32 << 20
NUMBERS = (0, 1, 2, 7, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@st.composite
def mutated(draw, seed: bytes) -> bytes:
    """Return the file with up to three changes: bits, cuts, insertions, moves, numbers."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(("flip", "cut", "drop", "insert", "move", "number", "text"))):
            case "flip":
                content[at : at + 1] = bytes(
                    byte ^ (1 << length % 8) for byte in content[at : at + 1]
                )
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "move":
                to = draw(st.integers(0, len(content)))
                content[to:to] = content[at : at + length * 8]
            case "number":
                width = draw(st.sampled_from((1, 2, 4, 8)))
                value = draw(st.sampled_from(NUMBERS)) & (1 << 8 * width) - 1
                content[at : at + width] = value.to_bytes(width, "little")
            case "text":
                digits = draw(st.sampled_from((b"0", b"9", b"-1", b"1e9", b'"', b"{", b"]", b",")))
                content[at : at + len(digits)] = digits
    return bytes(content)


def ours(path: Path) -> Tensors | None:
    """Return the tensors of our reader; None if it refuses the file or a checksum differs."""
    opened: TensorFile | LoaderError
    tracemalloc.start()
    try:
        opened = open_tensor_file(path)
    except LoaderError as error:
        opened = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    if isinstance(opened, LoaderError):
        assert opened.reason in REASONS
        return None
    with opened:
        for (offset, size), checksum in opened.checksums.items():
            if zlib.crc32(os.pread(opened.fd, size, offset)) != checksum:
                return None  # the loader notices when it reads the weights
        return {name: torch_tensor(tensor) for name, tensor in opened.tensors.items()}


def by_safetensors(content: bytes) -> Tensors | None:
    """Return the tensors that the safetensors library reads; None if it raises an error."""
    try:
        return dict(load(content))
    except (SafetensorError, ValueError, KeyError):
        return None


def by_torch(content: bytes) -> Tensors | None:
    """Return the tensors that torch reads without running code; None if it raises an error."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about an unusual protocol
            found = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - torch fails on damaged files in many ways
        return None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {
        name: value.detach() for name, value in found.items() if isinstance(value, torch.Tensor)
    }


def same(found: Tensors, expected: Tensors | None) -> bool:
    """Return whether two sets of tensors are equal bit for bit."""
    return expected is not None and (
        found.keys() == expected.keys()
        and all(
            value.dtype == expected[name].dtype
            and value.shape == expected[name].shape
            and value.contiguous().view(-1).view(torch.uint8).tolist()
            == expected[name].contiguous().view(-1).view(torch.uint8).tolist()
            for name, value in found.items()
        )
    )


SEEDS: dict[str, tuple[bytes, Callable[[bytes], Tensors | None]]] = {
    "safetensors": (save(TENSORS, {"format": "pt"}), by_safetensors),
    "zip": (saved({"state_dict": TENSORS, "global_step": 3}), by_torch),
    "legacy": (saved(TENSORS, _use_new_zipfile_serialization=False), by_torch),
}


def run(tmp_path: Path, container: str, examples: int) -> int:
    """Try many changed files and return how many could still be read."""
    seed, read = SEEDS[container]
    path = tmp_path / "model"
    counted = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(mutated(seed))
    def try_one(content: bytes) -> None:
        nonlocal counted
        path.write_bytes(content)
        found = ours(path)
        if found is not None:
            counted += 1
            assert same(found, read(content)) or same(found, TENSORS)

    try_one()
    return counted


@pytest.mark.parametrize("container", SEEDS)
def test_a_changed_file_is_refused_or_read_correctly(tmp_path, tally, container):
    """The reader raises LoaderError, or finds the tensors of another reader or of the good file."""
    run(tmp_path, container, examples=60)
    tally("mutated files tried", 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("container", SEEDS)
def test_many_changed_files_are_refused_or_read_correctly(tmp_path, tally, container):
    """At least one file can still be read, so the comparison with other readers takes place."""
    assert run(tmp_path, container, examples=3000)
    tally("mutated files tried", 3000)


@pytest.mark.parametrize("container", SEEDS)
def test_an_unchanged_file_is_read(tmp_path, container):
    """Our reader and the independent reader find the same tensors."""
    seed, read = SEEDS[container]
    (tmp_path / "model").write_bytes(seed)
    found = ours(tmp_path / "model")
    assert found is not None
    assert same(found, TENSORS)
    assert same(found, read(seed))
