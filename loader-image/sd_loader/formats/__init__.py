"""Files of tensors: identifies a file and finds its tensors. Does not read the weights."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.formats.safetensors import read_header
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify
from sd_loader.formats.state_dict import bare_names
from sd_loader.formats.torchlegacy import read_legacy
from sd_loader.formats.torchzip import read_archive
from sd_loader.formats.zipdir import Record
from sd_loader.tensors import TensorFile

__all__ = ["CKPT", "SAFETENSORS", "open_tensor_file"]

SAFETENSORS = "safetensors"
CKPT = "ckpt"

_NOTHING: Mapping[str, Record] = {}


def open_tensor_file(path: Path, foreseen: Mapping[str, Record] = _NOTHING) -> TensorFile:
    """Open a model file, whatever its name. Refuse any other file, and a file that could run code.

    foreseen: members of a torch archive whose local headers are not downloaded yet (`outline`).
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND,
            f"{path.name}: {error.strerror}",
            remedy="Give the path of a file that exists and that you may read.",
        ) from error
    try:
        file = _read(path, fd, foreseen)
        return replace(file, tensors=bare_names(file.tensors))
    except LoaderError as error:
        os.close(fd)
        raise LoaderError(error.reason, f"{path.name}: {error.message}") from None
    except BaseException:
        os.close(fd)
        raise


def _read(path: Path, fd: int, foreseen: Mapping[str, Record]) -> TensorFile:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise LoaderError(Reason.NOT_A_MODEL, "not a regular file")
    size = state.st_size
    container = identify(read_at(fd, 0, min(HEAD_BYTES, size)), size)
    if container is Container.SAFETENSORS:
        tensors, metadata = read_header(fd, size)
        left_out = metadata.left_out
        return TensorFile(path, fd, SAFETENSORS, tensors, metadata.entries, left_out=left_out)
    if container is Container.ZIP:
        return TensorFile(path, fd, CKPT, *read_archive(fd, size, foreseen))
    return TensorFile(path, fd, CKPT, *read_legacy(fd, size))
