"""A file is identified by its first bytes."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify

LFS_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 4265380512
"""
LOGIN_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><title>Sign in \xc2\xb7 Civitai</title></head><body>\xe2\x80\xa6</body></html>
"""
SIGN_UP = b'{"error":"Unauthorized","message":"The creator requires you to be logged in"}'


@pytest.mark.parametrize(
    ("head", "container"),
    [
        pytest.param(b"\x40\0\0\0\0\0\0\0{", Container.SAFETENSORS, id="safetensors"),
        pytest.param(b"PK\x03\x04\0\0", Container.ZIP, id="zip"),
        pytest.param(
            pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"\x80\x02M\xe9\x03.",
            Container.LEGACY_TORCH,
            id="torch before 1.6",
        ),
    ],
)
def test_a_model_file_is_identified_by_its_magic_bytes(head, container):
    """Each container is identified by the bytes that it begins with."""
    assert identify(head, len(head)) is container


@pytest.mark.parametrize(
    ("head", "reason", "what"),
    [
        pytest.param(b"", Reason.NOT_A_MODEL, "the file is empty", id="empty"),
        pytest.param(LOGIN_PAGE, Reason.NOT_A_MODEL, "is an HTML page$", id="HTML"),
        pytest.param(b"\xef\xbb\xbf \n<html>", Reason.NOT_A_MODEL, "an HTML page", id="HTML, BOM"),
        pytest.param(
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            Reason.NOT_A_MODEL,
            "an XML document",
            id="XML",
        ),
        pytest.param(SIGN_UP, Reason.NOT_A_MODEL, "is a JSON document$", id="JSON"),
        pytest.param(b'{"a": [', Reason.NOT_A_MODEL, "a JSON document", id="JSON, cut"),
        pytest.param(b"[" * 4000, Reason.NOT_A_MODEL, "a JSON document", id="JSON, nested"),
        pytest.param(LFS_POINTER, Reason.NOT_A_MODEL, "a Git LFS pointer", id="LFS pointer"),
        pytest.param(b"Not Found", Reason.NOT_A_MODEL, "plain text of 9 bytes", id="text"),
        pytest.param(b"PK\x05\x06" + bytes(18), Reason.NOT_A_MODEL, "empty zip", id="empty zip"),
        pytest.param(b"\x1f\x8b\x08", Reason.NOT_A_MODEL, "a gzip archive", id="gzip"),
        pytest.param(b"unet" + bytes(253) + b"ustar\0", Reason.NOT_A_MODEL, "a tar", id="tar"),
        pytest.param(b"7z\xbc\xaf\x27\x1c", Reason.NOT_A_MODEL, "a 7z archive", id="7z"),
        pytest.param(b"Rar!\x1a\x07\x01", Reason.NOT_A_MODEL, "a RAR archive", id="rar"),
        pytest.param(b"\x89PNG\r\n\x1a\n", Reason.NOT_A_MODEL, "a PNG image", id="PNG"),
        pytest.param(b"\xff\xd8\xff\xe0", Reason.NOT_A_MODEL, "a JPEG image", id="JPEG"),
        pytest.param(b"RIFF\1\2\3\4WEBP", Reason.NOT_A_MODEL, "a WebP image", id="WebP"),
        pytest.param(b"\x7fELF\x02", Reason.NOT_A_MODEL, "a program", id="ELF"),
        pytest.param(b"\xc3\x28\xa0\xff" * 9, Reason.NOT_A_MODEL, "c3 28 a0 ff", id="anything"),
        pytest.param(bytes(5000), Reason.DAMAGED_FILE, "begins with zeros: its down", id="zeros"),
        pytest.param(
            b"\x40\3\0\0\0\0\0\0" + bytes(99), Reason.DAMAGED_FILE, "zeros", id="zeros, length"
        ),
        pytest.param(bytes(8), Reason.NOT_A_MODEL, "00 00 00 00", id="too few zeros"),
        pytest.param(b"\x40\0\0\0", Reason.NOT_A_MODEL, "40 00 00 00", id="too short"),
        pytest.param(
            b"GGUF\x03\0\0\0",
            Reason.UNSUPPORTED_FORMAT,
            "the file is a GGUF file; use a version of the model in fp16, bf16 or fp32",
            id="GGUF",
        ),
        pytest.param(b"\x89HDF\r\n\x1a\n", Reason.UNSUPPORTED_FORMAT, "HDF5", id="HDF5"),
        pytest.param(b"\x08\x07\x12\x07pytorch", Reason.UNSUPPORTED_FORMAT, "ONNX", id="ONNX"),
        pytest.param(pickle.dumps([1]), Reason.UNSAFE_MODEL, "a bare Python pickle", id="pickle"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused_with_its_kind(tmp_path, head, reason, what):
    """The message names the kind of file, both for a file and for the head of a download."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(head)
    with pytest.raises(LoaderError, match=what) as from_file:
        open_tensor_file(path)
    with pytest.raises(LoaderError, match=what) as from_head:
        identify(head[:HEAD_BYTES], len(head))
    assert from_file.value.reason is from_head.value.reason is reason


def test_a_pages_title_cannot_break_the_message():
    """The bytes may come from any host, so the message names only the kind of file."""
    page = b"<html><title>\x1b[31mred\nalert\x00" + b"!" * 500 + b"</title>"
    with pytest.raises(LoaderError) as caught:
        identify(page.replace(b"\x00", b""), len(page))
    assert caught.value.message == "the file is an HTML page"


@pytest.mark.parametrize(
    ("make", "reason", "what"),
    [
        pytest.param(lambda _: None, Reason.SOURCE_NOT_FOUND, "No such file", id="missing"),
        pytest.param(
            lambda path: path.mkdir(), Reason.NOT_A_MODEL, "not a regular file", id="folder"
        ),
    ],
)
def test_a_path_that_is_not_a_file_is_refused(tmp_path, make, reason, what):
    """The message says that the path does not exist, or is not a regular file."""
    path = tmp_path / "model.ckpt"
    make(path)
    with pytest.raises(LoaderError, match=f"model.ckpt: {what}") as caught:
        open_tensor_file(path)
    assert caught.value.reason is reason


def test_a_pipe_does_not_hang_the_loader(tmp_path):
    """A FIFO is refused, whereas a plain open would wait for ever for a writer."""
    os.mkfifo(tmp_path / "model.ckpt")
    with pytest.raises(LoaderError, match="not a regular file"):
        open_tensor_file(tmp_path / "model.ckpt")


@given(st.binary(max_size=300))
def test_any_bytes_are_identified_or_refused(head):
    """Any bytes are identified as a container, or refused with a printable message."""
    try:
        answer = identify(head, len(head)).value
    except LoaderError as error:
        answer = error.message
    assert answer.isprintable()
