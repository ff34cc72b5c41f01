"""What the steps of a load hand on: what was fetched, and what it was converted into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import StringConstraints

from sd_api.fields import Contract, ShortText
from sd_api.wire import Source


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256, in lower-case hex, and size of a written file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Converted:
    """A diffusers folder that is written completely.

    The words of base_model, pipeline_class, precision and prediction_type are those of
    status.artifact.
    """

    files: Mapping[str, FileDigest]
    """Every file by its path in the folder."""
    base_model: str | None = None
    pipeline_class: str | None = None
    precision: str | None = None
    """fp32, fp16, bf16 or mixed."""
    prediction_type: str | None = None
    warnings: tuple[str, ...] = ()
    """What the user should know although the load succeeded."""


_Name = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z]+$")]


class ExtraComponent(Contract):
    """A component of the pipeline that comes from elsewhere than its source.

    components: the names of their folders in a pipeline. path: the file, or the folder of a repo,
    relative to the source folder.
    """

    components: tuple[Literal["vae", "text_encoder", "text_encoder_2"], ...]
    kind: Literal["file", "repo"]
    path: Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z]+/[a-z]+$")]


class Fetched(Contract):
    """What lies in the source folder once everything is there.

    path: the file, or the folder of a diffusers repo, relative to the source folder.
    converted: what was made of it while it came, where nothing else is there. original_config:
    like path, the file of spec.originalConfig. warnings: what a person should know of the source.
    """

    kind: Literal["file", "repo"]
    path: _Name
    source: Source
    converted: Converted | None = None
    warnings: tuple[ShortText, ...] = ()
    original_config: _Name | None = None
    parts: tuple[ExtraComponent, ...] = ()
