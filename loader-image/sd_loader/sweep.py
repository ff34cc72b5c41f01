"""`sd-loader sweep`: what lies on a volume that should not, told and, if asked for, removed."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from sd_api.humanize import size
from sd_api.names import ANNOTATION_RELOAD, STAGING_DIR, STORE_DIR
from sd_api.reasons import ExitCode
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.store import blobs, orphans
from sd_loader.store.altered import Altered, Digests, altered, foreign_paths
from sd_loader.store.orphans import Orphan, Times
from sd_loader.store.volume import Volume

_PATH_WIDTH = 200


class FindingKind(StrEnum):
    """What can be wrong with a path."""

    ORPHAN = "orphan"
    ALTERED = "altered"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Finding:
    """One path: what is wrong with it, and what became of it.

    size: bytes that are freed with it; what other models share is not. removed: whether it is
    gone. error: why it could not be removed.
    """

    kind: FindingKind
    path: str
    why: str
    size: int = 0
    removed: bool = False
    error: str = ""


@dataclass(frozen=True)
class Swept:
    """All that was found."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """An altered file needs a person, a failed removal another try; orphans are no fault."""
        if any(finding.kind is FindingKind.ALTERED for finding in self.findings):
            return ExitCode.PERMANENT
        if any(finding.error for finding in self.findings):
            return ExitCode.TRY_AGAIN
        return ExitCode.DONE

    def to_json(self) -> str:
        """A JSON object a line."""
        lines = []
        for finding in self.findings:
            fields = asdict(finding)
            fields["sizeBytes"] = fields.pop("size")
            # Names on a volume are any bytes; escapes keep them apart from each other.
            lines.append(json.dumps(fields, ensure_ascii=True))
        return "\n".join(lines)

    def to_text(self) -> str:
        """A line for each finding, and last what to do."""
        lines = [_line(finding) for finding in self.findings]
        return "\n".join([*lines, *self._advice()])

    def _advice(self) -> list[str]:
        found = [finding for finding in self.findings if finding.kind is FindingKind.ORPHAN]
        removed = [finding for finding in found if finding.removed]
        failed = [finding for finding in found if finding.error]
        damaged = [finding for finding in self.findings if finding.kind is FindingKind.ALTERED]
        advice = []
        if removed:
            advice.append(f"Removed {_orphans(removed)}: {_total(removed)} are free again.")
        if failed:
            advice.append(
                f"{_orphans(failed)} could not be removed: mend the cause and sweep again."
            )
        elif found and not removed:
            advice.append(
                f"{_orphans(found)}, {_total(found)}: sweep with --delete to remove them."
            )
        if damaged:
            count = "1 file was" if len(damaged) == 1 else f"{len(damaged)} files were"
            advice.append(
                f"{count} altered, and stay: load their models anew (a new value of the annotation"
                f" {ANNOTATION_RELOAD}); the altered version goes once it is superseded."
            )
        return advice or ["Nothing to do."]


def sweep(
    store: Path,
    *,
    delete: bool = False,
    digests: bool = False,
    older_than: timedelta,
    retain: timedelta,
    now: datetime | None = None,
) -> Swept:
    """Look through a volume, remove its orphans if asked to, and then compare what is left."""
    times = Times.of(now or datetime.now(UTC), older_than, retain)
    with Volume.open(store) as volume:
        found = _measured(volume, orphans.orphans(volume, times))
        if delete:
            found = _removed(volume, times, found)
        gone = [finding.path for finding in found]
        damaged = [
            one
            for one in altered(volume, Digests() if digests else None)
            if not any(one.path.startswith(f"{path}/") for path in gone)
        ]
        return Swept((*found, *map(_altered, damaged), *map(_foreign, foreign_paths(volume))))


def _altered(found: Altered) -> Finding:
    return Finding(FindingKind.ALTERED, found.path, found.why)


def _foreign(path: str) -> Finding:
    return Finding(FindingKind.FOREIGN, path, "no load has made it; it is left alone")


def _measured(volume: Volume, found: Iterable[Orphan]) -> list[Finding]:
    """Findings with the bytes that go with each: those of files that nothing else holds.

    A blob holds nothing: it goes with the last of its holders.
    """
    held_by_blobs = {_inode(status) for _, status in blobs.every(volume)}
    going: Counter[tuple[int, int]] = Counter()
    measured = []
    for orphan in found:
        freed = 0
        for status in _files(volume, orphan.path):
            inode = _inode(status)
            going[inode] += 1
            if going[inode] == max(1, status.st_nlink - (inode in held_by_blobs)):
                freed += status.st_size
        measured.append(Finding(FindingKind.ORPHAN, orphan.path, orphan.why, freed))
    return measured


def _files(volume: Volume, path: str) -> list[os.stat_result]:
    *folders, name = path.split("/")
    parent = volume.find(*folders)
    if parent is None:
        return []
    with parent:
        status = parent.status(name)
        if status is None or not stat.S_ISDIR(status.st_mode):
            return [status] if status and stat.S_ISREG(status.st_mode) else []
    folder = volume.find(*folders, name)
    if folder is None:
        return []
    with folder:
        return [status for _, status in folder.entries() if stat.S_ISREG(status.st_mode)]


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _removed(volume: Volume, times: Times, found: list[Finding]) -> list[Finding]:
    """Remove what was found, as far as it is still nobody's; what is new is left to the next."""
    by_path = {finding.path: finding for finding in found}
    outcome = []
    for orphan in orphans.orphans(volume, times):
        finding = by_path.get(orphan.path)
        if finding is not None:
            outcome.append(_try_to_remove(volume, orphan, finding))
    blobs.drop_unused(volume)
    for place in (STAGING_DIR, STORE_DIR):
        volume.root.remove_if_empty(place)
    return outcome


def _try_to_remove(volume: Volume, orphan: Orphan, finding: Finding) -> Finding:
    try:
        return replace(finding, removed=orphans.remove_orphan(volume, orphan))
    except OSError as error:
        return replace(finding, error=os.strerror(error.errno or 0))
    except LoaderError as error:
        return replace(finding, error=error.message)


def _line(finding: Finding) -> str:
    what = "removed" if finding.removed else finding.kind.value
    error = f" (cannot be removed: {snippet(finding.error)})" if finding.error else ""
    freed = size(finding.size) if finding.kind is FindingKind.ORPHAN else ""
    return f"{what:<8} {freed:>9}  {snippet(finding.path, _PATH_WIDTH)}: {finding.why}{error}"


def _orphans(found: list[Finding]) -> str:
    return "1 orphan" if len(found) == 1 else f"{len(found)} orphans"


def _total(found: list[Finding]) -> str:
    return size(sum(finding.size for finding in found))
