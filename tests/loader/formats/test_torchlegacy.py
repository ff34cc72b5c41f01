"""Files of torch before 1.6: the tensors are those that torch finds, or the file is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections import OrderedDict
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import CKPT, open_tensor_file
from tests.support.formats.legacyfiles import (
    MACHINE,
    Legacy,
    content,
    part,
    storage,
    stored,
    tensor,
)
from tests.support.formats.torchfiles import torch_tensor
from tests.support.hostile import pickles as hostile
from tests.support.models.checkpoints import LIGHTNING_EXTRAS, save_ckpt
from tests.support.models.conversions import identical

DAMAGED = Reason.DAMAGED_FILE
MATRIX = torch.arange(24, dtype=torch.float32).reshape(4, 6)
LIMIT = 300 << 20


def saved(value: Any) -> bytes:
    """Return the bytes that torch.save wrote before 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def read(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors that the loader's reader finds, as torch tensors."""
    path.write_bytes(data)
    with open_tensor_file(path) as file:
        assert file.format == CKPT
        return {name: torch_tensor(tensor) for name, tensor in file.tensors.items()}


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"a": MATRIX, "b": torch.ones(3)}, id="two storages"),
        pytest.param({"a": MATRIX, "b": MATRIX[1:3], "c": MATRIX[:, 2]}, id="one shared by three"),
        pytest.param({"a": MATRIX.t(), "b": MATRIX.half().t()}, id="transposed"),
        pytest.param({"a": torch.nn.Parameter(MATRIX)}, id="a parameter"),
        pytest.param(OrderedDict(a=MATRIX), id="an OrderedDict"),
        pytest.param({"a": torch.tensor(1.5), "b": torch.zeros(0, 4)}, id="a number and nothing"),
        pytest.param(
            {
                str(dtype): torch.ones(5).to(dtype)
                for dtype in (
                    torch.float64,
                    torch.float16,
                    torch.bfloat16,
                    torch.int64,
                    torch.int32,
                    torch.int16,
                    torch.int8,
                    torch.uint8,
                    torch.bool,
                )
            },
            id="types",
        ),
    ],
)
def test_the_tensors_are_those_that_torch_loads(tmp_path, tensors):
    """The tensors are equal bit for bit, for every kind of storage."""
    data = saved(tensors)
    expected = torch.load(io.BytesIO(data), weights_only=True)
    found = read(tmp_path / "model.ckpt", data)
    assert found.keys() == expected.keys()
    assert all(identical(found[name], expected[name].detach()) for name in expected)


@pytest.mark.parametrize("options", [{"nested": False}, {}, {"lightning": True}], ids=str)
def test_training_programs_files_are_read(tmp_path, options):
    """The weights may be plain, nested under state_dict, or beside the state of a callback."""
    tensors = {"a": MATRIX, "model_ema.a": MATRIX + 1}
    path = save_ckpt(tmp_path / "model.ckpt", tensors, legacy=True, **options)
    with open_tensor_file(path) as file:
        found = {name: torch_tensor(one) for name, one in file.tensors.items()}
        metadata = dict(file.metadata)
    assert found.keys() == tensors.keys()
    assert all(identical(found[name], tensors[name]) for name in tensors)
    if options.get("nested", True):
        assert metadata["global_step"] == str(LIGHTNING_EXTRAS["global_step"])


def test_a_config_of_omegaconf_is_ignored(tmp_path):
    """Only the weight is found beside such a config, whose classes are not imported."""
    config = hostile.new(hostile.name("omegaconf.dictconfig", "DictConfig")) + b"}b"
    whole = content({"config": config, "weight": tensor(storage("0", 3), [3])})
    found = read(
        tmp_path / "model.ckpt",
        bytes(Legacy(content=whole, keys=("0",), storages=Legacy().storages[:1])),
    )
    assert found["weight"].tolist() == [1, 2, 3]
    assert found.keys() == {"weight"}


def test_the_file_made_by_hand_is_one_that_torch_loads(tmp_path):
    """The reader and torch find equal tensors in the file that other tests break in one place."""
    expected = torch.load(io.BytesIO(bytes(Legacy())), weights_only=True)
    found = read(tmp_path / "model.ckpt", bytes(Legacy()))
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in expected.items()
    }


