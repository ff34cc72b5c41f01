"""Converts a link's file while it is downloaded.

The outline (the description of the tensors) is downloaded first, and the conversion is planned from
it. Then only the ranges that the plan needs are downloaded and written to their places. A later
process continues after the bytes that a record counts as written. If the server cannot serve ranges
of one version of the file, the file is downloaded first instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.spec import Verify
from sd_api.wire import Progress, Sha256Missing, Source, Stage
from sd_loader.convert.write.files import FolderPlan, WeightsFile
from sd_loader.convert.write.streaming import StreamedFolder
from sd_loader.convert.write.verify import verify_folder
from sd_loader.convert.write.wants import GAP_BYTES, Wants, wants_of
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.outline import Outline, Range, bring_outline
from sd_loader.handover import Converted
from sd_loader.net.ranges import RemoteFile
from sd_loader.ordered_digest import OrderedSha256
from sd_loader.progress import Report
from sd_loader.source.ref import Checks
from sd_loader.tensors import TensorFile

LEAST_BYTES = 16 << 20
"""A smaller file is downloaded as a whole: requests for its ranges would take longer."""
UNNEEDED_BYTES = 10**9
"""With `Checks.may_skip`, unneeded bytes are left out if there are more than this."""
_OUTLINE = "download"
"""The file name of a finished download, because error messages begin with the file name."""
_RECORD = ".streamed.json"
"""The record lies in the folder that it describes, so that both are removed together."""


@dataclass(frozen=True)
class IncomingFile:
    """A remote file whose outline is downloaded: its tensors are known, but not their bytes."""

    remote: RemoteFile

    file: TensorFile
    """The outline, opened as if it were the whole file."""

    checks: Checks
    """The checks of the whole file, with the expected SHA-256 if it is known."""

    _outline: Outline
    _digest: OrderedSha256
    _fd: int
    _is_new: bool
    """Whether this is the first process that streams this file."""

    def convert(
        self,
        plan: FolderPlan,
        others: Iterable[TensorFile],
        verify: Verify,
        out: Path,
        report: Report,
    ) -> tuple[Converted, Source]:
        """Download the ranges that the plan needs and write the converted folder to `out`.

        Raise LoaderError if the file does not have the expected SHA-256.

        others: open files that the plan also takes tensors from. `out` may contain unfinished files
        of an earlier process, which this process completes.
        """
        wants, headers = _wants(plan, self.file, self._outline)
        record = _Record(out / _RECORD, _key(self.remote, plan, wants))
        if self._is_new or not record.done():
            _clear(out)
        sources = [self.file, *others]
        with StreamedFolder(out, plan.files, wants, sources, self._fd, record) as folder:
            missing = self._sha256_missing(wants, folder.begin)
            if missing is None:
                at_hand = self._digest.kept()
                ranges = wants.ranges_of_all(at_hand, self.remote.size)
                _bring(self.remote, ranges, wants, folder, report, self._digest)
            else:
                _bring(self.remote, wants.ranges(folder.begin), wants, folder, report)
            files = folder.finish()
        source = self._source(missing)
        for name in headers:
            self._outline.confirm(self._fd, name)
        record.path.unlink(missing_ok=True)
        verify_folder(out, plan, verify, report)
        return plan.converted(files), source

    def _sha256_missing(self, wants: Wants, begin: int) -> Sha256Missing | None:
        """Return why the file's SHA-256 cannot be taken. None if all its bytes are downloaded.

        begin: how many wants an earlier process wrote.
        """
        skipped = wants.skipped(self._digest.kept(), self.remote.size)
        is_needed = self.checks.sha256 is not None and not (
            self.checks.may_skip and sum(end - start for start, end in skipped) > UNNEEDED_BYTES
        )
        if not is_needed and any(end - start > GAP_BYTES for start, end in skipped):
            return Sha256Missing.RANGES_ONLY
        return Sha256Missing.RESUMED if begin else None

    def _source(self, missing: Sha256Missing | None) -> Source:
        """Return the file's digest, size and format. Refuse a digest that is not as expected."""
        found = None if missing else self._digest.hexdigest()
        expected = self.checks.sha256
        if found is not None and expected not in (None, found):
            raise LoaderError(
                Reason.DIGEST_MISMATCH,
                f"{redact_url(self.remote.resource.url)} has sha256 {found}, not {expected}",
            )
        return Source(
            sha256=found,
            sha256_missing=missing,
            size_bytes=self.remote.size,
            format=self.file.format,
        )


