"""Takes a single file from this machine. Only `sd-loader load` allows this."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sd_api.reasons import Reason
from sd_api.wire import Sha256Missing, Source
from sd_loader.bulk import copy_file
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.net.partial import ensure_space
from sd_loader.source.locate import LocalFile
from sd_loader.source.ref import Checks
from sd_loader.source.single import FILE_NAME, file_format


def take_file(local: LocalFile, checks: Checks, max_bytes: int, into: Path) -> Fetched:
    """Put a local file into the source folder, as a hard link if possible, otherwise as a copy."""
    origin = Path(local.path)
    try:
        source = _source(origin, checks, max_bytes)
    except OSError as error:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND, f"{origin} cannot be read: {error.strerror}"
        ) from error
    path = into / FILE_NAME
    path.unlink(missing_ok=True)
    try:
        os.link(origin.resolve(), path)
    except OSError:
        ensure_space(into, origin.stat().st_size)
        with origin.open("rb") as source_file, path.open("xb") as copy:
            copy_file(source_file.fileno(), copy.fileno())
    return Fetched(kind="file", path=FILE_NAME, source=source)


def _source(origin: Path, checks: Checks, max_bytes: int) -> Source:
    """Check a local file's size and digest, and return the record of the source.

    The digest is computed only if the spec gives one, because this reads the whole file. No other
    step does so: the kernel copies weights that do not change, and the conversion reads only the
    header and the weights that change.
    """
    if not origin.is_file():
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND,
            f"{origin} is not a file, a Hugging Face repo id (ORG/NAME) or an http(s) link",
        )
    size = origin.stat().st_size
    if size > max_bytes:
        raise LoaderError(
            Reason.TOO_LARGE, f"{origin} is {size} bytes; the limit is {max_bytes} bytes"
        )
    sha256 = None
    if checks.sha256 is not None:
        with origin.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != checks.sha256:
            raise LoaderError(
                Reason.DIGEST_MISMATCH, f"{origin} has sha256 {sha256}, not {checks.sha256}"
            )
    return Source(
        sha256=sha256,
        sha256_missing=Sha256Missing.RANGES_ONLY if sha256 is None else None,
        size_bytes=size,
        format=file_format(origin),
    )
