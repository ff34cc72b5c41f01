"""What a checkpoint is planned with that its file does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sd_loader.convert.plan.original import NOTHING_SAID, OriginalConfig
from sd_loader.convert.write.files import PlannedFile


@dataclass(frozen=True)
class Supplied:
    """A component that comes from elsewhere, planned already.

    files: all of its folder, config.json among them. dimensions: what its shapes say, by the names
    of the key tables (`text_encoder: 768`); other components are compared with them.
    """

    files: tuple[PlannedFile, ...]
    dimensions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """parts: components to publish instead of the checkpoint's own, or where it has none.

    original: what spec.originalConfig says.
    """

    parts: Mapping[str, Supplied] = field(default_factory=dict)
    original: OriginalConfig = NOTHING_SAID