def test_a_view_of_a_storage_is_read(tmp_path):
    """The reader and torch find equal values in a view that is written as before torch 0.4."""
    view = storage("0", 3, part=part("7", 1, 2))
    whole = content({"a": tensor(storage("0", 3), [3]), "b": tensor(view, [2])})
    data = bytes(Legacy(content=whole, keys=("0",), storages=Legacy().storages[:1]))
    expected = torch.load(io.BytesIO(data), weights_only=False)
    found = read(tmp_path / "model.ckpt", data)
    assert found["b"].tolist() == expected["b"].tolist() == [2, 3]


def test_strings_of_python_2_are_read(tmp_path):
    """Tensors are found although all names and keys are strings of Python 2, as in old files."""
    whole = Legacy().content
    for word in ("weight", "bias", "storage", "cpu", "0", "1"):
        whole = whole.replace(hostile.text(word), b"U" + bytes([len(word)]) + word.encode())
    assert b"X" not in whole
    found = read(tmp_path / "model.ckpt", bytes(Legacy(content=whole)))
    assert {name: value.tolist() for name, value in found.items()} == {
        "weight": [1, 2, 3],
        "bias": [4, 5],
    }


def of(weight: bytes, *, keys: Any = ("0",), storages: Any = None) -> Legacy:
    """Return a file whose only tensor is `weight`."""
    storages = Legacy().storages[:1] if storages is None else storages
    return Legacy(content=content({"weight": weight}), keys=keys, storages=storages)


