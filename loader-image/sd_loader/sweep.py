"""`sd-loader sweep`: lists orphaned, altered and foreign files; removes orphans on request."""

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
from sd_loader.store import blobs, index, orphans
from sd_loader.store.altered import Altered, Digests, altered, foreign_paths
from sd_loader.store.orphans import Orphan, Times
from sd_loader.store.volume import Volume

_PATH_WIDTH = 200


class FindingKind(StrEnum):
    """What is wrong with a path."""

    ORPHAN = "orphan"
    ALTERED = "altered"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Finding:
    """One path: what is wrong with it, and whether it was removed."""

    kind: FindingKind
    path: str
    why: str

    size: int = 0
    """Bytes that the removal of the path frees. Bytes that other models share do not count."""

    removed: bool = False

    error: str = ""
    """Why it could not be removed."""


@dataclass(frozen=True)
class Swept:
    """The result of a sweep."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """PERMANENT if a file was altered, TRY_AGAIN if a removal failed, DONE otherwise."""
        if any(finding.kind is FindingKind.ALTERED for finding in self.findings):
            return ExitCode.PERMANENT
        if any(finding.error for finding in self.findings):
            return ExitCode.TRY_AGAIN
        return ExitCode.DONE

    def to_json(self) -> str:
        """Return one JSON object per line."""
        lines = []
        for finding in self.findings:
            fields = asdict(finding)
            fields["sizeBytes"] = fields.pop("size")
            # A file name can be any bytes. Escapes keep different names different.
            lines.append(json.dumps(fields, ensure_ascii=True))
        return "\n".join(lines)

    def to_text(self) -> str:
        """Return one line for each finding, and advice at the end."""
        lines = [_line(finding) for finding in self.findings]
        return "\n".join([*lines, *self._advice()])

    def _advice(self) -> list[str]:
        orphaned = [finding for finding in self.findings if finding.kind is FindingKind.ORPHAN]
        removed = [finding for finding in orphaned if finding.removed]
        failed = [finding for finding in orphaned if finding.error]
        damaged = [finding for finding in self.findings if finding.kind is FindingKind.ALTERED]
        advice = []
        if removed:
            advice.append(f"Removed {_orphans(removed)} and freed {_total(removed)}.")
        if failed:
            advice.append(
                f"{_orphans(failed)} could not be removed: fix the cause and sweep again."
            )
        elif orphaned and not removed:
            advice.append(
                f"Found {_orphans(orphaned)}, {_total(orphaned)} in total. Run sweep with --delete"
                " to free this space."
            )
        if damaged:
            count = "1 file was" if len(damaged) == 1 else f"{len(damaged)} files were"
            advice.append(
                f"{count} altered. To repair a model, load it again (set its annotation"
                f" {ANNOTATION_RELOAD} to a new value). The altered version is removed after that."
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
    """Find orphans, altered files and foreign files on a volume.

    delete: remove the orphans, and write the lists of the namespaces' models again. digests:
    compare the content of published files, not only their sizes. older_than: age from which an
    unfinished load counts as abandoned. retain: how long superseded versions are kept.
    """
    times = Times.of(now or datetime.now(UTC), older_than, retain)
    with Volume.open(store) as volume:
        orphaned = _measured(volume, orphans.orphans(volume, times))
        if delete:
            orphaned = _removed(volume, times, orphaned)
        paths = [finding.path for finding in orphaned]
        damaged = [
            file
            for file in altered(volume, Digests() if digests else None)
            if not any(file.path.startswith(f"{path}/") for path in paths)
        ]
        return Swept((*orphaned, *map(_altered, damaged), *map(_foreign, foreign_paths(volume))))


def _altered(file: Altered) -> Finding:
    return Finding(FindingKind.ALTERED, file.path, file.why)


def _foreign(path: str) -> Finding:
    return Finding(FindingKind.FOREIGN, path, "the loader did not create it; it is kept")


def _measured(volume: Volume, orphaned: Iterable[Orphan]) -> list[Finding]:
    """Make a finding for each orphan, with the bytes that its removal frees.

    A file's bytes are freed only if all of its hard links are in orphans; they count for the last
    of these orphans. The link of the blob is ignored, because an unused blob is removed as well.
    """
    held_by_blobs = {_inode(status) for _, status in blobs.every(volume)}
    going: Counter[tuple[int, int]] = Counter()
    measured = []
    for orphan in orphaned:
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


def _removed(volume: Volume, times: Times, findings: list[Finding]) -> list[Finding]:
    """Remove the found orphans that are still orphans. Leave new orphans to the next sweep."""
    by_path = {finding.path: finding for finding in findings}
    outcome = []
    for orphan in orphans.orphans(volume, times):
        finding = by_path.get(orphan.path)
        if finding is not None:
            outcome.append(_try_to_remove(volume, orphan, finding))
    blobs.drop_unused(volume)
    index.refresh_all(volume)
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
    state = "removed" if finding.removed else finding.kind.value
    error = f" (cannot be removed: {snippet(finding.error)})" if finding.error else ""
    freed = size(finding.size) if finding.kind is FindingKind.ORPHAN else ""
    return f"{state:<8} {freed:>9}  {snippet(finding.path, _PATH_WIDTH)}: {finding.why}{error}"


def _orphans(findings: list[Finding]) -> str:
    return "1 orphan" if len(findings) == 1 else f"{len(findings)} orphans"


def _total(findings: list[Finding]) -> str:
    return size(sum(finding.size for finding in findings))
