"""What the operator tells the loader, and what the loader answers.

The request is an argument of the loader's command line; the answer is the Pod's termination
message, which is untrusted: anyone who can write to the Pod can write it. So it has a fixed shape
and bounded strings, and it never names a path.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from sd_api.fields import Contract, Count, LoadHash, Sha256, ShortText, Uid, Url
from sd_api.reasons import Reason
from sd_api.spec import (
    BaseModelName,
    ModelId,
    ModelType,
    PredictionType,
    Revision,
    VaeSource,
    Verify,
    Weights,
)

RESULT_MAX_BYTES = 2048
MESSAGE_MAX_LENGTH = 512

CREDENTIALS_DIR = "/run/secrets/sd"
STORE_MOUNT = "/models"


class Owner(Contract):
    """Whose model it is."""

    uid: Uid
    namespace: Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9-]+$")]
    name: Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9.-]+$")]


class LoadRequest(Contract):
    """One load, in full: `sd-loader fetch --request JSON` and `convert` read the same."""

    owner: Owner
    model_id: ModelId
    model_type: ModelType
    url: Url
    load_hash: LoadHash
    git_revision: ShortText | None = None
    revision: Revision | None = None
    weights: Weights = Weights.STANDARD
    from_safetensors: bool | None = None
    upcast_attention: bool | None = None
    sha256: Sha256 | None = None
    base_model: BaseModelName | None = None
    prediction_type: PredictionType | None = None
    original_config: Url | None = None
    vae: VaeSource | None = None
    verify: Verify = Field(default_factory=Verify)
    credentials: bool = Field(
        default=False, description="Whether a token is expected in the credentials folder."
    )


class RemoveRequest(Contract):
    """The clean-up of one deleted model: `sd-loader remove --request JSON`."""

    owner: Owner
    model_id: ModelId
    retain: bool = Field(
        default=False,
        description="Keep what is published and mark it released, so that a model of the same"
        " namespace and name can take it over.",
    )


class Stage(StrEnum):
    """The stages of a load, as progress names them."""

    DOWNLOADING = "Downloading"
    CONVERTING = "Converting"
    VERIFYING = "Verifying"
    PUBLISHING = "Publishing"


class Progress(Contract):
    """How far a load is; one JSON line of it on the loader's stdout."""

    stage: Stage
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    bytes_done: Count | None = None
    bytes_total: Count | None = None
    bytes_per_second: Count | None = None
    eta_seconds: Count | None = None


class Source(Contract):
    """What was downloaded."""

    commit: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40,64}$", max_length=64)] | None
    ) = Field(default=None, description="The Hub repo's commit.")
    sha256: Sha256 | None = Field(default=None, description="Digest of a single-file download.")
    size_bytes: Count | None = Field(default=None, description="Bytes of the source.")
    format: Annotated[str, StringConstraints(max_length=32, pattern=r"^[a-z0-9-]+$")] | None = (
        Field(default=None, description="safetensors, ckpt or diffusers.")
    )


Word = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class Artifact(Contract):
    """What was published."""

    digest: Sha256 = Field(description="Digest of the folder: of its sorted files and digests.")
    size_bytes: Count
    shared_bytes: Count = Field(
        default=0, description="Bytes that this model shares with others by hard links."
    )
    files: Count
    base_model: Word | None = Field(default=None, description="The architecture family.")
    pipeline_class: Word | None = Field(default=None, description="diffusers' class.")
    precision: Word | None = Field(default=None, description="fp32, fp16, bf16 or mixed.")
    prediction_type: Word | None = Field(default=None, description="What the UNet predicts.")


class LoadResult(Contract):
    """The loader's answer: its termination message."""

    outcome: Literal["loaded", "fetched", "removed", "failed"]
    reason: Reason | None = None
    message: Annotated[str, StringConstraints(max_length=MESSAGE_MAX_LENGTH)] = ""
    source: Source | None = None
    artifact: Artifact | None = None
    preview: bool = False

    def to_message(self) -> str:
        """The termination message, at most RESULT_MAX_BYTES of UTF-8; a long text is cut."""
        text = self.model_dump_json(by_alias=True, exclude_defaults=True)
        excess = len(text.encode()) - RESULT_MAX_BYTES
        if excess <= 0:
            return text
        # Escapes make a character at most six bytes long, so cutting `excess` characters from an
        # unescaped text always suffices.
        shortened = self.message[: max(0, len(self.message) - excess - 1)] + "…"
        return self.model_copy(update={"message": shortened}).to_message()

    @classmethod
    def from_message(cls, text: str) -> LoadResult | None:
        """Read a termination message; None for whatever is not a well-formed answer."""
        if len(text.encode(errors="replace")) > RESULT_MAX_BYTES:
            return None
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError:
            return None
