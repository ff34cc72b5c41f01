"""A check of published versions: the operator's request, and the loader's result."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sd_api.fields import Contract, LoadHash, Uid
from sd_api.load import Request
from sd_api.spec import ModelId
from sd_api.wire import Message

VERSIONS_MAX = 250
"""Maximum number of versions in one check. The result has room for the positions of all."""


class CheckedVersion(Contract):
    """A published version, and the model id that it is served under."""

    uid: Uid
    load_hash: LoadHash
    model_id: ModelId


class CheckRequest(Request):
    """The versions to check: `sd-loader check --request JSON`."""

    versions: Annotated[tuple[CheckedVersion, ...], Field(min_length=1, max_length=VERSIONS_MAX)]


Positions = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=VERSIONS_MAX)], ...], Field(max_length=VERSIONS_MAX)
]
"""Positions in the request's list of versions, from 0."""


class CheckResult(Message):
    """Which of the versions are not complete: the termination message of a check."""

    max_bytes: ClassVar[int] = 2048
    """The limit in bytes. Kubernetes keeps 4096 bytes of a termination message."""

    outcome: Literal["checked", "empty"]
    """empty: the volume has no folder of versions, so nothing was compared."""
    missing: Positions = ()
    """The versions whose link, folder, receipt or files are missing or cut off."""
    unreadable: Positions = ()
    """The versions that could not be compared with their receipts: their state is not known."""
