"""Asks a source about a model before the model is loaded, for the load form of the gallery.

A look-up is anonymous: it sends no token, and does not call a link with a secret. The address guard
checks each request; the duration of a look-up and the length of a response are limited. A look-up
does not raise an error: if the source does not respond, the returned facts have a note about it.
Bodies are read from the APIs of Civitai and the Hub only; other servers are asked for headers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import warnings
from dataclasses import dataclass, replace
from urllib.parse import quote

import aiohttp

from sd_api.choices import ModelType
from sd_api.fields import URL_MAX_LENGTH
from sd_api.netguard import AddressRefusedError, Resolver
from sd_api.redaction import carries_secret
from sd_api.sites.civitai_answers import ModelAnswer, read_model, read_version
from sd_api.sites.hub_answers import read_repo
from sd_api.sources import (
    MAIN,
    CivitaiModel,
    HubFile,
    HubRepo,
    Link,
    civitai_download,
    read_source,
)
from sd_operator.base.times import Clock
from sd_operator.clients.http import Outgoing
from sd_operator.gateway import facts, fetching
from sd_operator.gateway.facts import Facts
from sd_operator.gateway.keys import Key
from sd_operator.gateway.limits import Limiter
from sd_operator.gateway.settings import GatewaySettings

Askable = HubRepo | HubFile | CivitaiModel | Link
"""A source that can be looked up."""

LOOKUPS_PER_MINUTE = 30
"""How many look-ups one key may cause in a minute."""
LOOKUP_SECONDS = 5.0
"""Maximum time that a visitor waits for a look-up."""
READ_AT_ONCE = 4
"""How many answers are read at the same time; this limits the memory for them."""
ANSWER_MAX_BYTES = 2 * 2**20
"""The largest answer that is read. A Civitai model with fifty versions needs half of it."""
CACHE_SECONDS = 600.0
FAILURE_SECONDS = 30.0
"""How long the note about a failed look-up is kept before the source is asked again."""
CACHED_MAX = 256

_TOTAL = re.compile(r"bytes \d{1,18}-\d{1,18}/(\d{1,18})", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_TOO_MANY = (
    "This key has looked up too many links in the last minute. You can load the model all the same."
)
_NOT_CALLED = "The link contains a secret, so it is not looked up: only the load calls it."
_ALL_THE_SAME = "The load asks again, so you can load the model all the same."


@dataclass(frozen=True)
class Pasted:
    """The url in the load form, with the other fields that decide which source the url means."""

    url: str
    model_type: ModelType | None = None
    git_revision: str | None = None


class Lookups:
    """The look-ups of one gateway; used and closed on one event loop."""

    def __init__(self, settings: GatewaySettings, clock: Clock, resolver: Resolver) -> None:
        self._settings = settings
        self._clock = clock
        self._guard = replace(settings.guard(), resolver=resolver)
        self._limiter = Limiter(LOOKUPS_PER_MINUTE, clock.monotonic)
        self._slots = asyncio.Semaphore(READ_AT_ONCE)
        self._outgoing: Outgoing | None = None
        self._cache: dict[Askable, tuple[float, Facts]] = {}
        """The time at which the facts expire, and the facts; the oldest entry comes first."""

    async def close(self) -> None:
        """End all connections."""
        if self._outgoing is not None:
            await self._outgoing.close()

    def known(self, link: Pasted) -> Facts | None:
        """Return the cached facts, or facts from the url alone. No request is made.

        None if the url does not mean a source that can be looked up.
        """
        meaning = self._read(link)
        return None if meaning is None else self._cached(meaning) or self._unasked(meaning)

    async def find(self, link: Pasted, key: Key) -> Facts | None:
        """Return the facts that the source states, or facts from the url alone.

        The facts are from the url alone if look-ups are off, not allowed or too many, or if the
        request fails.
        None if the url does not mean a source that can be looked up.
        """
        meaning = self._read(link)
        if meaning is None:
            return None
        cached = self._cached(meaning)
        if cached is not None:
            return cached
        unasked = self._unasked(meaning)
        if not self._settings.lookups:
            return unasked
        if isinstance(meaning, Link) and carries_secret(meaning.url):
            return unasked.with_notes(_NOT_CALLED)
        if self._limiter.take(key.id):
            return unasked.with_notes(_TOO_MANY)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                result, seconds = await self._ask(meaning), CACHE_SECONDS
        except fetching.ERRORS as error:
            result = unasked.with_notes(_failure(error, unasked.host))
            seconds = FAILURE_SECONDS
        self._cache[meaning] = (self._clock.monotonic() + seconds, result)
        if len(self._cache) > CACHED_MAX:
            del self._cache[next(iter(self._cache))]
        return result

    def _read(self, link: Pasted) -> Askable | None:
        """Return the source that a url means. None for trained models and unreadable urls."""
        if len(link.url) > URL_MAX_LENGTH:
            return None
        meaning = read_source(link.url, link.model_type, link.git_revision, self._settings.hub_page)
        if isinstance(meaning, Link):
            version = civitai_download(meaning.url, self._settings.civitai)
            return version or meaning
        return meaning if isinstance(meaning, HubRepo | HubFile | CivitaiModel) else None

    def _unasked(self, meaning: Askable) -> Facts:
        """Return facts from the url alone, without a request."""
        match meaning:
            case HubRepo(repo_id) | HubFile(repo_id):
                return facts.of_name(self._settings.hub_page, repo_id.rpartition("/")[2])
            case CivitaiModel(model_id, version_id):
                return facts.of_name(self._settings.civitai, f"civitai-{model_id or version_id}")
            case Link(url):
                return facts.of_link(url)

    def _cached(self, meaning: Askable) -> Facts | None:
        expires, kept = self._cache.get(meaning, (0.0, None))
        if kept is not None and expires < self._clock.monotonic():
            del self._cache[meaning]
            return None
        return kept

    async def _ask(self, meaning: Askable) -> Facts:
        if self._outgoing is None:
            settings = self._settings
            self._outgoing = Outgoing(
                self._guard, LOOKUP_SECONDS, settings.proxy, settings.no_proxy, settings.ca_file
            )
        match meaning:
            case CivitaiModel():
                return await self._ask_civitai(self._outgoing, meaning)
            case HubRepo(repo_id, revision):
                return await self._ask_hub(self._outgoing, repo_id, revision or MAIN, None)
            case HubFile(repo_id, revision, path):
                return await self._ask_hub(self._outgoing, repo_id, revision, path)
            case Link(url):
                return await _ask_server(self._outgoing, url)

    async def _ask_civitai(self, outgoing: Outgoing, wanted: CivitaiModel) -> Facts:
        endpoint = self._settings.civitai
        api = f"{endpoint}/api/v1"
        model: ModelAnswer | None = None
        version_id, model_id = wanted.version_id, wanted.model_id
        if version_id is None:
            model = read_model(await self._read_json(outgoing, f"{api}/models/{model_id}"))
            if not model.versions:
                return self._unasked(wanted).with_notes(
                    "This model has no published version, so it cannot be loaded."
                )
            version_id = model.versions[0]
        answer = await self._read_json(outgoing, f"{api}/model-versions/{version_id}")
        version = read_version(answer, version_id)
        owner = version.facts.model_id
        if model is None and owner is not None:
            with contextlib.suppress(*fetching.ERRORS):  # The model only adds creator and licence.
                model = read_model(await self._read_json(outgoing, f"{api}/models/{owner}"))
        today = self._clock.now().date().isoformat()
        result = facts.of_civitai(version, model, wanted.choice, endpoint, today)
        if model_id not in (None, owner) and owner is not None:
            return result.with_notes(
                f"Version {version_id} belongs to model {owner}, not to model {model_id}; correct"
                " the link."
            )
        return result

    async def _ask_hub(
        self, outgoing: Outgoing, repo_id: str, revision: str, path: str | None
    ) -> Facts:
        at = quote(revision, safe="")
        url = f"{self._settings.hub.rstrip('/')}/api/models/{repo_id}/revision/{at}?blobs=true"
        answer = await self._read_json(outgoing, url)
        endpoint = self._settings.hub_page
        return facts.of_repo(read_repo(answer, repo_id, endpoint), path, endpoint)

    async def _read_json(self, outgoing: Outgoing, url: str) -> dict[str, object]:
        async with self._slots:
            return await fetching.read_json(outgoing, url, ANSWER_MAX_BYTES)


async def _ask_server(outgoing: Outgoing, url: str) -> Facts:
    """Return what a server's headers say about a file. The request is for the first byte only."""
    headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    name, size, is_model = None, None, True
    async with fetching.responses(outgoing, "GET", url, headers) as answers:
        async for response in answers:
            if response.status in fetching.REDIRECTS:
                continue
            response.raise_for_status()
            is_model = not fetching.is_text(response)
            name = _name(response)
            size = _size(response)
    if not is_model:
        return facts.of_link(url).with_notes(
            "The link leads to a web page or a text, not to a model file. Give the file's own link."
        )
    return facts.of_link(url, name, size)


