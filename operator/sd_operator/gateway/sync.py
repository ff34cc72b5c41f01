"""Finds the models whose source has changed since they were loaded, for sync_models.

A Hub repo has changed if its branch (spec.gitRevision, default main) is at another commit than the
loaded one. A model on Civitai has changed if it has a newer version than the loaded one. A link has
changed if the server reports another digest or size than those of the loaded file. A source counts
as unchanged if the gateway cannot find this out: a private repo or model, because the gateway reads
no Secrets; a link to a server that reports neither digest nor size; and a trained model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from sd_api.sites.civitai_answers import read_model
from sd_api.sources import MAIN, CivitaiModel, HubFile, HubRepo, Link, read_source
from sd_api.status import ConditionType
from sd_operator.clients.http import Outgoing
from sd_operator.clients.kube import Json
from sd_operator.gateway import fetching
from sd_operator.gateway.models import condition, is_ready
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.resources.model import Model

log = logging.getLogger(__name__)

CALL_SECONDS = 10.0
TOTAL_SECONDS = 60.0
CALLS_AT_ONCE = 16
INFO_MAX_BYTES = 4 * 2**20
"""Maximum size of an API's description of a repo or a model, which lists all its files."""
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOADED_VERSION = re.compile(r"(?:[0-9]+@)?([0-9]+)(?:\+[0-9]+)?")
"""status.source.version: [MODEL@]VERSION[+FILE]."""


@dataclass(frozen=True)
class Branch:
    """A branch or tag of a Hub repo."""

    repo: str
    revision: str


@dataclass(frozen=True)
class Page:
    """The page of a model on Civitai, which stands for the model's newest version."""

    model_id: int


@dataclass(frozen=True)
class Newest:
    """The newest version of a model on Civitai."""

    version_id: int


@dataclass(frozen=True)
class File:
    """What servers report about the file behind a link; None if it is not known."""

    sha256: str | None = None
    size: int | None = None
    """In bytes."""


Source = Branch | Page | str
"""A source that can be checked. A text is the link to a file."""
State = str | Newest | File
"""What a server reports about a source. A text is the commit of a branch."""


async def moved(bodies: Sequence[Json], settings: GatewaySettings) -> list[Json]:
    """Return the loaded models whose source has changed; request each source only once.

    A source without a response within the time limits counts as unchanged. Models that are being
    loaded or deleted are left out.
    """
    idle = [body for body in bodies if _is_idle(body)]
    sources = {source: None for body in idle if (source := _source(body, settings)) is not None}
    slots = asyncio.Semaphore(CALLS_AT_ONCE)
    states: dict[Source, State] = {}
    outgoing = Outgoing(
        settings.guard(),
        CALL_SECONDS,
        settings.proxy,
        settings.no_proxy,
        settings.ca_file,
    )

    async def check(source: Source) -> None:
        async with slots:
            with contextlib.suppress(*fetching.ERRORS):
                match source:
                    case Branch():
                        states[source] = await _commit(outgoing, settings.hub, source)
                    case Page():
                        states[source] = await _newest(outgoing, settings.civitai, source)
                    case _:
                        states[source] = await _file(outgoing, source)

    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOTAL_SECONDS), asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(check(source))
    finally:
        await outgoing.close()
    log.info("sources checked: %d, answered: %d", len(sources), len(states))
    return [body for body in idle if _differs(body, states.get(_source(body, settings) or ""))]


def _is_idle(body: Json) -> bool:
    """Return whether a model is loaded, and is neither being loaded again nor deleted."""
    busy = condition(body, ConditionType.RECONCILING).get("status") == "True"
    return is_ready(body) and not busy and not body["metadata"].get("deletionTimestamp")


def _source(body: Json, settings: GatewaySettings) -> Source | None:
    """Return the source to check; None if it cannot change, or cannot be checked."""
    model = Model.from_body(body)
    if model.spec is None:
        return None
    match read_source(model.url, model.spec.model_type, model.spec.git_revision, settings.hub_page):
        case HubRepo(repo, revision):
            pinned = revision is not None and _COMMIT.fullmatch(revision)
            return None if pinned else Branch(repo, revision or MAIN)
        case HubFile(repo, revision, path):
            hub, at = settings.hub.rstrip("/"), quote(revision, safe="")
            return f"{hub}/{repo}/resolve/{at}/{quote(path)}"
        case CivitaiModel(model_id, None) if model_id is not None:
            return Page(model_id)
        case Link(url):
            return url
    return None


def _differs(body: Json, state: State | None) -> bool:
    """Return whether the server reports another commit, version, digest or size than the loaded.

    False if the server reports nothing.
    """
    loaded = body["status"].get("source") or {}
    if isinstance(state, str):
        return loaded.get("commit") not in (None, state)
    if isinstance(state, Newest):
        version = _LOADED_VERSION.fullmatch(loaded.get("version") or "")
        return version is not None and int(version[1]) != state.version_id
    if state is None:
        return False
    if state.sha256 and loaded.get("sha256"):
        return bool(state.sha256 != loaded["sha256"])
    return None not in (state.size, loaded.get("sizeBytes")) and state.size != loaded["sizeBytes"]


async def _commit(outgoing: Outgoing, hub: str, branch: Branch) -> str:
    """Return the current commit of a branch; raise ValueError if the Hub does not report it."""
    revision = quote(branch.revision, safe="")
    url = f"{hub}/api/models/{branch.repo}/revision/{revision}"
    commit = str((await fetching.read_json(outgoing, url, INFO_MAX_BYTES)).get("sha"))
    if not _COMMIT.fullmatch(commit):
        raise ValueError("the description of the repo has no commit")
    return commit


async def _newest(outgoing: Outgoing, civitai: str, page: Page) -> Newest:
    """Return the newest version of a model; raise ValueError if Civitai does not report it.

    The newest version is the first of Civitai's list, as for the loader.
    """
    url = f"{civitai}/api/v1/models/{page.model_id}"
    versions = read_model(await fetching.read_json(outgoing, url, INFO_MAX_BYTES)).versions
    if not versions:
        raise ValueError("the description of the model has no version")
    return Newest(versions[0])


async def _file(outgoing: Outgoing, url: str) -> File:
    """Return what the server of a file, and the servers that redirect to it, report about it."""
    file = File()
    headers = {"Accept-Encoding": "identity"}
    async with fetching.responses(outgoing, "HEAD", url, headers) as answers:
        async for response in answers:
            # The Hub reports the file's digest (X-Linked-ETag) and size in its redirect.
            etag = response.headers.get("X-Linked-ETag") or response.headers.get("ETag") or ""
            size = response.headers.get("X-Linked-Size")
            final = response.status == 200 and not fetching.is_text(response)
            if final and "Content-Encoding" not in response.headers:
                size = size or response.headers.get("Content-Length")
            file = File(
                file.sha256 or (etag.strip('"') if _SHA256.fullmatch(etag.strip('"')) else None),
                file.size or (int(size) if size and size.isdecimal() else None),
            )
    return file
