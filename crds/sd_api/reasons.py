"""Every reason that users see in conditions and Events.

Ready has a `ReadyReason` while nothing is wrong, and a `Reason` once a load failed or is stuck.
Reconciling repeats Ready's reason, Stalled always has a `Reason`, and WebhookDelivered has a
`WebhookReason`. The docs take the meaning of each reason from the docstring below it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from sd_api.names import ANNOTATION_RELOAD, ANNOTATION_SKIP_CLEANUP, LABEL_MODELS


class ExitCode(IntEnum):
    """Exit codes of the loader; the Job's podFailurePolicy refers to them."""

    DONE = 0
    TRY_AGAIN = 1
    PERMANENT = 3


class ReadyReason(StrEnum):
    """Reasons of the condition Ready while nothing is wrong."""

    LOADED = "Loaded"
    """The model is published. The only reason with which Ready is True."""
    PENDING = "Pending"
    """The load is about to start; the message says what it waits for."""
    QUEUED = "Queued"
    """Other models load first, or Kueue has not admitted the Job yet."""
    DOWNLOADING = "Downloading"
    """The loader downloads the source."""
    CONVERTING = "Converting"
    """The loader converts the source to a diffusers folder."""
    VERIFYING = "Verifying"
    """The loader verifies the converted model and publishes it."""
    SUSPENDED = "Suspended"
    """spec.suspend is true."""
    DELETING = "Deleting"
    """The resource is being deleted; its files are removed first."""


class WebhookReason(StrEnum):
    """Reasons of the condition WebhookDelivered."""

    DELIVERED = "Delivered"
    """The receiver accepted the newest call. The only reason with which the condition is True."""
    DELIVERY_PENDING = "DeliveryPending"
    """The newest event has not been sent yet."""
    DELIVERY_FAILED = "DeliveryFailed"
    """The receiver did not accept the call; the message says whether and when it is repeated."""
    SECRET_NOT_READABLE = "SecretNotReadable"  # noqa: S105 - the reason, not a secret
    """The operator cannot read the key of spec.webhookSecretRef, so it cannot sign calls."""


class EventReason(StrEnum):
    """Reasons of Events, which are emitted only when something changes."""

    LOAD_STARTED = "LoadStarted"
    """A load has started."""
    CREDENTIALS_IN_URL = "CredentialsInUrl"
    """spec.url contains a token or a password; spec.credentialsSecretRef is the place for it."""
    MODEL_LOADED = "ModelLoaded"
    """A load has succeeded; the message says where the model is published."""
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    """A load failed or is stuck; the message has the reason, the cause and the remedy."""
    MODEL_DELETED = "ModelDeleted"
    """The finalizer is released; the message says what happened to the files."""
    ARTIFACT_MISSING = "ArtifactMissing"
    """Files of a published model are missing, or its volume is gone; the message names the PVC and
    the remedy."""
    ARTIFACT_RESTORED = "ArtifactRestored"
    """The files that were missing are on the volume again."""
    STORE_MISSING = "StoreMissing"
    """On a PersistentVolumeClaim: its volume should have published models, but lacks the folder
    .store."""
    CLEANUP_FAILED = "CleanupFailed"
    """The files of a model that is being deleted cannot be removed."""
    WEBHOOK_DELIVERED = "WebhookDelivered"
    """The receiver accepted a call."""
    WEBHOOK_DELIVERY_FAILED = "WebhookDeliveryFailed"
    """A call failed for the first time, or is given up."""


class Retry(StrEnum):
    """What must happen before the operator starts another Job for the same model."""

    NEVER = "never"
    """Only another source helps: these bytes cannot be loaded."""
    ON_CHANGE = "on-change"
    """Somebody must edit the spec, or set the reload annotation once the source is repaired."""
    RESYNC = "resync"
    """The cause may pass by itself: the operator tries again, at growing intervals."""


_JOB_NAME = "<status.job.name>"
SKIP_CLEANUP_REMEDY = (
    "To keep the files and release the resource, set the annotation"
    f' {ANNOTATION_SKIP_CLEANUP}: "true".'
)


