"""Files of tensors: what they are and where their tensors lie. No weights are read here."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.formats.safetensors import read_header
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify
from sd_loader.formats.torchlegacy import read_legacy
from sd_loader.formats.torchzip import read_archive
from sd_loader.tensors import TensorFile

__all__ = ["CKPT", "SAFETENSORS", "open_tensor_file"]

SAFETENSORS = "safetensors"
CKPT = "ckpt"


def open_tensor_file(path: Path) -> TensorFile:
    """Open a model file, whatever its name; what is no model, or could run code, is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except OSError as error:
        raise LoaderError(Reason.SOURCE_NOT_FOUND, f"{path.name}: {error.strerror}") from error
    try:
        return _read(path, fd)
    except LoaderError as error:
        os.close(fd)
        raise LoaderError(error.reason, f"{path.name}: {error.message}") from None
    except BaseException:
        os.close(fd)
        raise


def _read(path: Path, fd: int) -> TensorFile:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise LoaderError(Reason.NOT_A_MODEL, "no regular file")
    size = state.st_size
    container = identify(read_at(fd, 0, min(HEAD_BYTES, size)), size)
    if container is Container.SAFETENSORS:
        return TensorFile(path, fd, SAFETENSORS, *read_header(fd, size))
    if container is Container.ZIP:
        return TensorFile(path, fd, CKPT, *read_archive(fd, size))
    return TensorFile(path, fd, CKPT, *read_legacy(fd, size))
