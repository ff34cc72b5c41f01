"""Writes a planned folder, and links the source files that equal planned files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sd_loader.bulk import copy_file
from sd_loader.convert.write.files import CopiedFile, FolderPlan, WeightsFile
from sd_loader.convert.write.writer import write_folder
from sd_loader.handover import FileDigest
from sd_loader.progress import Report
from sd_loader.storage_errors import storage_errors
from sd_loader.tensors import TensorFile


def write_or_link(
    plan: FolderPlan, sources: Mapping[int, TensorFile], out: Path, report: Report
) -> Mapping[str, FileDigest]:
    """Write or link the planned files beneath `out`, which is empty. Return their digests.

    sources: the open files of the weights, by their descriptors.
    """
    linked = {file.path for file in plan.weights if _link(file, sources, out)}
    for copied in plan.copied:
        _take(copied, out)
        linked.add(copied.path)
    to_write = [file for file in plan.files if file.path not in linked]
    digests = dict(write_folder(out, to_write, report, sources.values()))
    digests.update(_digests(out, linked))
    return dict(sorted(digests.items()))


def _link(file: WeightsFile, sources: Mapping[int, TensorFile], out: Path) -> bool:
    """Link a source file that equals the planned file. Return whether it was linked."""
    fds = {item.source.fd for item in file.items}
    if len(fds) != 1:
        return False
    fd = fds.pop()
    if os.fstat(fd).st_size != file.size or os.pread(fd, len(file.header), 0) != file.header:
        return False
    position = len(file.header)
    for item in file.items:
        if item.source.offset != position or item.dtype is not item.source.dtype:
            return False
        position += item.nbytes
    path = out / file.path
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.link(sources[fd].path, path)
    except OSError:
        return False  # no hard links on this volume: the file is copied
    return True


def _take(file: CopiedFile, out: Path) -> None:
    """Link a file of the source, or copy it if this volume has no hard links."""
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


def _digests(out: Path, names: Iterable[str]) -> dict[str, FileDigest]:
    ordered = sorted(names)
    with ThreadPoolExecutor(2, "digest") as pool:
        return dict(zip(ordered, pool.map(lambda name: _digest(out / name), ordered), strict=True))


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(digest, os.fstat(file.fileno()).st_size)