class Reason(StrEnum):
    """Reasons of the condition Stalled, and of Ready when a load failed or is stuck."""

    retry: Retry
    """What starts the next Job."""
    remedy: str
    """What the user can do, in sentences. `remedy_for` fills in the name of the Job."""

    def __new__(cls, value: str, retry: Retry, remedy: str) -> Reason:
        """Make a member that equals its value and carries its retry rule and remedy."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.retry = retry
        member.remedy = remedy
        return member

    INVALID_SPEC = (
        "InvalidSpec",
        Retry.ON_CHANGE,
        "Correct the field of spec that the message names.",
    )
    """A field of spec is wrong, or needs a setting that the operator does not have."""
    MODEL_ID_CONFLICT = (
        "ModelIdConflict",
        Retry.RESYNC,
        "Delete this model and create it again with another spec.modelId, or delete the model that"
        " owns this id.",
    )
    """Another model is published under this model id on the volume."""
    CLAIM_NOT_FOUND = (
        "ClaimNotFound",
        Retry.RESYNC,
        "Create the PersistentVolumeClaim in the model's namespace, or delete this model and create"
        " it again with a spec.storage.claimName that exists.",
    )
    """The model's PersistentVolumeClaim does not exist or is being deleted."""
    CLAIM_NOT_BOUND = (
        "ClaimNotBound",
        Retry.RESYNC,
        "Create the StorageClass or the PersistentVolume that the PersistentVolumeClaim needs, or"
        " delete the claim and create it again with another spec; the Pod starts by itself once the"
        " claim is bound.",
    )
    """The model's PersistentVolumeClaim has no volume: it was never bound, or its volume is gone. A
    published model is Ready again when the volume returns."""
    CLAIM_NOT_ALLOWED = (
        "ClaimNotAllowed",
        Retry.RESYNC,
        f'If the PersistentVolumeClaim may hold models, set its label {LABEL_MODELS}: "true";'
        " otherwise delete this model and create it again without spec.storage.",
    )
    """The PersistentVolumeClaim that spec.storage names is neither the default one nor labelled for
    models nor listed by the administrator."""
    VOLUME_NOT_WRITABLE = (
        "VolumeNotWritable",
        Retry.RESYNC,
        "Mount the volume read-write, and let the loader's group (fsGroup) write to it.",
    )
    """The loader cannot write to the volume."""
    UNSUPPORTED_VOLUME = (
        "UnsupportedVolume",
        Retry.ON_CHANGE,
        "Use a volume that supports symbolic links and atomic rename, such as NFS, CephFS or a"
        " local disk; a mounted object store does not.",
    )
    """The volume does not support symbolic links or atomic rename."""
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        Retry.RESYNC,
        "Create the Secret that spec.credentialsSecretRef names in the model's namespace, with the"
        " token in its key `token`. If the message names the administrator's logins, ask the"
        " administrator for that Secret.",
    )
    """The Secret that spec.credentialsSecretRef names does not exist or has no usable token, or an
    administrator's login is missing or unusable."""
    CREDENTIALS_HOST_MISMATCH = (
        "CredentialsHostMismatch",
        Retry.RESYNC,
        "Set the key `host` of the Secret to the exact host of spec.url, and use an https link:"
        " the token is sent to that host only, and never over plain http.",
    )
    """The token in the Secret may not be sent to the host of spec.url."""
    SOURCE_NOT_FOUND = (
        "SourceNotFound",
        Retry.ON_CHANGE,
        "Check spec.url and spec.gitRevision; for a private repo, set spec.credentialsSecretRef. If"
        " the source has removed the model, use another source.",
    )
    """The source does not exist, or it is private and no token was sent."""
    AUTHENTICATION_REQUIRED = (
        "AuthenticationRequired",
        Retry.ON_CHANGE,
        "Set spec.credentialsSecretRef to a Secret whose key `token` is a valid token for the"
        " source and whose key `host` is its host; or put the token into the Secret that the"
        f" message names, and set the annotation {ANNOTATION_RELOAD} to a new value.",
    )
    """The source asks for a token, or does not accept the one that was sent."""
    ACCESS_DENIED = (
        "AccessDenied",
        Retry.ON_CHANGE,
        "Open the model's page with the token's account: it says what is missing, such as an"
        " accepted licence, a purchase or the date of release. Or use the token of an account that"
        f" may read it. Then set the annotation {ANNOTATION_RELOAD} to a new value.",
    )
    """The source refuses access to this account, or to everybody for now."""
    REQUEST_REJECTED = (
        "RequestRejected",
        Retry.ON_CHANGE,
        "Set spec.url to a new and complete link: a signed link may have expired, or may have been"
        " cut off when it was copied.",
    )
    """The source does not accept the request that the link makes."""
    RATE_LIMITED = (
        "RateLimited",
        Retry.RESYNC,
        "Wait, or set spec.credentialsSecretRef: most sources allow more requests with a token.",
    )
    """The source received too many requests from this cluster."""
    SOURCE_UNREACHABLE = (
        "SourceUnreachable",
        Retry.RESYNC,
        "Check the host in spec.url and the cluster's egress (proxy, NetworkPolicy, DNS). If the"
        " source lets only browsers through, use another source.",
    )
    """The source did not respond, responded with a server error, or blocks programs."""
    ADDRESS_REFUSED = (
        "AddressRefused",
        Retry.ON_CHANGE,
        "Use a public https address, or ask the administrator to add the host to the allowed"
        " hosts.",
    )
    """The loader may not call the host of the link, or that of a redirect."""
    NOT_A_MODEL = (
        "NotAModel",
        Retry.ON_CHANGE,
        "Set spec.url to the link of the model file itself, not of a page about it.",
    )
    """The download is a page, an error, a pointer or another file that is not a model."""
    DAMAGED_FILE = (
        "DamagedFile",
        Retry.ON_CHANGE,
        "Compare the file's size at the source with the original's, and upload the original again;"
        f" then set the annotation {ANNOTATION_RELOAD} to a new value. If the original is damaged,"
        " save it again or use another copy.",
    )
    """The file has a model's format, but it is truncated, altered or breaks the format's rules."""
    DIGEST_MISMATCH = (
        "DigestMismatch",
        Retry.ON_CHANGE,
        "Compare spec.sha256 with the digest that the source states. If they agree, the file was"
        f" altered: set the annotation {ANNOTATION_RELOAD} to a new value to download it again.",
    )
    """The file differs from its digest in spec.sha256 or at the source."""
    TOO_LARGE = (
        "TooLarge",
        Retry.ON_CHANGE,
        "Choose a smaller variant of the model, or ask the administrator to raise the size limit.",
    )
    """The source is larger than the operator's size limit."""
    UNSUPPORTED_FORMAT = (
        "UnsupportedFormat",
        Retry.NEVER,
        "Choose a model of a supported type and architecture, and remove spec.modelType or set the"
        " one that fits it.",
    )
    """The loader does not support this type, format or architecture."""
    UNSAFE_MODEL = (
        "UnsafeModel",
        Retry.NEVER,
        "Use a safetensors version of the model from a source that you trust.",
    )
    """The source contains code or unsafe names, or could contain code."""
    CONVERSION_FAILED = (
        "ConversionFailed",
        Retry.NEVER,
        "Set spec.baseModel or spec.originalConfig if the architecture was not detected correctly;"
        " otherwise use another file of the model.",
    )
    """The weights do not fit the architecture that was detected or that spec names."""
    VERIFICATION_FAILED = (
        "VerificationFailed",
        Retry.NEVER,
        "Set spec.revision to bf16 or fp32 if the weights do not fit fp16; otherwise use another"
        " file of the model.",
    )
    """The converted model is damaged, has NaN or infinite weights, or renders no image."""
    INSUFFICIENT_STORAGE = (
        "InsufficientStorage",
        Retry.RESYNC,
        "Free space on the volume, or enlarge the PersistentVolumeClaim.",
    )
    """The volume does not have enough free space."""
    OUT_OF_MEMORY = (
        "OutOfMemory",
        Retry.RESYNC,
        "Raise spec.job.resources.limits.memory.",
    )
    """The loader needs more memory than its container may use."""
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        Retry.RESYNC,
        "Raise the namespace's ResourceQuota, or lower spec.job.resources.",
    )
    """The namespace's ResourceQuota does not allow the Job or its Pod."""
    UNSCHEDULABLE = (
        "Unschedulable",
        Retry.RESYNC,
        "Make a node available that fits spec.job (GPU, node selector, tolerations, zone of the"
        " volume).",
    )
    """No node fits the loader's Pod."""
    PRIORITY_CLASS_NOT_ALLOWED = (
        "PriorityClassNotAllowed",
        Retry.RESYNC,
        "Remove spec.job.priorityClassName, or ask the administrator to allow the PriorityClass.",
    )
    """The administrator does not allow the PriorityClass that spec.job names."""
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        Retry.RESYNC,
        "Check the name of the loader image and the image pull Secrets in the model's namespace.",
    )
    """The node cannot pull the loader's image."""
    VOLUME_NOT_MOUNTED = (
        "VolumeNotMounted",
        Retry.RESYNC,
        "Check the PersistentVolumeClaim's volume, its storage server and the storage driver on the"
        " node; the Pod starts by itself once the volume can be mounted.",
    )
    """The node cannot attach or mount a volume of the Pod."""
    POD_NOT_STARTING = (
        "PodNotStarting",
        Retry.RESYNC,
        "Check the node of the Pod that the message names, its network plugin and its container"
        " runtime; the Pod starts by itself once the cause is gone.",
    )
    """The Pod is on a node, but the node cannot start its containers."""
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        Retry.ON_CHANGE,
        "Raise spec.job.activeDeadlineSeconds, or use a faster source; then set the annotation"
        f" {ANNOTATION_RELOAD} to a new value. The download continues where it stopped.",
    )
    """The load took longer than its Job may run."""
    BACKOFF_LIMIT_EXCEEDED = (
        "BackoffLimitExceeded",
        Retry.RESYNC,
        f"Read the last Pod's log: kubectl logs job/{_JOB_NAME} --all-containers.",
    )
    """Every Pod of the Job failed."""
    LOADER_CRASHED = (
        "LoaderCrashed",
        Retry.RESYNC,
        f"Read the last Pod's log: kubectl logs job/{_JOB_NAME} --all-containers.",
    )
    """The loader ended without a result, or with an error that it does not know."""
    ARTIFACT_MISSING = (
        "ArtifactMissing",
        Retry.ON_CHANGE,
        "Restore the files on the volume: the next check then makes the model Ready again. To load"
        f" the model again instead, set the annotation {ANNOTATION_RELOAD} to a new value.",
    )
    """Two checks in a row found that files of the published model are missing or cut off."""
    CLEANUP_FAILED = (
        "CleanupFailed",
        Retry.RESYNC,
        f"Read the log of the clean-up Job. {SKIP_CLEANUP_REMEDY}",
    )
    """The files of a deleted model cannot be removed."""

    @classmethod
    def parse(cls, value: str) -> Reason | None:
        """Return the reason with this value, or None if there is none."""
        return next((reason for reason in cls if reason.value == value), None)

    @property
    def exit_code(self) -> ExitCode:
        """The loader's exit code: TRY_AGAIN if another Pod of the same Job may succeed."""
        return ExitCode.TRY_AGAIN if self in _TRANSIENT else ExitCode.PERMANENT

    def remedy_for(self, job_name: str) -> str:
        """Return the remedy with the name of the model's Job filled in."""
        return self.remedy.replace(_JOB_NAME, job_name)


OF_THE_CLUSTER = frozenset(
    {Reason.CLAIM_NOT_BOUND, Reason.VOLUME_NOT_MOUNTED, Reason.POD_NOT_STARTING}
)
"""Reasons why a Pod does not start that are faults of the cluster's storage, network or nodes."""

_TRANSIENT = frozenset({Reason.RATE_LIMITED, Reason.SOURCE_UNREACHABLE, Reason.LOADER_CRASHED})
