"""Decodes the objects that kubectl and Helm send only as protobuf.

kubectl sends Namespaces and Secrets in protobuf, Helm sends DeleteOptions.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from sd_operator.standalone.errors import Json, bad_request

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_Field = tuple[str, Callable[[bytes], Any]]


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and content of each length-delimited field.

    Skip integer fields; raise ValueError for other wire types.
    """
    offset = 0

    def varint() -> int:
        nonlocal offset
        result = shift = 0
        while True:
            byte = data[offset]
            offset += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while offset < len(data):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            if offset + size > len(data):
                raise IndexError(offset)
            yield tag >> 3, data[offset : offset + size]
            offset += size
        elif tag & 7 != 0:
            raise ValueError(tag)


def _message(fields: Mapping[int, _Field], data: bytes) -> Json:
    result: Json = {}
    for number, content in _parts(data):
        name, decode = fields.get(number, ("", bytes.decode))
        value = decode(content) if name else ""
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] |= value
        elif name and value != "":
            result[name] = value
    return result


def _entry(decode: Callable[[bytes], str], data: bytes) -> dict[str, str]:
    """Decode one entry of a protobuf map: a key and a value."""
    pair = dict(_parts(data))
    return {pair.get(1, b"").decode(): decode(pair.get(2, b""))}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_TEXTS = partial(_entry, bytes.decode)
_META: dict[int, _Field] = {
    1: ("name", bytes.decode),
    2: ("generateName", bytes.decode),
    3: ("namespace", bytes.decode),
    11: ("labels", _TEXTS),
    12: ("annotations", _TEXTS),
}
_PRECONDITIONS: dict[int, _Field] = {1: ("uid", bytes.decode), 2: ("resourceVersion", bytes.decode)}
_KINDS: dict[str, dict[int, _Field]] = {
    "Namespace": {1: ("metadata", partial(_message, _META))},
    "Secret": {
        1: ("metadata", partial(_message, _META)),
        2: ("data", partial(_entry, _base64)),
        3: ("type", bytes.decode),
        4: ("stringData", _TEXTS),
    },
    "DeleteOptions": {
        2: ("preconditions", partial(_message, _PRECONDITIONS)),
        4: ("propagationPolicy", bytes.decode),
    },
}


def decode(body: bytes) -> Json:
    """Return the object in a protobuf request body; raise 400 for another kind or invalid data."""
    try:
        envelope = dict(_parts(body.removeprefix(_MAGIC)))
        kind = dict(_parts(envelope[1]))
        version, name = kind[1].decode(), kind[2].decode()
        item = _message(_KINDS[name], envelope.get(2, b""))
    except (IndexError, KeyError, ValueError) as error:
        text = "protobuf is supported only for some kinds; use kubectl apply -f FILE instead"
        raise bad_request(text) from error
    return {"apiVersion": version, "kind": name, **item}
