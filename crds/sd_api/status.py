"""The status of a StableDiffusionModel: what the operator observed, for people and programs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from sd_api.fields import Count, Extensible, LoadHash, ShortText, Text, Timestamp, Uid
from sd_api.humanize import describe
from sd_api.spec import ModelId
from sd_api.wire import Artifact, Progress, Source, Word


class Phase(StrEnum):
    """The model's state in one word, for people. Programs should read the conditions instead."""

    PENDING = "Pending"
    QUEUED = "Queued"
    DOWNLOADING = "Downloading"
    CONVERTING = "Converting"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"
    DELETING = "Deleting"


class ConditionType(StrEnum):
    """The conditions of a model. `reasons` has the reasons of each."""

    READY = "Ready"
    """Whether a complete, verified folder is served under status.artifact.path.

    True is good. A failed reload leaves it True. It is False if the volume is gone, or if two
    checks in a row find files missing. Always present.
    """
    RECONCILING = "Reconciling"
    """A load is under way, or its Job waits for its Pod.

    True is normal and temporary. Absent otherwise, as kstatus expects.
    """
    STALLED = "Stalled"
    """The last load or the clean-up failed or is stuck; the message has the cause and the remedy.

    True is bad. Absent otherwise, as kstatus expects: it is removed when a load succeeds or the
    spec asks for another load. The operator may still try again by itself, as the reason's retry
    rule says.
    """
    WEBHOOK_DELIVERED = "WebhookDelivered"
    """Whether the newest event reached spec.webhook.

    True is good. Present as soon as there is an event to deliver; absent without spec.webhook.
    """


class Condition(Extensible):
    """A metav1.Condition."""

    type: ShortText
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    message: Text = ""
    observed_generation: Count | None = None
    last_transition_time: Timestamp


class StatusSource(Source):
    """Where the published weights came from; secrets in the url are redacted."""

    url: Text | None = None


class StatusArtifact(Artifact):
    """The published folder."""

    path: ShortText = Field(
        description="Path on the volume: a symbolic link that a reload moves; resolve it once."
    )
    immutable_path: ShortText = Field(
        description="Path on the volume of this very load; its content never changes."
    )
    claim_name: ShortText = Field(description="The PersistentVolumeClaim.")
    claim_uid: Uid | None = Field(
        default=None, alias="claimUID", description="The uid of the PersistentVolumeClaim."
    )
    size: Annotated[str, Field(max_length=16)] = Field(description="sizeBytes for people.")
    preview_path: ShortText | None = Field(
        default=None, description="Path on the volume of the rendered preview."
    )
    picture_path: ShortText | None = Field(
        default=None, description="Path on the volume of a picture that the source shows."
    )
    last_update_time: Timestamp
    missing_time: Timestamp | None = Field(
        default=None,
        description="When checks found that files of the folder are missing; absent while it is"
        " complete.",
    )

    @property
    def load_hash(self) -> str:
        """The loadHash of the published version, which may be older than the one of the spec."""
        return self.immutable_path.rsplit("/", 1)[-1]


class StatusProgress(Progress):
    """How far the running load is."""

    text: Annotated[str, Field(max_length=64)] = Field(description="The progress for people.")

    @classmethod
    def of(cls, progress: Progress) -> StatusProgress:
        """The progress with its text."""
        text = describe(progress) or progress.stage.lower()
        return cls(**progress.model_dump(), text=text[:64])


class JobStatus(Extensible):
    """A Job that the operator created for the model. Another uid is another Job."""

    name: ShortText
    uid: Uid | None = Field(default=None, description="The uid that the API server gave it.")
    attempt: Count = Field(
        description="Counts the Jobs of the same load, or of the same clean-up, from 0."
    )


class LastFailure(Extensible):
    """Why the newest failed Pod of the running Job failed."""

    reason: ShortText
    message: Text = ""


class WebhookEvent(StrEnum):
    """The event that a webhook call reports."""

    LOAD_STARTED = "model.load_started"
    LOADED = "model.loaded"
    LOAD_FAILED = "model.load_failed"
    DELETED = "model.deleted"


class OutboxEntry(Extensible):
    """A webhook call that still has to be made."""

    id: Annotated[str, Field(max_length=64)] = Field(
        description="The webhook-id: the same over retries and restarts."
    )
    event: WebhookEvent
    load_hash: LoadHash
    message: Text = ""
    created_time: Timestamp
    attempts: Count = 0
    next_attempt_time: Timestamp | None = None
    last_error: Annotated[str, Field(max_length=256)] | None = None


OUTBOX_MAX = 8


class WebhookStatus(Extensible):
    """The webhook's outbox."""

    outbox: Annotated[list[OutboxEntry], Field(max_length=OUTBOX_MAX)] = Field(default_factory=list)
    newest_ended: bool = Field(
        default=False,
        description="Whether the call of the newest event was delivered or given up. If true, the"
        " outbox has only older calls, and the condition WebhookDelivered is not about them.",
    )


class Status(Extensible):
    """Observed state of one model."""

    observed_generation: Count | None = None
    load_hash: LoadHash | None = Field(
        default=None, description="Digest of the fields that decide what is loaded."
    )
    model_id: ModelId | None = None
    model_type: Word | None = Field(
        default=None,
        description="spec.modelType or, if it is absent, what the source is: unknown until a load"
        " has read it.",
    )
    phase: Phase | None = None
    reason: Annotated[str, Field(max_length=64)] | None = None
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = Field(default_factory=list)
    progress: StatusProgress | None = None
    source: StatusSource | None = None
    artifact: StatusArtifact | None = None
    job: JobStatus | None = Field(default=None, description="The Job of the current or last load.")
    cleanup_job: JobStatus | None = Field(
        default=None, description="The Job that removes the files of a deleted model."
    )
    last_failure: LastFailure | None = Field(
        default=None,
        description="Why the newest failed Pod of the running Job failed; absent if none failed.",
    )
    webhook: WebhookStatus | None = None
    start_time: Timestamp | None = None
    completion_time: Timestamp | None = None
