"""What the status and the Events report if published files or their volume are missing."""

from __future__ import annotations

from sd_api.reasons import EventReason, Reason
from sd_api.status import StatusArtifact
from sd_operator.rules.decision import EventPlan, EventType
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import Input
from sd_operator.rules.step import Proceed, Report, Step


def published_files_are_missing(inp: Input) -> Step | None:
    """Report missing files of the wanted version. It is loaded again only if a user asks for it."""
    published = inp.published
    if published is None or published.load_hash != inp.wanted or not inp.is_missing:
        return None
    return Proceed(Report.of_failure(_failure(published)))


def published_volume_is_lost(inp: Input) -> Step | None:
    """Report that the volume of the wanted version is lost, for as long as it is lost."""
    claim, published = inp.observed.claim, inp.published
    if claim is None or published is None or published.load_hash != inp.wanted or not claim.lost:
        return None
    failure = Failure(Reason.CLAIM_NOT_BOUND, claim.why_without_volume(None))
    return Proceed(Report.of_failure(failure))


def event(inp: Input) -> EventPlan | None:
    """Return the Event about files that are missing since this pass, or that are back."""
    published = inp.published
    if published is None or not inp.missing_changes:
        return None
    if inp.is_missing:
        text = _failure(published).text()
        return EventPlan(EventType.WARNING, EventReason.ARTIFACT_MISSING, text)
    text = f"{_place(published)} is complete again"
    return EventPlan(EventType.NORMAL, EventReason.ARTIFACT_RESTORED, text)


def _failure(published: StatusArtifact) -> Failure:
    return Failure(Reason.ARTIFACT_MISSING, f"files of {_place(published)} are missing or cut off")


def _place(published: StatusArtifact) -> str:
    return f"{published.path} ({published.immutable_path}) on claim {published.claim_name}"
