"""The configs of a pipeline, from the Hub repo that has them: what a single file does not hold."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.transport import PACE, Pace
from sd_loader.progress import Report
from sd_loader.settings import Settings

CONFIGS = "configs"
SMALL = (".json", ".txt", ".model")
"""Configs, vocabularies, and T5's sentencepiece model."""


def fetch_configs(
    repo_id: str,
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> None:
    """Download a repo's configs and tokenizers into `into`/configs, and none of its weights."""
    # Imported here: few loads need it.
    from sd_loader.source.hub import fetch_chosen

    def small(path: str) -> bool:
        name = PurePosixPath(path)
        part = len(name.parts) == 2 and name.suffix in SMALL and ".index." not in name.name
        return part or path == INDEX_NAME

    try:
        fetch_chosen(
            repo_id, request, settings, into / CONFIGS, report, small, retries=retries, pace=pace
        )
    except LoaderError as error:
        raise LoaderError(
            error.reason, f"the file needs the configs of {repo_id}: {error.message}"
        ) from error
    if not (into / CONFIGS / INDEX_NAME).is_file():
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{repo_id} has no {INDEX_NAME}")
