"""Finds the link, the digest and the facts of a model on Civitai.

If a url is a model's web page or resource identifier, the API finds the file. A download link is
called as it is written; the facts about it are requested from the API, too, but a load does not
need them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from sd_api.choices import VerifyDigest
from sd_api.fields import Contract, Count
from sd_api.reasons import Reason
from sd_api.redaction import carries_secret
from sd_api.sites.civitai_answers import ModelAnswer, Obstacle, VersionAnswer, obstacle_of
from sd_api.sites.civitai_choice import NoFileError, choose, describe
from sd_api.sites.civitai_facts import CivitaiFacts, CivitaiFile
from sd_api.sources import CivitaiModel, FileChoice, Link, civitai_download
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import Retries
from sd_loader.snippet import snippet
from sd_loader.source.locate import Located, Place
from sd_loader.source.ref import Checks, SourceRef

if TYPE_CHECKING:
    from sd_loader.source.civitai_api import CivitaiApi

log = logging.getLogger(__name__)

_ENDPOINT = "the loader's setting SD_LOADER_CIVITAI_ENDPOINT"
_PIN = "civitai.json"
_PIN_MAX_BYTES = 1024
_REFUSALS = frozenset(
    {
        Reason.AUTHENTICATION_REQUIRED,
        Reason.ACCESS_DENIED,
        Reason.SOURCE_NOT_FOUND,
        Reason.NOT_A_MODEL,
    }
)
"""Reasons with which a download fails if Civitai refuses it. NotAModel is one of them, because some
refusals are web pages."""
_ONE_TRY = Retries(delays=())


@dataclass(frozen=True)
class Found:
    """The place to fetch a source from, and the facts that Civitai states about it."""

    place: Place

    checks: Checks

    facts: CivitaiFacts | None = None

    obstacle: Obstacle | None = None
    """Why Civitai may refuse the download. None if it states no reason."""

    warnings: tuple[str, ...] = ()

    def noted(self, fetched: Fetched) -> Fetched:
        """Return the record of the download with the version, the file and the warnings."""
        warned = fetched.model_copy(update={"warnings": (*self.warnings, *fetched.warnings)})
        if self.facts is None:
            return warned
        known = {"version": self.facts.loaded_version, "file": self.facts.file_name}
        return warned.model_copy(update={"source": fetched.source.model_copy(update=known)})


class _Pin(Contract):
    """The record of the version and the file that the first attempt of a load found."""

    version_id: Count
    file_id: Count


def look_up(
    place: Located, ref: SourceRef, checks: Checks, client: HttpClient, into: Path
) -> Found:
    """Find the file of a model on Civitai, or the facts about a download link of Civitai.

    For any other place, return the place without facts. into: the folder of the download. A record
    there makes later attempts of a load use the version and file that the first attempt found.
    """
    match place:
        case CivitaiModel():
            return _find(place, ref, checks, client, into / _PIN)
        case Link(url):
            version = civitai_download(url, client.settings.civitai_endpoint)
            if version is not None:
                return _find_for_link(place, version, ref, checks, client)
    return Found(place, checks)


@contextmanager
def explaining(found: Found) -> Iterator[None]:
    """Add the facts about the version to the error of a failed download."""
    try:
        yield
    except LoaderError as error:
        if found.facts is None:
            raise
        obstacle = found.obstacle
        if obstacle is not None and error.reason in _REFUSALS:
            raise LoaderError(
                obstacle.reason, f"{found.facts.label} {obstacle.words}: {error.message}"
            ) from error
        if error.reason is Reason.DIGEST_MISMATCH and found.checks.is_stated:
            raise LoaderError(
                error.reason, f"{error.message}, the digest that Civitai states"
            ) from error
        raise


def _find(
    place: CivitaiModel, ref: SourceRef, checks: Checks, client: HttpClient, pin: Path
) -> Found:
    """Find the file of a model or a version."""
    from sd_loader.source.civitai_api import CivitaiApi  # It imports httpx2, which takes 0.1 s.

    endpoint = client.settings.civitai_endpoint
    client.check_url(endpoint, _ENDPOINT)
    api = CivitaiApi(client, endpoint, _listing_token(ref, client, required=ref.needs_token))
    pinned = _pinned(pin, place)
    version, model = _ask(api, place, pinned, ref.field)
    name, obstacle = version.facts.label, _obstacle(version)
    if not version.files:
        reason = obstacle.reason if obstacle else Reason.SOURCE_NOT_FOUND
        words = obstacle.words if obstacle else "has no file that can be downloaded"
        raise LoaderError(reason, f"{name} {words}")
    try:
        chosen = choose(
            version, place.choice, checks.sha256, None if pinned is None else pinned.file_id
        )
    except NoFileError as error:
        raise LoaderError(error.reason, str(error)) from error
    file = chosen.file
    if checks.sha256 is not None and file.sha256 not in (None, checks.sha256):
        raise LoaderError(
            Reason.DIGEST_MISMATCH,
            f"{describe(file)} of {name} has sha256 {file.sha256} at Civitai, not {checks.sha256}",
        )
    pin.write_text(_Pin(version_id=version.facts.version_id, file_id=file.id).model_dump_json())
    warnings: tuple[str, ...] = ()
    if chosen.others and place.choice == FileChoice():
        warnings = (
            f"of {chosen.others + 1} files, {describe(file)} was taken; choose another by ?format=,"
            " ?size= and ?fp=",
        )
    return Found(
        Link(endpoint + file.path),
        _stated(checks, file, client),
        _facts(version, model, file),
        obstacle,
        warnings,
    )


def _ask(
    api: CivitaiApi, place: CivitaiModel, pinned: _Pin | None, field: str
) -> tuple[VersionAnswer, ModelAnswer | None]:
    """Request the version that a link means, and its model."""
    model, version_id = None, place.version_id
    if pinned is not None:
        version_id = pinned.version_id
    if version_id is None:
        model = api.model(place.model_id or 0)  # A link without a version names the model.
        version_id = _newest(place, model)
    version = api.version(version_id)
    owner = version.facts.model_id
    if place.model_id is not None and owner not in (None, place.model_id):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{version.facts.label} belongs to model {owner}, not to model {place.model_id};"
            " correct one of them",
            field=field,
        )
    return version, model or _model(api, version)


def _find_for_link(
    place: Link, meant: CivitaiModel, ref: SourceRef, checks: Checks, client: HttpClient
) -> Found:
    """Find the facts about a download link. If the request fails, the load goes on without them."""
    from sd_loader.source.civitai_api import CivitaiApi  # It imports httpx2, which takes 0.1 s.

    endpoint = client.settings.civitai_endpoint
    try:
        client.check_url(endpoint, _ENDPOINT)
        token = _listing_token(ref, client, required=False)
        api = CivitaiApi(replace(client, retries=_ONE_TRY), endpoint, token)
        version = api.version(meant.version_id or 0)
    except LoaderError as error:
        words = snippet(error.message, 150)
        return Found(place, checks, warnings=(f"Civitai's API did not describe the file: {words}",))
    has_account = (
        client.has_token
        or client.token(place.url, ref.field, required=False) is not None
        or carries_secret(place.url)
    )
    file = _file_of_link(version, meant.choice, checks.sha256, has_account=has_account)
    return Found(
        place,
        _stated(checks, file, client),
        _facts(version, _model(api, version), file),
        _obstacle(version),
    )


def _listing_token(ref: SourceRef, client: HttpClient, *, required: bool) -> str | None:
    """Return the token for the API; None without a token that may be used for private models."""
    endpoint = client.settings.civitai_endpoint
    token = client.token(endpoint, ref.field, required=required)
    return token if client.lists_private(endpoint) else None


def _file_of_link(
    version: VersionAnswer, choice: FileChoice, sha256: str | None, *, has_account: bool
) -> CivitaiFile | None:
    """Return the file that a download link gets. None if the file is uncertain.

    has_account: whether the request names an account, whose preferences choose among several files.
    """
    try:
        chosen = choose(version, choice, sha256)
    except NoFileError:
        return None
    file = chosen.file
    if sha256 is not None:
        return file if file.sha256 == sha256 else None
    is_sure = choice.file_id is not None or chosen.others == 0
    if choice == FileChoice() and not has_account:
        is_sure = is_sure or file.is_primary
    return file if is_sure else None


def _model(api: CivitaiApi, version: VersionAnswer) -> ModelAnswer | None:
    """Return the model of a version, for its creator and licence. None if the request fails."""
    if version.facts.model_id is None:
        return None
    try:
        return replace(api, client=replace(api.client, retries=_ONE_TRY)).model(
            version.facts.model_id
        )
    except LoaderError as error:
        log.warning("the model's creator and licence are not known: %s", error)
        return None


def _newest(place: CivitaiModel, model: ModelAnswer) -> int:
    if not model.versions:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND, f"model {place.model_id} has no published version at Civitai"
        )
    return model.versions[0]


def _obstacle(version: VersionAnswer) -> Obstacle | None:
    return obstacle_of(version, datetime.now(UTC).date().isoformat())


def _stated(checks: Checks, file: CivitaiFile | None, client: HttpClient) -> Checks:
    """Return the checks with the digest that Civitai states, unless the spec gives one."""
    if file is None or file.sha256 is None or checks.sha256 is not None:
        return checks
    may_skip = client.settings.verify_digest is VerifyDigest.WHEN_WHOLE
    return replace(checks, sha256=file.sha256, is_stated=True, may_skip=may_skip)


def _facts(
    version: VersionAnswer, model: ModelAnswer | None, file: CivitaiFile | None
) -> CivitaiFacts:
    facts = version.facts.model_copy(update={"file": file})
    if model is None:
        return facts
    return facts.model_copy(update={"creator": model.creator, "licence": model.licence})


def _pinned(path: Path, place: CivitaiModel) -> _Pin | None:
    """Return the version and file that an earlier attempt of this load found; None without one."""
    try:
        with path.open("rb") as file:
            pin = _Pin.model_validate_json(file.read(_PIN_MAX_BYTES), strict=True)
    except (FileNotFoundError, ValidationError):
        return None
    return pin if place.version_id in (None, pin.version_id) else None
