"""Reads the answer of the Hub's API about a repo, which its owner may have filled with anything.

The gateway shows the result to people, so a field with a wrong type counts as absent. A load needs
each file with its digest, so the loader reads the list of files strictly
(`sd_loader.source.hub_listing`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.card import Card
from sd_api.fields import COUNT_MAX
from sd_api.sites.hub_card import card_of_repo
from sd_api.sites.lenient_json import inner_object
from sd_api.url_forms import HUB_REPO_PATTERN

_MAX_FILES = 20_000
_PATH_MAX_LENGTH = 1000
_INDEX = "model_index.json"
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RepoAnswer:
    """A repo at one revision."""

    repo_id: str
    """The repo's present name."""

    card: Card

    files: Mapping[str, int | None]
    """The sizes of the files in bytes, by their paths. None if the Hub does not state a size."""

    is_gated: bool
    """True if only accounts that accepted the repo's terms can download its files."""

    pipeline_class: str | None
    """The class of the pipeline, if the Hub states it."""

    @property
    def is_pipeline(self) -> bool:
        """Whether the repo is a diffusers pipeline."""
        return _INDEX in self.files

    @property
    def size_bytes(self) -> int | None:
        """The size of all files together. None if the size of a file is not known."""
        sizes = [size for size in self.files.values() if size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def read_repo(answer: Json, asked: str, endpoint: str) -> RepoAnswer:
    """Read the answer for a repo.

    asked: the name in the request. endpoint: the site that has the repo's page.
    """
    repo_id = present_name(answer.get("id"), asked)
    pipeline_class = inner_object(inner_object(answer, "config"), "diffusers").get("_class_name")
    is_class = isinstance(pipeline_class, str) and _CLASS.fullmatch(pipeline_class) is not None
    return RepoAnswer(
        repo_id=repo_id,
        card=card_of_repo(repo_id, endpoint, inner_object(answer, "cardData")),
        files=_files(answer.get("siblings")),
        is_gated=answer.get("gated") in ("auto", "manual", True),
        pipeline_class=str(pipeline_class) if is_class else None,
    )


def present_name(stated: object, asked: str) -> str:
    """Return the name that an answer states. It is a new one if the repo was renamed.

    asked: the name in the request, which is returned if the answer does not state a name.
    """
    is_name = isinstance(stated, str) and re.fullmatch(HUB_REPO_PATTERN, stated) is not None
    return str(stated) if is_name else asked


def _files(siblings: object) -> dict[str, int | None]:
    files: dict[str, int | None] = {}
    for sibling in siblings[:_MAX_FILES] if isinstance(siblings, list) else ():
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(path, str) and len(path) <= _PATH_MAX_LENGTH:
            size = sibling.get("size")
            files[path] = size if type(size) is int and 0 <= size <= COUNT_MAX else None
    return files