@pytest.mark.parametrize(
    ("file", "reason", "what"),
    [
        pytest.param(
            Legacy(version=b"\x80\x02M\xea\x03."), Reason.UNSUPPORTED_FORMAT, "unknown version",
            id="another version",
        ),
        pytest.param(
            Legacy(version=b"\x80\x02}."), Reason.UNSUPPORTED_FORMAT, "unknown version",
            id="a version that is none",
        ),
        pytest.param(
            Legacy(machine={**MACHINE, "little_endian": False}), Reason.UNSUPPORTED_FORMAT,
            "little-endian", id="big-endian",
        ),
        pytest.param(Legacy(machine={}), Reason.UNSUPPORTED_FORMAT, "little-endian", id="unsaid"),
        pytest.param(Legacy(machine=[]), DAMAGED, "what machine", id="no machine"),
        pytest.param(Legacy(keys=("0",)), DAMAGED, "differs from", id="a key is missing"),
        pytest.param(Legacy(keys=("0", "1", "2")), DAMAGED, "differs from", id="unknown key"),
        pytest.param(Legacy(keys=("0", "1", "1")), DAMAGED, "differs from", id="a key twice"),
        pytest.param(Legacy(keys=(0, 1)), DAMAGED, "not a list of keys", id="keys are numbers"),
        pytest.param(Legacy(keys={"0": 1}), DAMAGED, "not a list of keys", id="keys are no list"),
        pytest.param(
            Legacy(keys=("1", "0")), DAMAGED, "storage 1 has 3 elements, not 2", id="order"
        ),
        pytest.param(
            Legacy(storages=(stored(4, bytes(16)), Legacy().storages[1])), DAMAGED,
            "has 4 elements, not 3", id="too many elements",
        ),
        pytest.param(
            Legacy(storages=(stored(2, bytes(8)), Legacy().storages[1])), DAMAGED,
            "has 2 elements, not 3", id="too few elements",
        ),
        pytest.param(
            Legacy(storages=(stored(1 << 63, bytes(12)), Legacy().storages[1])), DAMAGED,
            "elements, not 3", id="a negative number of elements",
        ),
        pytest.param(
            of(tensor(storage("0", 1 << 60), [3]), storages=[stored(1 << 60, bytes(64))]), DAMAGED,
            "truncated", id="huge",
        ),
        pytest.param(
            of(tensor(storage("0", 1 << 70), [3])), DAMAGED, "unknown reference", id="no count"
        ),
        pytest.param(of(tensor(storage("0", 3), [4])), DAMAGED, "beyond", id="beyond its storage"),
        pytest.param(
            of(tensor(storage("0", 3), [3], offset=1)), DAMAGED, "beyond", id="offset too large"
        ),
        pytest.param(
            of(tensor(storage("0", 3, part=part("7", 2, 2)), [2])), DAMAGED, "part reaches beyond",
            id="part beyond its storage",
        ),
        pytest.param(
            of(tensor(storage("0", 3, part=part("0", 0, 3)), [3])), DAMAGED, "part of itself",
            id="part of itself",
        ),
        pytest.param(
            of(tensor(storage("0", 3, part=part("7", -1, 2)), [2])), DAMAGED, "unknown reference",
            id="part before its storage",
        ),
        pytest.param(
            of(tensor(storage("0", 3, part=hostile.text("7")), [3])), DAMAGED, "unknown reference",
            id="part that is none",
        ),
        pytest.param(
            Legacy(
                content=content(
                    {"a": tensor(storage("0", 3), [3]), "b": tensor(storage("0", 2), [2])}
                )
            ), DAMAGED, "two descriptions", id="one storage of two lengths",
        ),
        pytest.param(
            Legacy(
                content=content(
                    {
                        "a": tensor(storage("0", 3), [3]),
                        "b": tensor(storage("0", 3, "HalfStorage"), [3]),
                    }
                )
            ), DAMAGED, "two descriptions", id="one storage of two types",
        ),
        pytest.param(
            Legacy(
                content=content(
                    {
                        "a": tensor(storage("0", 3, part=part("7", 0, 2)), [2]),
                        "b": tensor(storage("0", 3, part=part("7", 1, 2)), [2]),
                    }
                )
            ), DAMAGED, "two descriptions", id="one part in two places",
        ),
        pytest.param(
            of(tensor(storage("0", 3, "ComplexFloatStorage"), [3])), Reason.UNSUPPORTED_FORMAT,
            "are not supported", id="complex numbers",
        ),
        pytest.param(
            Legacy(rest=b"\0"), DAMAGED, r"bytes follow the last storage \(1 in all\)",
            id="bytes at the end",
        ),
        pytest.param(
            Legacy(content=hostile.SAMPLES["eval"]), Reason.UNSAFE_MODEL, "refused", id="code"
        ),
        pytest.param(
            Legacy(machine=Path("x")), Reason.DAMAGED_FILE, "what machine", id="odd machine"
        ),
        pytest.param(
            Legacy(content=b"\x80\x02X\xff\xff\xff\xff."), DAMAGED, "a text of 4294967295 bytes",
            id="a text longer than the file",
        ),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path, file, reason, what):
    """Each case breaks one rule, which the message names."""
    with pytest.raises(LoaderError, match=what) as caught:
        read(tmp_path / "model.ckpt", bytes(file))
    assert caught.value.reason is reason
    assert "model.ckpt" in caught.value.message


def test_every_truncation_is_refused(tmp_path):
    """A file that is cut off after any byte behind its magic number is refused as damaged."""
    data = bytes(Legacy())
    magic, *ends = accumulate(map(len, Legacy().sections()))
    assert ends[-1] == len(data)
    for length in range(magic, len(data)):
        with pytest.raises(LoaderError) as caught:
            read(tmp_path / "model.ckpt", data[:length])
        assert caught.value.reason is DAMAGED, length


def test_too_many_storages_are_refused(tmp_path):
    """A list of storages with 100,001 keys is refused."""
    file = Legacy(keys=tuple(map(str, range(100_001))))
    with pytest.raises(LoaderError, match=r"100001 storages; at most 100000 are read"):
        read(tmp_path / "model.ckpt", bytes(file))


SEEDS = [
    bytes(Legacy()),
    saved({"a": MATRIX, "b": MATRIX[1:], "state": {"step": 3}}),
    bytes(replace(Legacy(), machine={**MACHINE, "note": "x" * 70_000})),
]


@given(st.sampled_from(SEEDS), st.data())
def test_a_damaged_file_is_refused_or_its_tensors_stay_within_it(tmp_path_factory, seed, data):
    """After any change, the result is a LoaderError, or tensors within the file.

    Reading takes less than 8 MB of memory.
    """
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.mktemp("damaged") / "model.ckpt"
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        opened = open_tensor_file(path)
    except LoaderError:
        pass
    else:
        with opened:
            for one in opened.tensors.values():
                assert one.offset + one.nbytes <= len(damaged)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


def test_the_most_expensive_text_takes_little_memory(tmp_path):
    """Text that needs four bytes per character in memory takes less than LIMIT, 300 MB."""
    text = ("x" * ((15 << 20) - 4) + "\U0001f600").encode()
    push = b"X" + struct.pack("<I", len(text)) + text
    path = tmp_path / "model.ckpt"
    path.write_bytes(bytes(Legacy(content=b"\x80\x02(" + push * 5 + b"t.")))
    tracemalloc.start()
    try:
        with pytest.raises(LoaderError):
            open_tensor_file(path)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
