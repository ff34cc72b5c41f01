"""`sd-loader list` and `sd-loader verify`: the published models of a store, and their state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sd_api.fields import Contract
from sd_api.humanize import files, size
from sd_api.names import STORE_DIR
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.store.altered import Digests, altered_files
from sd_loader.store.orphans import links
from sd_loader.store.ownership import Version
from sd_loader.store.receipt import read_receipt
from sd_loader.store.volume import Volume

_COLUMNS = ("MODEL", "BASE", "VARIANT", "PIPELINE", "PRECISION", "SIZE", "FILES", "DIGEST")
_DIGEST_WIDTH = len("blake3:") + 12


class Published(Contract):
    """One published model. Fields of the same name as in status.artifact have the same values."""

    model_id: str
    base_model: str | None = None
    variant: str | None = None
    format: str | None = None
    pipeline_class: str | None = None
    precision: str | None = None
    size_bytes: int | None = None
    files: int | None = None
    digest: str | None = None
    problem: str | None = None
    """Why nothing but the model id is known; None if the receipt could be read."""


@dataclass(frozen=True)
class Verified:
    """The result of comparing a published model with its receipt."""

    model_id: str

    folder: Path
    """The folder to which the model's link points."""
    files: int

    problems: tuple[tuple[str, str], ...]
    """The path of each altered file in the model's folder, and what is wrong with it."""

    def to_text(self) -> str:
        """Return one line for each problem, or a single line if there is no problem."""
        if not self.problems:
            return f"{self.model_id}: as it was published, {files(self.files)}"
        return "\n".join(f"{self.model_id}/{snippet(path)}: {why}" for path, why in self.problems)

    def remedy(self) -> str:
        """Return how to get intact files. A load alone would keep files of the right size."""
        return f"Remove the folder {self.folder}, and load the model again."


def published(store: Path) -> list[Published]:
    """List the published models of a store, sorted by model id."""
    with Volume.open(store) as volume:
        return [_describe(volume, name, version) for name, version in sorted(links(volume).items())]


def verify(store: Path, model_id: str) -> Verified:
    """Compare all files of a published model with the digests in its receipt."""
    with Volume.open(store) as volume:
        models = links(volume)
        version = models.get(model_id)
        if version is None:
            known = snippet(", ".join(sorted(models))) or "no model"
            raise LoaderError(
                Reason.SOURCE_NOT_FOUND,
                f"{snippet(model_id)} is not published in {store}; the store has {known}",
                remedy="Give the name of a model that `sd-loader list` shows, or another --store.",
            )
        described = _describe(volume, model_id, version)
        problems = altered_files(volume, version, Digests())
    folder = store / STORE_DIR / version.uid / version.load_hash
    return Verified(model_id, folder, described.files or 0, tuple(problems))


def to_json(models: Iterable[Published]) -> str:
    """Return one JSON object per line."""
    return "\n".join(model.model_dump_json(by_alias=True, exclude_none=True) for model in models)


def to_text(models: Iterable[Published]) -> str:
    """Return a table, or one sentence if no model is published."""
    rows = [_row(model) for model in models]
    if not rows:
        return "No model is published in this store."
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_COLUMNS, *rows)
    )


def _row(model: Published) -> tuple[str, ...]:
    if model.problem is not None:
        return (model.model_id, model.problem, *("" for _ in _COLUMNS[2:]))
    return (
        model.model_id,
        model.base_model or "-",
        model.variant or "-",
        model.pipeline_class or "-",
        model.precision or "-",
        size(model.size_bytes or 0),
        str(model.files),
        (model.digest or "")[:_DIGEST_WIDTH],
    )


def _describe(volume: Volume, model_id: str, version: Version) -> Published:
    folder = volume.find(STORE_DIR, version.uid, version.load_hash)
    if folder is None:
        return Published(model_id=model_id, problem="its folder is missing")
    with folder:
        try:
            artifact = read_receipt(folder).artifact
        except (OSError, ValueError):
            return Published(model_id=model_id, problem="its receipt cannot be read")
    return Published(model_id=model_id, **artifact.model_dump(include=set(Published.model_fields)))
