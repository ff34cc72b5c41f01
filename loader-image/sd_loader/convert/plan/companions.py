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
    """The source folder, in which everything lies."""

    original_config: str | None = None
    """Name of the file of spec.originalConfig. None if the spec has none."""

    extras: Sequence[ExtraComponent] = ()
    """Components of the pipeline that do not come from its source."""

    skeleton: str | None = None
    """The folder of the repo that gives all missing components. None if the file has all."""

    @property
    def configs(self) -> Path:
        """The folder with configs and tokenizers that the source does not have."""
        return self.folder / CONFIGS_FOLDER
