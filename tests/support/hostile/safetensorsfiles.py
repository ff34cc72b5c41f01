"""Safetensors files that each break one rule of the format. The format cannot contain code."""

from __future__ import annotations

import json
from typing import Any

from tests.support.hostile.samples import UNKNOWN, Sample, Samples

A = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
B = {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]}
BOTH = {"a": A, "b": B}
GIGABYTE = 1 << 30
LONGEST = "9" * 4300
"""An integer with as many digits as Python accepts."""


def file_of(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """Return a file with this header (JSON value or raw text); `length` is its stated length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def with_a(**fields: Any) -> bytes:
    """Return a file of two tensors in which the fields of `a` are changed."""
    return file_of({"a": A | fields, "b": B})


def raw_a(**fields: str) -> bytes:
    """Return a file of one tensor in which some fields are given as JSON text."""
    usual = {"dtype": '"F16"', "shape": "[2]", "data_offsets": "[0,4]"} | fields
    entry = ",".join(f'"{key}":{value}' for key, value in usual.items())
    return file_of(f'{{"a":{{{entry}}}}}'.encode(), bytes(4))


GOOD = file_of(BOTH)
_TEXT = json.dumps(BOTH).encode()
_LENGTHS = {
    "of no bytes": file_of(b"", length=0),
    "of one byte": file_of(_TEXT, length=1),
    "one byte too short": file_of(_TEXT, length=len(_TEXT) - 1),
    "one byte too long": file_of(_TEXT, length=len(_TEXT) + 1),
    "as long as the file": file_of(_TEXT, length=len(_TEXT) + 8),
    "longer than the file": file_of(_TEXT, length=len(_TEXT) + 9),
    "of a gigabyte": file_of(_TEXT, length=GIGABYTE),
    "of 2**40 bytes": file_of(_TEXT, length=1 << 40),
    "of 2**63 bytes": file_of(_TEXT, length=1 << 63),
    "of 2**64 - 1 bytes": file_of(_TEXT, length=(1 << 64) - 1),
    "in the other byte order": len(_TEXT).to_bytes(8, "big") + _TEXT + bytes(8),
}
_JSON = {
    "that is a list": file_of(b"{}"[:0] + b'["a"]'),
    "that is cut off": file_of(b'{"a":{"dtype":"F16"'),
    "with a comma too many": file_of(b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},}'),
    "with a comment": file_of(b'{/**/"a":1}'),
    "in single quotes": file_of(b"{'a':1}"),
    "with a second document": file_of(_TEXT + b"{}"),
    "padded with zeros": file_of(_TEXT + b"\0\0\0\0"),
    "that is no UTF-8": file_of(b'{"\xff":1}'),
    "of half a character": file_of(b'{"\xe2\x82":1}'),
    "of an overlong character": file_of(b'{"\xc0\xaf":1}'),
    "of half a surrogate pair": file_of(b'{"\xed\xa0\x80":1}'),
    "in UTF-16": file_of("{}".encode("utf-16-le") + b" \0"),
    "with a line break in a name": file_of(b'{"a\nb":1}'),
    "with Infinity": raw_a(shape="[Infinity]"),
    "with a number of 5,000 digits": raw_a(shape=f"[{'9' * 5000}]"),
    "nested 100,000 deep": file_of(b'{"a":' * 100_000),
    "of lists 100,000 deep": file_of(b'{"a":' + b"[" * 100_000),
}
_NAMES = {
    "the same name": file_of(
        f'{{"a":{json.dumps(A)},"a":{json.dumps(B)}}}'.encode()
    ),
    "the same name, spelt otherwise": file_of(
        f'{{"a":{json.dumps(A)},"\\u0061":{json.dumps(B)}}}'.encode()
    ),
    "two kinds of metadata": file_of(
        f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{json.dumps(A)}}}'.encode(), bytes(4)
    ),
    "two dtypes": raw_a(dtype='"F16","dtype":"F32"'),
    "two shapes": raw_a(shape='[2],"shape":[1]'),
    "two places": raw_a(data_offsets='[0,4],"data_offsets":[0,4]'),
    "one key of metadata twice": file_of(
        f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{json.dumps(A)}}}'.encode(), bytes(4)
    ),
}  # fmt: skip
_SHAPES = {
    "of a negative length": with_a(shape=[-2]),
    "of minus nothing": raw_a(shape="[2]", data_offsets="[-0,4]"),
    "of a fraction": with_a(shape=[2.0]),
    "of text": with_a(shape=["2"]),
    "of truth": with_a(shape=[True, 2]),
    "of nothing": with_a(shape=None),
    "of a number": with_a(shape=2),
    "of a list": with_a(shape=[[2]]),
    "of a dictionary": with_a(shape={"0": 2}),
    "of nine dimensions": with_a(shape=[1] * 9),
    "of 100,000 dimensions": with_a(shape=[1] * 100_000),
    "of one element more": with_a(shape=[3]),
    "of 2**64 elements": with_a(shape=[1 << 64]),
    "whose product is 2**64 and more": with_a(shape=[(1 << 32) + 1, 1 << 32]),
    "whose bytes are 2**64 and four": with_a(shape=[(1 << 63) + 2]),
    "of no elements and all": with_a(shape=[0, 1 << 63]),
    "of as many digits as are read": raw_a(
        dtype='"U8"', shape=f"[{LONGEST}]", data_offsets=f"[0,{LONGEST}]"
    ),
    "of eight numbers of 4,300 digits": raw_a(shape=f"[{','.join([LONGEST] * 8)}]"),
}
_PLACES = {
    "backwards": with_a(data_offsets=[4, 0]),
    "that is half a range": with_a(data_offsets=[0]),
    "of three ends": with_a(data_offsets=[0, 4, 8]),
    "that is negative": with_a(data_offsets=[-4, 0]),
    "that is a fraction": with_a(data_offsets=[0.0, 4.0]),
    "in exponents": raw_a(data_offsets="[0,4e0]"),
    "one byte off": with_a(data_offsets=[1, 5]),
    "behind the file": with_a(data_offsets=[1 << 40, (1 << 40) + 4]),
    "behind 2**64": with_a(data_offsets=[1 << 64, (1 << 64) + 4]),
    "of another": file_of({"a": A, "b": A}),
    "half in another": file_of({"a": A, "b": B | {"data_offsets": [2, 6]}}, bytes(6)),
    "after a hole": file_of({"a": A, "b": B | {"data_offsets": [6, 10]}}, bytes(10)),
    "after a hole at the beginning": file_of({"b": B}),
    "of nothing, amid another": file_of(
        {"a": A, "b": {"dtype": "F16", "shape": [0], "data_offsets": [2, 2]}}, bytes(4)
    ),
    "of nothing, behind the file": file_of(
        {"a": A, "b": {"dtype": "F16", "shape": [0], "data_offsets": [9, 9]}}, bytes(4)
    ),
}
_DTYPES = {
    what: with_a(dtype=dtype)
    for what, dtype in {
        "of four bits": "F4",
        "of six bits": "F6_E2M3",
        "of scales": "F8_E8M0",
        "of complex numbers": "C64",
        "in small letters": "f16",
        "with a space": "F16 ",
        "of torch's name": "torch.float16",
        "of no text": 16,
        "of nothing": None,
        "of a list": ["F16"],
    }.items()
}
_OTHERS: Samples = {
    "no tensors": Sample(file_of({}, b""), "without tensors"),
    "metadata alone": Sample(file_of({"__metadata__": {"a": "b"}}, b""), "without tensors"),
    "metadata of numbers": Sample(file_of({"__metadata__": {"a": 1}, **BOTH}), "strings only"),
    "metadata that is a list": Sample(file_of({"__metadata__": ["a"], **BOTH}), "not a table"),
    "metadata that is nested": Sample(
        file_of({"__metadata__": {"a": {"b": "c"}}, **BOTH}), "strings only"
    ),
    "metadata of half a character": Sample(
        file_of({"__metadata__": {"a": "\ud800"}, **BOTH}), "not valid Unicode"
    ),
    "a key of metadata that is half a character": Sample(
        file_of({"__metadata__": {"\ud800": "a"}, **BOTH}), "not valid Unicode"
    ),
    "a tensor that is a list": Sample(file_of({"a": [], "b": B}), "not exactly"),
    "a tensor with a field more": Sample(with_a(x=1), "not exactly"),
    "a tensor without its shape": Sample(
        file_of({"a": {"dtype": "F16", "data_offsets": [0, 4]}, "b": B}), "not exactly"
    ),
    "a name of nothing": Sample(file_of({"": A, "b": B}), "empty, unprintable or too long"),
    "a name with a zero": Sample(file_of({"a\0": A, "b": B}), "unprintable"),
    "a name that colours the terminal": Sample(file_of({"\x1b[31m": A, "b": B}), "unprintable"),
    "a name that turns the line": Sample(file_of({"a\u202eb": A, "b": B}), "unprintable"),
    "a name of half a character": Sample(file_of({"\ud800": A, "b": B}), "unprintable"),
    "a name of 513 letters": Sample(file_of({"a" * 513: A, "b": B}), "too long"),
    "one byte of data less": Sample(GOOD[:-1], "truncated"),
    "no data": Sample(GOOD[:-8], "truncated"),
    "one byte of data more": Sample(GOOD + b"\0", "bytes follow the last tensor"),
    "itself a second time": Sample(GOOD * 2, "bytes follow the last tensor"),
    "its length alone": Sample(GOOD[:8], "of an unknown kind|plain text"),
    "a byte order mark": Sample(b"\xef\xbb\xbf" + GOOD, "of an unknown kind"),
    "a space before its header": Sample(file_of(b" " + _TEXT), "of an unknown kind"),
}


def _all(what: str, table: dict[str, bytes], says: str) -> Samples:
    return {f"{what} {how}": Sample(content, says) for how, content in table.items()}


_UNREADABLE = (
    "of an unknown kind|safetensors header|truncated|plain text|without tensors|begins with zeros"
)
SAMPLES: Samples = {
    **_all("a header", _LENGTHS, _UNREADABLE),
    **_all("a header", _JSON, _UNREADABLE),
    **_all("twice", _NAMES, "a name occurs twice"),
    **_all("a shape", _SHAPES, "whole numbers|dimensions|dtype and shape need|header|hole"),
    **_all("a place", _PLACES, "not a range|whole numbers|hole or an overlap|bytes"),
    **{
        f"a type {what}": Sample(content, "is unknown|the weights are quantized", UNKNOWN)
        for what, content in _DTYPES.items()
    },
    **_OTHERS,
}
