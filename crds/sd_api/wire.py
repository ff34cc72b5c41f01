"""What the loader reports: progress lines, its result, and the receipt on the volume.

All of it is untrusted: anyone who can write to the Pod or to the volume can forge it. So each kind
of message has one codec, with a size limit, strict types and bounded values, and no message names a
path outside the published folder. A newer loader may have written a message: fields that this
version does not know are ignored at every level.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError

from sd_api.card import Card
from sd_api.fields import Blake3, Count, Extensible, FolderDigest, LoadHash, Sha256, Uid
from sd_api.names import PICTURE_FILE, PREVIEW_FILE
from sd_api.reasons import Reason

MESSAGE_MAX_LENGTH = 512
"""Maximum number of characters in a result's message."""
_FILE_NAME_MAX_BYTES = 255


class Message(Extensible):
    """Base of the messages: one codec, one size limit."""

    max_bytes: ClassVar[int]
    """The limit in bytes of UTF-8."""

    def encode(self) -> str:
        """The message as JSON, without fields at their default."""
        return _json(self)

    @classmethod
    def decode(cls, text: str | bytes) -> Self | None:
        """Read a message. Return None if it is too long or malformed."""
        data = text.encode(errors="replace") if isinstance(text, str) else text
        if len(data) > cls.max_bytes:
            return None
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError:
            return None


def _json(message: Message, indent: int | None = None) -> str:
    return message.model_dump_json(by_alias=True, exclude_defaults=True, indent=indent)


class Stage(StrEnum):
    """The stages of a load, as progress names them."""

    DOWNLOADING = "Downloading"
    CONVERTING = "Converting"
    VERIFYING = "Verifying"
    PUBLISHING = "Publishing"


class Progress(Message):
    """How far a load is. The loader prints it to stdout, each time as one line of JSON."""

    max_bytes: ClassVar[int] = 2048

    stage: Stage
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    bytes_done: Count | None = None
    bytes_total: Count | None = None
    bytes_per_second: Count | None = None
    eta_seconds: Count | None = None


class Sha256Missing(StrEnum):
    """Why the SHA-256 of a link's or local file is not known."""

    RESUMED = "Resumed"
    """Another Pod downloaded a part of the file."""
    RANGES_ONLY = "RangesOnly"
    """Only the ranges that the conversion needs were downloaded, or read from a local file."""


PinnedRepo = Annotated[
    str,
    StringConstraints(
        max_length=256, pattern=r"^[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}@[0-9a-f]{40,64}$"
    ),
]
"""A repo of the Hub at one commit: ORG/NAME@COMMIT."""
Word = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class Source(Extensible):
    """The downloaded source."""

    commit: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40,64}$", max_length=64)] | None
    ) = Field(default=None, description="The Hub repo's commit.")
    sha256: Sha256 | None = Field(default=None, description="Digest of a single-file download.")
    sha256_missing: Word | None = Field(
        default=None,
        description="Why sha256 is absent although the source is a single file: Resumed (an earlier"
        " Pod downloaded a part of it) or RangesOnly (only the needed parts were downloaded, or"
        " read from a local file).",
    )
    version: (
        Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.:@+-]+$")] | None
    ) = Field(
        default=None,
        description="Model, version and file at Civitai, as MODEL@VERSION+FILE.",
    )
    file: (
        Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9 ._()+@-]+$")] | None
    ) = Field(default=None, description="Name of the file at Civitai.")
    size_bytes: Count | None = Field(default=None, description="Bytes of the source.")
    components_from: PinnedRepo | None = Field(
        default=None,
        description="The Hub repo, at its commit, that gave the components which the source lacks.",
    )
    format: Annotated[str, StringConstraints(max_length=32, pattern=r"^[a-z0-9-]+$")] | None = (
        Field(default=None, description="safetensors, ckpt or diffusers.")
    )


