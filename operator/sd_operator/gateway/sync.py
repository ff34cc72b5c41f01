"""sync_models: which models' sources have moved since they were loaded.

Hub repos: the branch (spec.gitRevision, else main) is at another commit than the one loaded. Links:
the server names another digest or size. What cannot be told has not moved: private repos (the
gateway reads no Secrets), links whose servers answer HEAD with nothing of use, trained models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin

import aiohttp

from sd_api import defaults
from sd_api.netguard import MAX_REDIRECTS
from sd_api.redaction import redact_url
from sd_api.spec import HUB_PAGE_PATTERN, HUB_REPO_PATTERN
from sd_api.status import ConditionType
from sd_operator.clients.http import Outgoing
from sd_operator.clients.kube import Json
from sd_operator.gateway.models import condition, is_ready
from sd_operator.gateway.settings import Settings
from sd_operator.resources.model import Model

log = logging.getLogger(__name__)

CALL_SECONDS = 10.0
TOTAL_SECONDS = 60.0
CALLS_AT_ONCE = 16
ANSWER_MAX_BYTES = 4 * 2**20
"""Of a Hub repo's description, which lists its files."""
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_A_MODEL = ("text/", "application/json", "application/xml")


@dataclass(frozen=True)
class Branch:
    """A moving name of a Hub repo."""

    repo: str
    revision: str


@dataclass(frozen=True)
class File:
    """What a server says of the file behind a link; None is unknown."""

    sha256: str | None = None
    size: int | None = None


async def moved(bodies: Sequence[Json], settings: Settings) -> list[Json]:
    """Those of these models whose source is another by now; a source is asked once."""
    asked = {_question(body): None for body in bodies if _may_be_asked(body)}
    slots = asyncio.Semaphore(CALLS_AT_ONCE)
    answers: dict[Branch | str, str | File] = {}
    outgoing = Outgoing(
        settings.guard(),
        CALL_SECONDS,
        settings.https_proxy,
        settings.no_proxy,
        settings.ca_file,
    )

    async def ask(question: Branch | str) -> None:
        async with slots:
            with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError):
                if isinstance(question, Branch):
                    hub = settings.hub_endpoint or defaults.HUB_ENDPOINT
                    answers[question] = await _commit(outgoing, hub, question)
                else:
                    answers[question] = await _file(outgoing, question)

    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOTAL_SECONDS), asyncio.TaskGroup() as group:
                for question in asked:
                    if question is not None:
                        group.create_task(ask(question))
    finally:
        await outgoing.close()
    log.info("sources asked: %d, answers: %d", len(asked), len(answers))
    return [
        body
        for body in bodies
        if _may_be_asked(body) and _differs(body, answers.get(_question(body) or ""))
    ]


def _may_be_asked(body: Json) -> bool:
    """Whether it is loaded, and nothing else is under way."""
    busy = condition(body, ConditionType.RECONCILING).get("status") == "True"
    return is_ready(body) and not busy and not body["metadata"].get("deletionTimestamp")


def _question(body: Json) -> Branch | str | None:
    """What to ask of a model's source; None where nothing can be asked."""
    model = Model.from_body(body)
    url = model.url
    if re.match(HUB_REPO_PATTERN, url) or re.match(HUB_PAGE_PATTERN, url):
        revision = (model.spec.git_revision if model.spec else None) or "main"
        repo = "/".join(url.rstrip("/").rsplit("/", 2)[-2:])
        return None if _COMMIT.fullmatch(revision) else Branch(repo, revision)
    return url if url.startswith(("https://", "http://")) else None


def _differs(body: Json, answer: str | File | None) -> bool:
    """Whether the answer is surely about something else than what was loaded."""
    source = body["status"].get("source") or {}
    if isinstance(answer, str):
        return source.get("commit") not in (None, answer)
    if answer is None:
        return False
    if answer.sha256 and source.get("sha256"):
        return bool(answer.sha256 != source["sha256"])
    return None not in (answer.size, source.get("sizeBytes")) and answer.size != source["sizeBytes"]


async def _commit(outgoing: Outgoing, hub: str, branch: Branch) -> str:
    """The commit that a branch is at; raises ValueError where the Hub does not say."""
    revision = quote(branch.revision, safe="")
    url = f"{hub.rstrip('/')}/api/models/{branch.repo}/revision/{revision}"
    raw = b""
    async with _answers(outgoing, "GET", url, {"Accept": "application/json"}) as answers:
        async for response in answers:
            if response.status in _REDIRECTS:
                continue
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(2**16):
                raw += chunk
                if len(raw) > ANSWER_MAX_BYTES:
                    raise ValueError("the answer is too long")
    answer = json.loads(raw)
    commit = str(answer.get("sha")) if isinstance(answer, dict) else ""
    if not _COMMIT.fullmatch(commit):
        raise ValueError("no commit")
    return commit


async def _file(outgoing: Outgoing, url: str) -> File:
    """What the servers on the way to a file say of it."""
    known = File()
    async with _answers(outgoing, "HEAD", url, {"Accept-Encoding": "identity"}) as answers:
        async for response in answers:
            # The Hub says it in the redirect: X-Linked-ETag is the file's digest.
            etag = response.headers.get("X-Linked-ETag") or response.headers.get("ETag") or ""
            size = response.headers.get("X-Linked-Size")
            final = response.status == 200 and not response.content_type.startswith(_NOT_A_MODEL)
            if final and "Content-Encoding" not in response.headers:
                size = size or response.headers.get("Content-Length")
            known = File(
                known.sha256 or (etag.strip('"') if _SHA256.fullmatch(etag.strip('"')) else None),
                known.size or (int(size) if size and size.isdecimal() else None),
            )
    return known


def _answers(
    outgoing: Outgoing, method: str, url: str, headers: Mapping[str, str]
) -> contextlib.aclosing[AsyncGenerator[aiohttp.ClientResponse, None]]:
    """The answers on the way: redirects, then what is none; raises ValueError for too many."""

    async def follow(at: str) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        for _ in range(MAX_REDIRECTS + 1):
            async with outgoing.call(method, at, headers) as response:
                yield response
                if response.status not in _REDIRECTS:
                    return
                at = _next(at, response)
        raise ValueError("too many redirects")

    return contextlib.aclosing(follow(url))


def _next(url: str, response: aiohttp.ClientResponse) -> str:
    """Where a redirect leads; never from https to http."""
    target = urljoin(url, response.headers.get("Location", ""))
    if url.startswith("https://") and not target.startswith("https://"):
        raise ValueError(f"{redact_url(url)} leads to plain http")
    return target
