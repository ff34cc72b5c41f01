"""Why a load stands where it stands: every reason a user can see, its remedy and its retry rule."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of the loader; the Job's podFailurePolicy is written in their terms."""

    DONE = 0
    TRY_AGAIN = 1
    PERMANENT = 3


class Retry(StrEnum):
    """What must happen before the operator starts another Job for the same model."""

    NEVER = "never"
    """These bytes will not load: only another source (a new loadHash) helps."""
    ON_CHANGE = "on-change"
    """A person must edit the spec, or set the reload annotation once the source was mended."""
    RESYNC = "resync"
    """The cause may pass by itself: the operator tries again, ever more slowly."""


class Reason(StrEnum):
    """Why a model is not (or not newly) loaded. The value is the condition's reason."""

    retry: Retry
    remedy: str

    def __new__(cls, value: str, retry: Retry, remedy: str) -> Reason:
        """Make a member that is its value, and carries its retry rule and remedy."""
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
    MODEL_ID_CONFLICT = (
        "ModelIdConflict",
        Retry.RESYNC,
        "Create the model anew with another spec.modelId, or delete the one that owns this id.",
    )
    CLAIM_NOT_FOUND = (
        "ClaimNotFound",
        Retry.RESYNC,
        "Create the PersistentVolumeClaim in the model's namespace, or create the model anew with"
        " a spec.storage.claimName that exists.",
    )
    VOLUME_NOT_WRITABLE = (
        "VolumeNotWritable",
        Retry.RESYNC,
        "Let the loader's group (fsGroup) write to the volume, and mount it read-write.",
    )
    UNSUPPORTED_VOLUME = (
        "UnsupportedVolume",
        Retry.ON_CHANGE,
        "Use a volume with symbolic links and atomic rename (NFS, CephFS, local disks; no object"
        " store mounts).",
    )
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        Retry.RESYNC,
        "Create the Secret that spec.credentialsSecretRef names, with the key `token`, in the"
        " model's namespace.",
    )
    CREDENTIALS_HOST_MISMATCH = (
        "CredentialsHostMismatch",
        Retry.RESYNC,
        "Set the Secret's key `host` to the exact host of spec.url; tokens are sent to that host"
        " only, and over https only.",
    )
    SOURCE_NOT_FOUND = (
        "SourceNotFound",
        Retry.ON_CHANGE,
        "Check spec.url and spec.gitRevision; for a private repo set spec.credentialsSecretRef.",
    )
    AUTHENTICATION_REQUIRED = (
        "AuthenticationRequired",
        Retry.ON_CHANGE,
        "Set spec.credentialsSecretRef to a Secret with a valid token for this host.",
    )
    ACCESS_DENIED = (
        "AccessDenied",
        Retry.ON_CHANGE,
        "Accept the model's licence on its page with the token's account, or use a token that may"
        " read it; then set the reload annotation.",
    )
    RATE_LIMITED = (
        "RateLimited",
        Retry.RESYNC,
        "Wait, or set spec.credentialsSecretRef: sources allow more to known users.",
    )
    SOURCE_UNREACHABLE = (
        "SourceUnreachable",
        Retry.RESYNC,
        "Check the host in spec.url and the cluster's egress (proxy, NetworkPolicy, DNS).",
    )
    ADDRESS_REFUSED = (
        "AddressRefused",
        Retry.ON_CHANGE,
        "Use a public https address, or have the administrator add the host to the allowed hosts.",
    )
    NOT_A_MODEL = (
        "NotAModel",
        Retry.ON_CHANGE,
        "Give the link of the model file itself, not of a page, a pointer or an error.",
    )
    DIGEST_MISMATCH = (
        "DigestMismatch",
        Retry.ON_CHANGE,
        "Compare spec.sha256 with the source's own; the file was altered or is another version.",
    )
    TOO_LARGE = (
        "TooLarge",
        Retry.ON_CHANGE,
        "Choose a smaller variant, or have the administrator raise the size limit.",
    )
    UNSUPPORTED_FORMAT = (
        "UnsupportedFormat",
        Retry.NEVER,
        "Choose a model of a supported type and architecture, and the modelType that fits it.",
    )
    UNSAFE_MODEL = (
        "UnsafeModel",
        Retry.NEVER,
        "The file holds code, or could: use a safetensors version from a source you trust.",
    )
    CONVERSION_FAILED = (
        "ConversionFailed",
        Retry.NEVER,
        "The file contradicts its architecture; spec.baseModel or spec.originalConfig may help.",
    )
    VERIFICATION_FAILED = (
        "VerificationFailed",
        Retry.NEVER,
        "The weights are damaged or do not fit spec.revision: try bf16 or fp32, or another file.",
    )
    INSUFFICIENT_STORAGE = (
        "InsufficientStorage",
        Retry.RESYNC,
        "Free space on the volume or enlarge the claim.",
    )
    OUT_OF_MEMORY = (
        "OutOfMemory",
        Retry.RESYNC,
        "Raise spec.job.resources.limits.memory.",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        Retry.RESYNC,
        "Raise the namespace's ResourceQuota or lower spec.job.resources.",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        Retry.RESYNC,
        "Make a node available that fits spec.job (GPU, selector, tolerations, volume zone).",
    )
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        Retry.RESYNC,
        "Check the loader image's name and the pull secrets.",
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        Retry.ON_CHANGE,
        "Raise spec.job.activeDeadlineSeconds, or use a faster source; then set the reload"
        " annotation. The download goes on where it stopped.",
    )
    BACKOFF_LIMIT_EXCEEDED = (
        "BackoffLimitExceeded",
        Retry.RESYNC,
        "Read the last Pod's log: kubectl logs job/<status.job.name> --all-containers.",
    )
    LOADER_CRASHED = (
        "LoaderCrashed",
        Retry.RESYNC,
        "Read the last Pod's log: kubectl logs job/<status.job.name> --all-containers.",
    )
    CLEANUP_FAILED = (
        "CleanupFailed",
        Retry.RESYNC,
        "Read the clean-up Job's log; to give the files up, set the annotation"
        ' sd-operator.dev/skip-cleanup: "true".',
    )

    @property
    def exit_code(self) -> ExitCode:
        """The loader's exit code: TRY_AGAIN where another Pod of the same Job may well succeed."""
        return ExitCode.TRY_AGAIN if self in _TRANSIENT else ExitCode.PERMANENT


_TRANSIENT = frozenset({Reason.RATE_LIMITED, Reason.SOURCE_UNREACHABLE, Reason.LOADER_CRASHED})