class Artifact(Extensible):
    """The published folder."""

    digest: FolderDigest = Field(
        description="Digest of the sorted list of the folder's files with their digests."
    )
    size_bytes: Count
    shared_bytes: Count = Field(
        default=0, description="Bytes that this model shares with others by hard links."
    )
    files: Count
    model_type: Word | None = Field(
        default=None, description="The type that the model was loaded as: the one of its source."
    )
    base_model: Word | None = Field(
        default=None, description="The family, such as sd-1, sdxl or flux."
    )
    variant: Word | None = Field(
        default=None,
        description="The variant of the family, such as inpaint or schnell. Absent if the files do"
        " not show it.",
    )
    format: Word | None = Field(
        default=None,
        description="How the folder is opened: diffusers, peft (a LoRA for diffusers and PEFT) or"
        " embedding_folder.",
    )
    pipeline_class: Word | None = Field(default=None, description="diffusers' class.")
    precision: Word | None = Field(
        default=None,
        description="fp32, fp16, bf16, mixed, or the format of quantized weights (nf4, int8).",
    )
    prediction_type: Word | None = Field(default=None, description="What the UNet predicts.")
    lora_rank: Count | None = Field(
        default=None, description="The greatest rank of a LoRA's layers."
    )
    checked: Word | None = Field(
        default=None,
        description="names: the loader checked the tensors' names, types and sizes, but did not"
        " compare them with the architecture. Absent: it compared them, too.",
    )
    card: Card | None = Field(
        default=None,
        description="Statements about the model from its source and its file, shortened. Nobody"
        " has checked them.",
    )


def _known_reason(value: object) -> object:
    """Read the name of a reason; an unknown one is LoaderCrashed. Return other values unchanged."""
    if isinstance(value, str) and re.fullmatch("[A-Za-z]{1,64}", value):
        return Reason.parse(value) or Reason.LOADER_CRASHED
    return value


class LoadResult(Message):
    """The loader's result: its termination message."""

    max_bytes: ClassVar[int] = 3072
    """The limit in bytes; Kubernetes keeps 4096 bytes of a termination message. All fields except
    `message` have at most 2.7 kB together, with a card of CARD_MAX_BYTES."""

    outcome: Literal["loaded", "fetched", "removed", "failed"]
    reason: Annotated[Reason | None, BeforeValidator(_known_reason)] = None
    """A reason that this version does not know is read as LoaderCrashed."""
    message: Annotated[str, StringConstraints(max_length=MESSAGE_MAX_LENGTH)] = ""
    source: Source | None = None
    artifact: Artifact | None = None
    preview: bool = False
    picture: bool = False

    def encode(self) -> str:
        """The termination message as JSON; a text in `message` that does not fit is cut."""
        text = _json(self)
        if len(text.encode()) <= self.max_bytes:
            return text
        shortest = _json(self.model_copy(update={"message": "…"}))
        start = _cut(self.message, self.max_bytes - len(shortest.encode()))
        return _json(self.model_copy(update={"message": f"{start}…"}))


def _cut(text: str, room: int) -> str:
    """Return the longest prefix of a text that takes at most this many bytes in JSON."""
    for index, character in enumerate(text):
        room -= len(json.dumps(character, ensure_ascii=False).encode()) - len('""')
        if room < 0:
            return text[:index]
    return text


def _only_names(path: str) -> str:
    if any(
        name in {".", ".."} or len(name.encode()) > _FILE_NAME_MAX_BYTES for name in path.split("/")
    ):
        raise ValueError("a path in the folder consists of file names")
    return path


RelativePath = Annotated[
    str,
    StringConstraints(max_length=1024, pattern=r"^[^/\x00-\x1f]+(/[^/\x00-\x1f]+)*$"),
    AfterValidator(_only_names),
]


class PublishedFile(Extensible):
    """One file of a version."""

    blake3: Blake3
    sha256: Sha256 | None = None
    """The digest from the download. None if it is not known, or if the file was converted."""
    size: Count


class Receipt(Message):
    """`.sd-receipt.json` in a published version: what it contains and how it was made."""

    max_bytes: ClassVar[int] = 16 << 20

    uid: Uid
    load_hash: LoadHash
    source: Source
    artifact: Artifact
    message: Annotated[str, StringConstraints(max_length=MESSAGE_MAX_LENGTH)] = Field(
        default="", description="Warnings of the conversion."
    )
    files: dict[RelativePath, PublishedFile]

    def encode(self) -> str:
        """The file's content, indented for people. Raise ValueError if it is too long."""
        text = _json(self, indent=2)
        if len(text.encode()) > self.max_bytes:
            raise ValueError(f"the receipt of {len(self.files)} files is too long")
        return text

    def result(self) -> LoadResult:
        """Return the result of the load that wrote this receipt."""
        return LoadResult(
            outcome="loaded",
            message=self.message,
            source=self.source,
            artifact=self.artifact,
            preview=PREVIEW_FILE in self.files,
            picture=PICTURE_FILE in self.files,
        )

    def sharing(self, count: int) -> Receipt:
        """Return the receipt with the number of bytes that the version shares with others."""
        artifact = self.artifact.model_copy(update={"shared_bytes": count})
        return self.model_copy(update={"artifact": artifact})