def _name(response: aiohttp.ClientResponse) -> str | None:
    """Return the file's name as the server states it."""
    # aiohttp warns about a malformed header, but a server must not write into the log.
    with warnings.catch_warnings(action="ignore"):
        disposition = response.content_disposition
    return disposition.filename if disposition else None


def _size(response: aiohttp.ClientResponse) -> int | None:
    """Return the size of the whole file. None if the server does not state it."""
    if total := _TOTAL.fullmatch(response.headers.get("Content-Range", "")):
        return int(total[1])
    length = response.headers.get("Content-Length", "")
    is_whole = response.status == 200 and "Content-Encoding" not in response.headers
    return int(length) if is_whole and _LENGTH.fullmatch(length) else None


def _failure(error: Exception, host: str) -> str:
    """Return the note about a look-up that failed."""
    if isinstance(error, aiohttp.ClientConnectorError):
        # os_error is an AddressRefusedError if the guard refused the host's address.
        error = error.os_error
    match error:
        case AddressRefusedError():
            return f"A load would be refused: {error}."
        case aiohttp.ClientResponseError(status=404):
            return f"{host} has no such model or file, or it is private. Check the link."
        case aiohttp.ClientResponseError(status=401 | 403):
            return (
                f"{host} shows this only to users with an account. Check the link; if it is right,"
                " name the Secret with your account's token under “Access”."
            )
        case aiohttp.ClientResponseError(status=status):
            return f"{host} answered with status {status}. {_ALL_THE_SAME}"
        case TimeoutError():
            return f"{host} did not answer within {LOOKUP_SECONDS:.0f} s. {_ALL_THE_SAME}"
        case ValueError():
            return f"{host} gave an answer that cannot be read. {_ALL_THE_SAME}"
    return f"{host} cannot be reached from the gateway. {_ALL_THE_SAME}"
