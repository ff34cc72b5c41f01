"""Reads the Hub's response for a repo. It includes the front matter of the repo's README.md.

Only the fields that a load needs are read strictly. The front matter may contain anything: only the
model card is made from it, and a load does not need a card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from sd_api.fields import Count, Sha256
from sd_api.reasons import Reason
from sd_api.sites.lenient_json import parse
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.errors import LoaderError

_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Listed(BaseModel):
    model_config = ConfigDict(strict=True)

    path: str
    size: Count
    sha256: Sha256 | None
    blob_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None


@dataclass(frozen=True)
class RepoListing:
    """One commit of a repo."""

    name: object
    """The repo's present name. It is not checked."""

    commit: str

    files: tuple[RepoFile, ...]

    front_matter: Mapping[str, object]
    """The front matter of README.md, as the Hub has parsed it. Empty if it is not an object."""


def read_listing(content: bytes) -> RepoListing:
    """Read a response. Raise LoaderError if a field that a load needs is missing or invalid."""
    try:
        answer = parse(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _unreadable("the response is not in the Hub's format")
    commit = answer.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _unreadable("the response has no commit")
    front_matter = answer.get("cardData")
    try:
        files = tuple(_file(sibling) for sibling in answer.get("siblings") or ())
    except (ValidationError, AttributeError, KeyError, TypeError) as error:
        raise _unreadable("the list of files is not in the Hub's format") from error
    return RepoListing(
        answer.get("id"),
        commit,
        files,
        front_matter if isinstance(front_matter, dict) else {},
    )


def _unreadable(words: str) -> LoaderError:
    return LoaderError(Reason.SOURCE_UNREACHABLE, words)


def _file(sibling: Mapping[str, Any]) -> RepoFile:
    lfs = sibling.get("lfs")
    listed = _Listed(
        path=sibling["rfilename"],
        size=lfs["size"] if lfs else sibling.get("size") or 0,
        sha256=lfs["sha256"] if lfs else None,
        blob_id=sibling.get("blobId"),
    )
    return RepoFile(listed.path, listed.size, listed.sha256, listed.blob_id)
