"""Where a model comes from: downloads a request's source into a folder, resumably."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from sd_api.fields import Contract
from sd_api.load import LoadRequest, Source
from sd_api.reasons import Reason
from sd_api.spec import HUB_PAGE_PATTERN, HUB_REPO_PATTERN, ModelType
from sd_loader.errors import LoaderError
from sd_loader.progress import Report
from sd_loader.settings import Settings


class Fetched(Contract):
    """What lies in the source folder once everything is there.

    path: the file, or the folder of a diffusers repo, relative to the source folder.
    """

    kind: Literal["file", "repo"]
    path: Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z]+$")]
    source: Source


def fetch(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    allow_local: bool = False,
) -> Fetched:
    """Download the request's source into a folder, going on with what lies there already.

    allow_local: a url without a scheme may be a path on this machine. Only a person at the command
    line may say so: a request of the operator reads no files of the node.
    """
    # Imported here: the other commands do without the HTTP stack and start faster.
    is_repo = request.model_type is ModelType.HUGGINGFACE
    if request.model_type in (ModelType.CONTROLNET, ModelType.VAE):
        is_repo = _names_repo(request.url, settings)
    match request.model_type:
        case _ if is_repo:
            from sd_loader.source.hub import fetch_repo

            return fetch_repo(request, settings, into, report)
        case ModelType.CUSTOM_CKPT | ModelType.CONTROLNET | ModelType.VAE if (
            allow_local and "://" not in request.url
        ):
            from sd_loader.source.local import take_file

            return take_file(request, settings, into)
        case ModelType.CUSTOM_CKPT | ModelType.CONTROLNET | ModelType.VAE:
            from sd_loader.source.http import fetch_link

            return fetch_link(request, settings, into, report)
        case _:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"model type {request.model_type.value} is not supported by this version of the"
                " loader",
            )


def _names_repo(url: str, settings: Settings) -> bool:
    """Whether a url is a Hub repo's id or page, of the Hub or of the configured mirror."""
    path = url.rstrip("/").removeprefix(f"{settings.hub_endpoint}/")
    return bool(re.match(HUB_PAGE_PATTERN, url) or re.match(HUB_REPO_PATTERN, path))
