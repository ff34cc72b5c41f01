"""The finding of the checks about a published version."""

from __future__ import annotations

from dataclasses import dataclass

from sd_api.status import StatusArtifact

MISSING_AFTER = 2
"""How many checks in a row must find files missing: a storage server may fail for a moment."""


@dataclass(frozen=True)
class CheckFinding:
    """Whether the last checks found the files of one published version."""

    artifact: StatusArtifact
    """The version, as the status described it when it was checked."""
    missed: int
    """How many checks in a row found files missing; 0 if the last check found all of them."""

    def is_about(self, artifact: StatusArtifact) -> bool:
        """Whether the checked version is this one, and not another load of the same spec."""
        return _identity(artifact) == _identity(self.artifact)

    def says_missing(self, artifact: StatusArtifact) -> bool | None:
        """Return whether files of this version are missing.

        None if the finding is about another version, or if too few checks found files missing.
        """
        if not self.is_about(artifact) or 0 < self.missed < MISSING_AFTER:
            return None
        return self.missed > 0

    @property
    def is_news(self) -> bool:
        """Whether the finding differs from the status at the time of the check."""
        missing = self.says_missing(self.artifact)
        return missing is not None and missing != (self.artifact.missing_time is not None)


def _identity(artifact: StatusArtifact) -> tuple[str | None, str, str, str]:
    """Return what tells the loads of a model apart: PVC, path, digest and time."""
    return (
        artifact.claim_uid,
        artifact.immutable_path,
        artifact.digest,
        artifact.last_update_time,
    )
