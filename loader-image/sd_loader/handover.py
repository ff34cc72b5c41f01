"""The results that the stages of a load pass on: the fetched source and the converted folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from sd_api.card import NO_CARD, Card
from sd_api.choices import ModelType
from sd_api.fields import Contract, ShortText
from sd_api.wire import Source

CONFIGS_FOLDER = "configs"
"""The folder in the source folder for configs and tokenizers that the source does not have."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """BLAKE3, in lower-case hex, and size of a written file."""

    blake3: str
    size: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file in the source folder, with the digests that were taken while it was written."""

    blake3: str
    size: int
    mtime_ns: int
    """Time of the last change. The digests are valid as long as the file has this time."""
    sha256: str | None = None
    """None if it was unpacked from an archive."""


AtHand = Callable[[str, int, Path], Arrived | None]
"""Links a file of the volume with this SHA-256 and size to a path. None if it has no such file."""


def nothing_at_hand(_sha256: str, _size: int, _path: Path) -> None:
    """Return None, so that every file is downloaded."""


@dataclass(frozen=True)
class Converted:
    """A diffusers folder that is written completely.

    base_model, variant, pipeline_class, precision, prediction_type, lora_rank and checked have the
    values of the same fields of status.artifact.
    """

    files: Mapping[str, FileDigest]
    """All files, by their paths in the folder."""
    base_model: str | None = None
    variant: str | None = None
    pipeline_class: str | None = None
    precision: str | None = None
    """fp32, fp16, bf16, mixed, or the format of quantized weights."""
    prediction_type: str | None = None
    lora_rank: int | None = None
    checked: str | None = None
    word: str | None = None
    """The word by which prompts name a published embedding."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user about a load that succeeded."""


_Name = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z]+$")]
_Path = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9_]+/[a-z]+$")]
_Folder = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9_]+$")]


class ExtraComponent(Contract):
    """One or more components of a pipeline that do not come from its source."""

    components: tuple[_Folder, ...]
    """The names of their folders in a pipeline."""
    kind: Literal["file", "repo"]
    path: _Path
    """The file, or the folder of a repo, relative to the source folder."""


class Fetched(Contract):
    """The content of the source folder after a complete download."""

    kind: Literal["file", "repo"]
    path: _Name
    """The file, or the folder of a diffusers repo, relative to the source folder."""
    source: Source
    model_type: ModelType | None = None
    """The type that the source shows, even if the request names another. None: not known."""
    files: Mapping[str, Arrived] = {}
    """The downloaded model files, by their paths relative to the source folder."""
    converted: Converted | None = None
    """The result of a conversion during the download. None if the source is not converted yet."""
    warnings: tuple[ShortText, ...] = ()
    """Warnings for the user about the source."""
    card: Card = NO_CARD
    """The card from the source and the file, without secrets."""
    picture: _Name | None = None
    """The file of a picture that the source shows, relative to the source folder."""
    original_config: _Name | None = None
    """The file of spec.originalConfig, relative to the source folder."""
    extras: tuple[ExtraComponent, ...] = ()
    skeleton: _Path | None = None
    """The folder of the repo that gives all components which the file lacks, relative to the source
    folder. None for a file that needs no such repo."""

    def arrived_in(self, folder: Path) -> Mapping[Path, Arrived]:
        """The downloaded files by their paths. folder: the source folder."""
        return {folder / name: file for name, file in self.files.items()}
