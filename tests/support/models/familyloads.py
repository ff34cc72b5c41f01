"""Converts repos of other families than Stable Diffusion, without torch."""

from __future__ import annotations

from pathlib import Path

from sd_api.spec import ModelType, Revision
from sd_api.wire import Source
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.run import convert
from sd_loader.handover import Converted, Fetched
from tests.support.models import familyrepos
from tests.support.models.familyrepos import Files


def publish(files: Files, tmp_path: Path, revision: str | None = None) -> tuple[Path, Converted]:
    """Write the files of a repo, and convert it. Return the published folder and the result."""
    familyrepos.lay(files, tmp_path / "repo")
    return converted(Fetched(kind="repo", path="repo", source=Source()), tmp_path, revision)


def converted(fetched: Fetched, into: Path, revision: str | None = None) -> tuple[Path, Converted]:
    """Convert a download in the folder `into`. Return the published folder and the result."""
    out = into / "out"
    out.mkdir()
    precision = Revision(revision) if revision else None
    conversion = Conversion(ModelType.HUGGINGFACE, "model", precision)
    return out, convert(fetched, into, conversion, out, lambda _: None)