@contextmanager
def open_incoming(remote: RemoteFile, into: Path, checks: Checks) -> Iterator[IncomingFile | None]:
    """Download a remote file's outline. Yield None if the whole file must be downloaded first.

    into: folder for the outline. checks: if they have the file's digest, an interrupted load is not
    continued, because the bytes that it converted cannot be digested any more. The whole file is
    then downloaded before it is converted.
    """
    path = into / _OUTLINE
    is_new = not path.exists()
    if remote.size < LEAST_BYTES or (checks.sha256 is not None and not is_new):
        yield None
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        digest = OrderedSha256(fd, remote.size)
        digest.keep(0, len(remote.head))

        def read(start: int, end: int) -> bytes:
            digest.keep(start, end)
            return remote.read(start, end)

        outline = bring_outline(fd, remote.head, remote.size, read)
        if outline is None:
            yield None
            return
        with open_tensor_file(path, outline.foreseen) as file:
            yield IncomingFile(remote, file, checks, outline, digest, fd, is_new)
    finally:
        os.close(fd)


def forget(into: Path, out: Path) -> None:
    """Remove all streamed files, because the file is downloaded as a whole instead."""
    (into / _OUTLINE).unlink(missing_ok=True)
    _clear(out)


def _wants(plan: FolderPlan, file: TensorFile, outline: Outline) -> tuple[Wants, Sequence[str]]:
    """Return the ranges to download, and the names of storages whose local headers are in them.

    The header of a storage is downloaded if any byte of the storage is needed.
    """
    weights = wants_of(plan.files, file.fd)
    by_position = sorted(weights.ordered, key=lambda want: want.start)
    ends = [want.end for want in by_position]

    def is_needed(extent: Range) -> bool:
        following = bisect_right(ends, extent[0])
        return following < len(ends) and by_position[following].start < extent[1]

    headers = outline.headers(is_needed)
    if not headers:
        return weights, ()
    return wants_of(plan.files, file.fd, headers.values()), tuple(headers)


def _bring(
    remote: RemoteFile,
    ranges: Sequence[Range],
    wants: Wants,
    folder: StreamedFolder,
    report: Report,
    digest: OrderedSha256 | None = None,
) -> None:
    """Download the ranges, and pass the bytes to the folder and, if it is set, to the digest."""
    done = sum(want.end - want.start for want in wants.ordered[: folder.begin])
    total = done + sum(end - start for start, end in ranges)

    def take(position: int, content: memoryview) -> None:
        nonlocal done
        folder.feed(position, content)
        if digest is not None:
            digest.add(position, content)
        done = min(total, done + content.nbytes)
        report(Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total))

    for start, end in ranges:
        remote.stream(start, end, take)


@dataclass(frozen=True)
class _Record:
    """How many wants are done, for one version of a source and one plan."""

    path: Path

    key: str
    """Identifies the version and the plan."""

    def done(self) -> int:
        """Return the recorded number of wants. 0 if there is no valid record for this key.

        The number counts the written wants, or only the durable ones if the machine may have
        restarted since.
        """
        try:
            record = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0
        if not isinstance(record, dict) or record.get("key") != self.key:
            return 0
        # Until the machine restarts, written bytes are readable even if they are not durable.
        boot = _boot()
        is_up = boot is not None and record.get("boot") == boot
        done = record.get("written" if is_up else "durable")
        return done if isinstance(done, int) else 0

    def set_done(self, written: int, durable: int) -> None:
        """Replace the record by these numbers of wants and the id of the machine's present run."""
        new = self.path.with_name(self.path.name + ".new")
        record = {"key": self.key, "written": written, "durable": durable, "boot": _boot()}
        new.write_text(json.dumps(record))
        new.replace(self.path)


def _boot() -> str | None:
    """Return an id that changes when this machine restarts. None if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _key(remote: RemoteFile, plan: FolderPlan, wants: Wants) -> str:
    """Return a digest of everything that must be equal to continue an earlier attempt."""
    digest = hashlib.sha256()
    for part in (remote.resource.url, remote.version, remote.size):
        digest.update(f"{part}\n".encode())
    for file in plan.files:
        digest.update(file.path.encode() + b"\n")
        digest.update(file.header if isinstance(file, WeightsFile) else file.content)
    for want in wants.ordered:
        place = (want.slot.file, want.slot.number) if want.slot else None
        digest.update(f"{want.start} {want.end} {place}\n".encode())
    return digest.hexdigest()


def _clear(out: Path) -> None:
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
