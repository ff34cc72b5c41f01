"""The input of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from sd_api.reasons import Reason
from sd_api.status import Condition, ConditionType, JobStatus, Status, StatusArtifact
from sd_operator.base.settings import Settings
from sd_operator.resources.claim import claim_is_allowed
from sd_operator.resources.model import Model
from sd_operator.resources.observed import Observed
from sd_operator.rules import conditions


@dataclass(frozen=True)
class Input:
    """The facts of one pass. Rules read nothing else: no clock, no network, no environment."""

    model: Model
    """The resource: metadata, spec, and the status of the last pass."""
    observed: Observed
    """The model's Jobs, Pods and PVC, and its webhook calls and queue position."""
    settings: Settings
    """The operator's settings."""
    now: datetime
    """The time of this pass."""

    @property
    def status(self) -> Status:
        """The status that the last pass wrote."""
        return self.model.status

    @property
    def deleting(self) -> bool:
        """Whether the resource is being deleted."""
        return self.model.deleted_at is not None

    @property
    def wanted(self) -> str:
        """The loadHash that the spec asks for."""
        return self.model.wanted

    @property
    def claim_name(self) -> str:
        """The name of the model's PersistentVolumeClaim."""
        return self.model.claim_or(self.settings.claim_name)

    @cached_property
    def published(self) -> StatusArtifact | None:
        """The published version; None if its PVC is gone or was replaced by another PVC."""
        artifact, claim = self.status.artifact, self.observed.claim
        if artifact is None or claim is None:
            return None
        return artifact if artifact.claim_uid in (None, claim.uid) else None

    @cached_property
    def is_missing(self) -> bool:
        """Whether files of the published version are missing.

        The finding of the checks decides; if it leaves this open, the status decides.
        """
        published, finding = self.published, self.observed.finding
        if published is None:
            return False
        missing = finding.says_missing(published) if finding is not None else None
        return missing if missing is not None else published.missing_time is not None

    @property
    def is_served(self) -> bool:
        """Whether there is a published version whose files and volume are not missing."""
        claim = self.observed.claim
        is_lost = claim is not None and claim.lost
        return self.published is not None and not is_lost and not self.is_missing

    @property
    def missing_changes(self) -> bool:
        """Whether files went missing or came back, and the status does not report it yet."""
        published = self.published
        return published is not None and self.is_missing != (published.missing_time is not None)

    @property
    def claim_is_allowed(self) -> bool:
        """Whether the model may use its PVC; True if the PVC does not exist."""
        claim, artifact = self.observed.claim, self.status.artifact
        allowed = {self.settings.claim_name, *self.settings.allowed_claims}
        uid = artifact.claim_uid if artifact is not None else None
        return claim is None or claim_is_allowed(claim.name, claim, uid, allowed)

    @property
    def same_load(self) -> bool:
        """Whether the status describes a load of the wanted version."""
        return self.status.load_hash == self.wanted

    @property
    def webhook(self) -> str | None:
        """The url in spec.webhook; None if there is none, or if the spec cannot be read."""
        return self.model.spec.webhook if self.model.spec else None

    @property
    def ready(self) -> Condition | None:
        """The condition Ready of the last pass."""
        return conditions.find(self.status.conditions, ConditionType.READY)

    @property
    def stalled(self) -> Reason | None:
        """The reason of the condition Stalled; None if it is absent or its reason is unknown."""
        condition = conditions.find(self.status.conditions, ConditionType.STALLED)
        return Reason.parse(condition.reason) if condition else None

    @property
    def stuck_after(self) -> timedelta:
        """How long a clean-up, or the start of a Pod, may take before the model is Stalled."""
        return timedelta(seconds=self.settings.stuck_seconds)

    def next_attempt(self, last: JobStatus | None) -> int:
        """Return the number of the next attempt.

        The number is one above that of the last Job, and above that of a rejected Job whose name
        another Job still has. If the uid of the last Job is not recorded, its number is used again:
        a Job that exists under that name is then taken over or replaced, instead of running beside
        a second one.
        """
        rejection = self.observed.rejection
        taken = [last.attempt - (last.uid is None)] if last is not None else []
        if rejection is not None and rejection.attempt is not None:
            taken.append(rejection.attempt)
        return max(taken, default=-1) + 1

    def retry_delay(self, attempt: int) -> timedelta:
        """Return the pause after this attempt. It doubles with each attempt, up to a limit."""
        seconds = self.settings.retry_first_seconds * 2 ** min(attempt, 20)
        return timedelta(seconds=min(seconds, self.settings.retry_max_seconds))
