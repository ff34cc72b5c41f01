"""Sweeps a volume as if some time had passed since the test's actions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sd_loader.store.blobs import SHARED_FROM
from sd_loader.store.volume import Volume
from sd_loader.sweep import FindingKind, Swept, sweep
from tests.support.store.volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NEW_HASH,
    OWNER,
    STRANGER,
    load,
    load_untidily,
)

WEIGHTS = {**FILES, "vae/weights": b"w" * SHARED_FROM}
OTHER_OWNER = STRANGER.model_copy(update={"name": "other"})
VERSION = f".store/uid-1/{HASH}"


def swept(root: Path, later: timedelta = 2 * DAY, **options: Any) -> Swept:
    """Sweep as if `later` had passed; ownerless files that are older than a day are orphans."""
    now = datetime.now(UTC) + later
    return sweep(root, older_than=DAY, retain=DAY, now=now, **options)


def found(root: Path, kind: FindingKind = FindingKind.ORPHAN, **options: Any) -> dict[str, str]:
    """Return the paths of the findings of a kind, and the reason for each."""
    return {one.path: one.why for one in swept(root, **options).findings if one.kind is kind}


def nobodys_files(volume: Volume) -> None:
    """Create a model whose link is removed, and a folder whose owner was never recorded."""
    load(volume)
    volume.root.unlink(MODEL_ID)
    volume.make(".store", "uid-7").close()


def superseded_unrecorded(volume: Volume) -> None:
    """Create a version that a Pod replaced, and let the Pod die before it records the change."""
    load(volume)
    load_untidily(volume, OWNER, NEW_HASH, MODEL_ID)
