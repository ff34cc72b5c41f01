"""What is sent as protobuf only: Namespaces and Secrets by kubectl, DeleteOptions by Helm."""

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
    """Number and content of each length-delimited field; the kinds here use no others."""
    at = 0

    def varint() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while at < len(data):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            if at + size > len(data):
                raise IndexError(at)
            yield tag >> 3, data[at : at + size]
            at += size
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
    """One entry of a map."""
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
    """The object in a request's body."""
    try:
        envelope = dict(_parts(body.removeprefix(_MAGIC)))
        kind = dict(_parts(envelope[1]))
        version, name = kind[1].decode(), kind[2].decode()
        item = _message(_KINDS[name], envelope.get(2, b""))
    except (IndexError, KeyError, ValueError) as error:
        text = "protobuf is read for Namespaces and Secrets only: use kubectl apply -f FILE"
        raise bad_request(text) from error
    return {"apiVersion": version, "kind": name, **item}
