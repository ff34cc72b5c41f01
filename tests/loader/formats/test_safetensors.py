"""The loader reads safetensors files as the library does, and none that the library refuses."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.safetensors import LONGEST_HEADER, MAX_HEADER

TENSORS = {
    "double": torch.arange(3, dtype=torch.float64),
    "float": torch.randn(2, 3),
    "half": torch.randn(4).half(),
    "bfloat": torch.randn(4).bfloat16(),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "float8 e5m2": torch.randn(4).to(torch.float8_e5m2),
    "long": torch.arange(3),
    "int": torch.arange(3, dtype=torch.int32),
    "short": torch.arange(3, dtype=torch.int16),
    "char": torch.arange(3, dtype=torch.int8),
    "byte": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
}

A = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
B = {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]}


def file_of(header: object, data: bytes = bytes(8)) -> bytes:
    """Return a safetensors file with any header (JSON value or raw text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_are_found_where_the_library_put_them(tmp_path):
    """Names, types, shapes, bytes and metadata are those that the library wrote."""
    path = tmp_path / "model.bin"
    save_file(TENSORS, path, {"modelspec.title": "a model"})
    with open_tensor_file(path) as opened:
        assert opened.format == "safetensors"
        assert opened.metadata == {"modelspec.title": "a model"}
        assert opened.tensors.keys() == TENSORS.keys()
        for name, tensor in opened.tensors.items():
            expected = TENSORS[name]
            data = os.pread(tensor.fd, tensor.nbytes, tensor.offset)
            assert tensor.shape == expected.shape
            assert tensor.strides is None
            assert data == bytes(expected.reshape(-1).view(torch.uint8).tolist()), name


def test_a_padded_header_is_read(tmp_path):
    """Tensors are found behind a header that ends with spaces, which writers add as padding."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(json.dumps({"a": A, "b": B}).encode() + b"    "))
    with open_tensor_file(path) as opened:
        assert sorted(opened.tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "reason", "what"),
    [
        pytest.param(
            file_of({"a": A, "b": B})[:-3], Reason.DAMAGED_FILE,
            "ends after 135 of 138 bytes", id="data cut off",
        ),
        pytest.param(
            file_of({"a": A, "b": B})[:50], Reason.DAMAGED_FILE,
            "ends after 50 of at least 130 bytes", id="header cut off",
        ),
        pytest.param(
            file_of({"a": A, "b": B}) + b"more", Reason.DAMAGED_FILE,
            r"bytes follow the last tensor \(4 in all\)", id="bytes added",
        ),
        pytest.param(
            (LONGEST_HEADER + 1).to_bytes(8, "little") + b"{", Reason.DAMAGED_FILE,
            "a safetensors header of", id="huge header",
        ),
        pytest.param(
            file_of(b'{"a":"' + b"x" * MAX_HEADER + b'"}'), Reason.DAMAGED_FILE,
            "besides its metadata; at most", id="long header",
        ),
        pytest.param(file_of(b"{]"), Reason.DAMAGED_FILE, "damaged", id="no JSON"),
        pytest.param(file_of(b'{"a":NaN}'), Reason.DAMAGED_FILE, "NaN is not valid JSON", id="NaN"),
        pytest.param(file_of(b'{"a":"\xff"}'), Reason.DAMAGED_FILE, "damaged", id="no UTF-8"),
        pytest.param(file_of(b"{" * 50), Reason.DAMAGED_FILE, "damaged", id="braces"),
        pytest.param(
            file_of(b'{"a":' + b"[" * 100_000), Reason.DAMAGED_FILE, "damaged", id="deeply nested"
        ),
        pytest.param(
            file_of(b'{"a":' + b"9" * 5000 + b"}"), Reason.DAMAGED_FILE, "damaged", id="long number"
        ),
        pytest.param(
            file_of(b'{"a":%b,"a":%b}' % (json.dumps(A).encode(), json.dumps(B).encode())),
            Reason.DAMAGED_FILE, "a name occurs twice", id="name twice",
        ),
        pytest.param(
            file_of(b'{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
            Reason.DAMAGED_FILE, "a name occurs twice", id="field twice",
        ),
        pytest.param(file_of({}, b""), Reason.NOT_A_MODEL, "without tensors", id="nothing"),
        pytest.param(
            file_of({"__metadata__": {"a": 1}, "a": A, "b": B}), Reason.DAMAGED_FILE,
            "allows strings only: save the file again", id="metadata of numbers",
        ),
        pytest.param(
            file_of({"a": A | {"x": 1}, "b": B}), Reason.DAMAGED_FILE,
            "not exactly", id="field more",
        ),
        pytest.param(file_of({"a": [], "b": B}), Reason.DAMAGED_FILE, "not exactly", id="a list"),
        pytest.param(
            file_of({"a": A | {"dtype": "F4"}, "b": B}), Reason.UNSUPPORTED_FORMAT,
            r"quantized \(fp4\)", id="dtype of quantized weights",
        ),
        pytest.param(
            file_of({"a": A | {"dtype": "C64"}, "b": B}), Reason.UNSUPPORTED_FORMAT,
            "dtype C64 is unknown", id="dtype",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [-2]}, "b": B}), Reason.DAMAGED_FILE,
            "whole numbers", id="negative shape",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [2.0]}, "b": B}), Reason.DAMAGED_FILE,
            "whole numbers", id="fractional shape",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [True, 2]}, "b": B}), Reason.DAMAGED_FILE,
            "whole numbers", id="boolean shape",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [1] * 9}, "b": B}), Reason.DAMAGED_FILE,
            "9 dimensions", id="rank",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [3]}, "b": B}), Reason.DAMAGED_FILE,
            "need 6 bytes, but data_offsets have 4", id="shape against bytes",
        ),
        pytest.param(
            file_of({"a": A | {"shape": [2**63, 2**63]}, "b": B}), Reason.DAMAGED_FILE,
            "bytes, but data_offsets have 4", id="shape that overflows 64 bits",
        ),
        pytest.param(
            file_of({"a": A | {"data_offsets": [4, 0]}, "b": B}), Reason.DAMAGED_FILE,
            "not a range", id="backward range",
        ),
        pytest.param(
            file_of({"a": A | {"data_offsets": [0]}, "b": B}), Reason.DAMAGED_FILE,
            "not a range", id="half a range",
        ),
        pytest.param(
            file_of({"a": A, "b": A}), Reason.DAMAGED_FILE, "a hole or an overlap", id="overlap"
        ),
        pytest.param(
            file_of({"a": A, "b": B | {"data_offsets": [6, 10]}}, bytes(10)), Reason.DAMAGED_FILE,
            "a hole or an overlap", id="hole",
        ),
        pytest.param(
            file_of({"a\u0000b": A, "b": B}), Reason.DAMAGED_FILE, "unprintable", id="NUL in a name"
        ),
        pytest.param(
            file_of({"a" * 600: A, "b": B}), Reason.DAMAGED_FILE, "too long", id="long name"
        ),
    ],
)  # fmt: skip
def test_a_file_that_deviates_from_the_format_is_refused(tmp_path, content, reason, what):
    """Each case breaks one rule of the format, which the message names."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoaderError, match=what) as caught:
        open_tensor_file(path)
    assert caught.value.reason is reason


VALID = save({name: TENSORS[name] for name in ("float", "half", "long", "empty")}, {"k": "v"})


@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(tmp_path_factory, data):
    """After any change, the result is a LoaderError, or the tensors that the library reads."""
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content)
    try:
        opened = open_tensor_file(path)
    except LoaderError:
        return
    with opened:
        ours = {name: list(tensor.shape) for name, tensor in opened.tensors.items()}
    try:
        with safe_open(path, "pt") as theirs:
            shapes = {name: theirs.get_slice(name).get_shape() for name in theirs.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        pytest.fail(f"we read what the library refuses: {error}")
    assert ours == shapes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            file_of({"a": A, "b": B}) + b"more",
            "model.safetensors: bytes follow the last tensor (4 in all)",
            id="bytes behind the last tensor",
        ),
        pytest.param(
            file_of({"a": A, "b": B})[:-3],
            "model.safetensors: truncated: it ends after 135 of 138 bytes",
            id="truncated",
        ),
        pytest.param(
            file_of({"__metadata__": {"step": 100}, "a": A, "b": B}),
            "model.safetensors: the safetensors metadata has 100 as step, and the format allows"
            " strings only: save the file again with strings",
            id="numeric metadata",
        ),
    ],
)
def test_damaged_file_must_be_uploaded_again(tmp_path, content, message):
    """The reason is DAMAGED_FILE, whose remedy is to upload the original again.

    The safetensors library refuses these files, too.
    """
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(LoaderError) as caught:
        open_tensor_file(path)
    assert (caught.value.reason, caught.value.message) == (Reason.DAMAGED_FILE, message)
    assert "upload the original again" in Reason.DAMAGED_FILE.remedy
