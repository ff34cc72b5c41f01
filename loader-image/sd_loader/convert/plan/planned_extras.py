"""The planned folders of a pipeline's extra components. `extras` plans them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sd_loader.convert.write.files import PlannedFile


@dataclass(frozen=True)
class PlannedComponent:
    """An extra component whose folder is planned."""

    files: tuple[PlannedFile, ...]
    """All files of its folder, including config.json."""

    dimensions: Mapping[str, int] = field(default_factory=dict)
    """Dimensions that its shapes show. The pipeline's other components must agree."""


@dataclass(frozen=True)
class PlannedExtras:
    """The extra components of a pipeline."""

    components: Mapping[str, PlannedComponent] = field(default_factory=dict)
    """Components by the names of their folders. Each replaces one of the source's, or is added."""

    warnings: tuple[str, ...] = ()
    """Warnings for the user about the extra components."""


NO_EXTRAS = PlannedExtras()
