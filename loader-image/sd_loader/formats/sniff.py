"""Identifies a file by its first bytes. Its name and its Content-Type do not matter."""

from __future__ import annotations

import re
from enum import Enum

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.safetensors import LENGTH_BYTES

HEAD_BYTES = 4096
"""Number of first bytes of a file that `identify` needs."""

LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
ZIP_MAGIC = b"PK\x03\x04"
TAR_MAGIC = (257, b"ustar")
_UPPER = slice(LENGTH_BYTES - 3, LENGTH_BYTES)
"""The upper bytes of the length of a safetensors header. They are 0 below a terabyte."""


class Container(Enum):
    """The kinds of file that can hold a model."""

    SAFETENSORS = "safetensors"
    ZIP = "zip"
    LEGACY_TORCH = "legacy torch"


_OTHER_MODELS = (
    (b"GGUF", "a GGUF file; use a version of the model in fp16, bf16 or fp32"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 (Keras) file"),
    *((bytes((8, version, 0x12)), "an ONNX file") for version in range(3, 12)),
    (b"\x93NUMPY", "a NumPy array"),
)
_NO_MODELS = (
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file it names"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (*TAR_MAGIC, "a tar archive"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x7fELF", "a program (ELF)"),
)
_MARKUP = re.compile(r"<(!doctype html|html|head|body)\b", re.IGNORECASE)


def identify(head: bytes, size: int) -> Container:
    """Return the kind of a file with this head and size. Refuse a file that is not a model.

    The message names the kind of file. It quotes nothing, because the file may come from a host
    inside the cluster's network.
    """
    if not size:
        raise LoaderError(Reason.NOT_A_MODEL, "the file is empty")
    if head.startswith(ZIP_MAGIC):
        return Container.ZIP
    if head.startswith(LEGACY_TORCH_MAGIC):
        return Container.LEGACY_TORCH
    if head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and not any(head[_UPPER]):
        return Container.SAFETENSORS
    for magic, what in _OTHER_MODELS:
        if head.startswith(magic):
            raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {what}")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise LoaderError(
            Reason.UNSAFE_MODEL, "the file is a bare Python pickle, not written by torch.save"
        )
    name = _name(head, size)
    if name is not None:
        raise LoaderError(Reason.NOT_A_MODEL, f"the file is {name}")
    # The first bytes may be the length of a safetensors header that did not arrive.
    if len(head) > LENGTH_BYTES and not any(head[LENGTH_BYTES:]) and not any(head[_UPPER]):
        raise LoaderError(
            Reason.DAMAGED_FILE,
            "the file begins with zeros: its download or upload was probably interrupted",
        )
    raise LoaderError(
        Reason.NOT_A_MODEL,
        f"the file is of an unknown kind (it begins with the bytes {head[:8].hex(' ')})",
    )


def _name(head: bytes, size: int) -> str | None:
    """Name the kind of a file that is not a model. None if it is unknown."""
    for offset, magic, what in _NO_MODELS:
        if head.startswith(magic, offset):
            return what
    text = _text(head)
    if text is None:
        return None
    if _MARKUP.search(text):
        return "an HTML page"
    if text.startswith("<"):
        return "an XML document"
    if text.startswith(("{", "[")):
        return "a JSON document"
    return f"plain text of {size} bytes"


def _text(head: bytes) -> str | None:
    """Decode the head as text. None if it is binary. A cut-off last character is ignored."""
    text = head.decode("utf-8-sig", errors="ignore")
    if "\0" in text or len(text.encode()) < len(head) - 6:
        return None
    return text.lstrip()
