"""Where a model comes from: downloads a request's source into a folder, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from sd_api.fields import Contract
from sd_api.load import LoadRequest, Source
from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.errors import LoaderError
from sd_loader.progress import Report
from sd_loader.settings import Settings

_FILES = (ModelType.CUSTOM_CKPT, ModelType.LORA, ModelType.EMBEDDINGS)
"""The model types that a link to one file may be of."""


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
    match request.model_type:
        case ModelType.HUGGINGFACE:
            from sd_loader.source.hub import fetch_repo

            return fetch_repo(request, settings, into, report)
        case kind if kind in _FILES and allow_local and "://" not in request.url:
            from sd_loader.source.local import take_file

            return take_file(request, settings, into)
        case kind if kind in _FILES:
            from sd_loader.source.http import fetch_link

            return fetch_link(request, settings, into, report)
        case _:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"model type {request.model_type.value} is not supported by this version of the"
                " loader",
            )
