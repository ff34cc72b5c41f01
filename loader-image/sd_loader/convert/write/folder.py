"""Writes a planned folder, and links the source files that equal planned files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.bulk import copy_file
from sd_loader.convert.write.files import CopiedFile, FolderPlan, WeightsFile
from sd_loader.convert.write.writer import write_folder
from sd_loader.digests import blake3_of_file
from sd_loader.errors import LoaderError
from sd_loader.handover import Arrived, FileDigest
from sd_loader.progress import Report
from sd_loader.storage_errors import storage_errors
from sd_loader.tensors import Tensor, TensorFile


def write_or_link(
    plan: FolderPlan,
    sources: Mapping[int, TensorFile],
    arrived: Mapping[Path, Arrived],
    out: Path,
    report: Report,
) -> Mapping[str, FileDigest]:
    """Write or link the planned files beneath `out`, which is empty. Return their digests.

    sources: the open files of the weights, by their descriptors. arrived: the files whose digests
    are known. Only these are linked, so that no file is read only for its digest.
    """
    digests = {}
    for file in plan.weights:
        digest = _link(file, sources, arrived, out)
        if digest is not None:
            digests[file.path] = digest
    for copied in plan.copied:
        digests[copied.path] = _take(copied, arrived, out)
    to_write = [file for file in plan.files if file.path not in digests]
    digests.update(write_folder(out, to_write, report, sources.values()))
    return dict(sorted(digests.items()))


def _link(
    file: WeightsFile, sources: Mapping[int, TensorFile], arrived: Mapping[Path, Arrived], out: Path
) -> FileDigest | None:
    """Link a source file that equals the planned file. Return its digest, or None."""
    fds = {part.fd for item in file.items for part in item.source.parts}
    if len(fds) != 1:
        return None
    fd = fds.pop()
    digest = _known_digest(arrived.get(sources[fd].path), os.fstat(fd))
    if digest is None or digest.size != file.size:
        return None
    if os.pread(fd, len(file.header), 0) != file.header:
        return None
    position = len(file.header)
    for item in file.items:
        tensor = item.source
        if not isinstance(tensor, Tensor) or tensor.offset != position:
            return None
        if item.dtype is not tensor.dtype:
            return None
        position += item.nbytes
    path = out / file.path
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.link(sources[fd].path, path)
    except OSError:
        return None  # no hard links on this volume: the file is written
    return digest


def _take(file: CopiedFile, arrived: Mapping[Path, Arrived], out: Path) -> FileDigest:
    """Link a file of the source, or copy it if this volume has no hard links. Return its digest."""
    path = out / file.path
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.link(file.source, path)
    except OSError:
        with (
            storage_errors(file.path),
            file.source.open("rb") as source,
            path.open("xb") as copy,
        ):
            copy_file(source.fileno(), copy.fileno())
    with path.open("rb") as published:
        status = os.fstat(published.fileno())
        if status.st_size != file.size:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{file.path} has {status.st_size} bytes instead of {file.size}: the source changed"
                " during the load",
            )
        known = _known_digest(arrived.get(file.source), status)
        return known or FileDigest(blake3_of_file(published.fileno()), status.st_size)


def _known_digest(arrived: Arrived | None, status: os.stat_result) -> FileDigest | None:
    """Return the digest that was taken on arrival. None if the file may have changed since."""
    if arrived is None or (arrived.size, arrived.mtime_ns) != (status.st_size, status.st_mtime_ns):
        return None
    return FileDigest(arrived.blake3, arrived.size)
