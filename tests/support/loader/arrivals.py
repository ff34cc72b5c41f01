"""Records of files as if they had been downloaded, and a count of the bytes that are read."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from pathlib import Path

from sd_loader.digests import blake3_of
from sd_loader.handover import Arrived


def arrived_in(
    folder: Path, root: Path | None = None, names: Container[str] | None = None
) -> dict[str, Arrived]:
    """Return the records of files in a folder, as if they had been downloaded.

    root: the folder to which the paths in the result are relative; `folder` by default.
    names: the paths in `folder` of the files to record; all files by default.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (names is None or path.relative_to(folder).as_posix() in names):
            content, name = path.read_bytes(), path.relative_to(root or folder).as_posix()
            found[name] = Arrived(
                blake3_of(content),
                len(content),
                path.stat().st_mtime_ns,
                hashlib.sha256(content).hexdigest(),
            )
    return found


def bytes_read() -> int:
    """Return how many bytes this process has read, as the kernel counts them."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])
