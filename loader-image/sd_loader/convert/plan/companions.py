"""What was downloaded beside a model's own source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_loader.handover import CONFIGS_FOLDER, ExtraComponent


@dataclass(frozen=True)
class Companions:
    """The files beside a source that its conversion reads as well."""

    folder: Path
    """The source folder, in which everything lies."""

    original_config: str | None = None
    """Name of the file of spec.originalConfig. None if the spec has none."""

    extras: Sequence[ExtraComponent] = ()
    """Components of the pipeline that come from elsewhere."""

    @property
    def configs(self) -> Path:
        """The folder with the configs of a pipeline that only diffusers converts."""
        return self.folder / CONFIGS_FOLDER
