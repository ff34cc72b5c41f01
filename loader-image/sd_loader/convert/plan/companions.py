"""The files that were downloaded in addition to a model's source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_loader.handover import CONFIGS_FOLDER, ExtraComponent


@dataclass(frozen=True)
class Companions:
    """The files that a conversion reads in addition to the source."""

    folder: Path
    """The source folder, which holds the source and its companions."""

    original_config: str | None = None
    """Name of the file of spec.originalConfig in `folder`. None if the spec has no such field."""

    extras: Sequence[ExtraComponent] = ()
    """Components of the pipeline that do not come from its source."""

    skeleton: str | None = None
    """The folder of the repo that gives the components which the file lacks, relative to `folder`.

    None if no such repo was downloaded.
    """

    @property
    def configs(self) -> Path:
        """The folder for configs and tokenizers that the source does not have."""
        return self.folder / CONFIGS_FOLDER
