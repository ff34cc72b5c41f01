"""Reads the answers of Civitai's API, which a creator or a mirror may have filled with anything.

Only two groups of fields are read: those of `CivitaiFacts`, and those that say why a file cannot be
downloaded. A field with a wrong type counts as absent. A file or an image without a usable link is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sd_api.fields import COUNT_MAX, HEX_64_PATTERN
from sd_api.reasons import Reason
from sd_api.sites.civitai_facts import (
    MAX_IMAGES,
    MAX_USES,
    MAX_WORDS,
    TEXT_MAX_LENGTH,
    CivitaiFacts,
    CivitaiFile,
    CivitaiImage,
    CivitaiLicence,
)
from sd_api.sites.lenient_json import inner_object

_MAX_FILES = 100
_MAX_VERSIONS = 1000
_DOWNLOAD = re.compile(r"/api/download/models/[0-9]{1,18}$")
_QUERY = re.compile(r"[A-Za-z0-9=&%+._-]{0,500}")
_IMAGE = re.compile(r"https?://[!-~]{1,2000}")
_WORD = re.compile(r"[A-Za-z]+")

Json = dict[str, Any]


@dataclass(frozen=True)
class VersionAnswer:
    """One published version, with what keeps its files from being loaded."""

    facts: CivitaiFacts
    """Its fields file, creator and licence are not set: `ModelAnswer` has the last two."""

    files: tuple[CivitaiFile, ...]
    """The files that have a usable download link."""

    mode: str | None
    """Archived or TakenDown, if the whole model is one of them."""

    usage_control: str | None
    """Download, or the name of the only use that the creator allows, which is on Civitai's site."""

    early_access: str | None
    """The date until which the version is for buyers only. Empty: it is always for buyers only.
    None: it is for everyone."""


@dataclass(frozen=True)
class ModelAnswer:
    """A model, with its published versions, the newest first."""

    name: str | None
    type: str | None
    creator: str | None
    licence: CivitaiLicence
    versions: tuple[int, ...]


@dataclass(frozen=True)
class Obstacle:
    """Why Civitai may refuse the download of a version."""

    reason: Reason

    words: str
    """The rest of a sentence that begins with the name of the version."""


def obstacle_of(version: VersionAnswer, today: str) -> Obstacle | None:
    """Return why a download of the version may be refused. None if Civitai states no reason.

    today: the date as YYYY-MM-DD.
    """
    match version.mode:
        case "Archived":
            words = "was archived by its creator and can no longer be downloaded"
            return Obstacle(Reason.SOURCE_NOT_FOUND, words)
        case "TakenDown":
            return Obstacle(Reason.SOURCE_NOT_FOUND, "was taken down from Civitai")
    ends = version.early_access
    if ends == "":
        return Obstacle(Reason.ACCESS_DENIED, "is only for accounts that bought it")
    if ends is not None and ends >= today:
        words = f"is in early access until {ends}, only for accounts that bought it"
        return Obstacle(Reason.ACCESS_DENIED, words)
    if version.usage_control not in (None, "Download"):
        words = "may only be used on Civitai: its creator does not allow downloads"
        return Obstacle(Reason.ACCESS_DENIED, words)
    return None


def read_version(answer: Json, version_id: int) -> VersionAnswer:
    """Read the answer for a version."""
    model = inner_object(answer, "model")
    return VersionAnswer(
        facts=CivitaiFacts(
            model_id=_count(answer, "modelId"),
            version_id=version_id,
            model_name=_text(model, "name"),
            version_name=_text(answer, "name"),
            model_type=_text(model, "type"),
            base_model=_text(answer, "baseModel"),
            trained_words=_texts(answer.get("trainedWords"))[:MAX_WORDS],
            nsfw_level=_count(answer, "nsfwLevel"),
            images=tuple(_images(answer))[:MAX_IMAGES],
        ),
        files=tuple(_files(answer)),
        mode=_text(model, "mode"),
        usage_control=_text(answer, "usageControl"),
        early_access=_early_access(answer),
    )


def read_model(answer: Json) -> ModelAnswer:
    """Read the answer for a model."""
    ids = (_count(version, "id") for version in _items(answer, "modelVersions", _MAX_VERSIONS))
    return ModelAnswer(
        name=_text(answer, "name"),
        type=_text(answer, "type"),
        creator=_text(inner_object(answer, "creator"), "username"),
        licence=CivitaiLicence(
            no_credit=_flag(answer, "allowNoCredit"),
            derivatives=_flag(answer, "allowDerivatives"),
            different_licence=_flag(answer, "allowDifferentLicense"),
            commercial_use=_uses(answer.get("allowCommercialUse")),
        ),
        versions=tuple(number for number in ids if number is not None),
    )


def _files(answer: Json) -> Iterator[CivitaiFile]:
    for file in _items(answer, "files", _MAX_FILES):
        number, name, path = _count(file, "id"), _text(file, "name"), _path(file)
        if number is None or name is None or path is None:
            continue
        metadata = inner_object(file, "metadata")
        sha256 = str(inner_object(file, "hashes").get("SHA256", "")).lower()
        yield CivitaiFile(
            id=number,
            name=name,
            type=_text(file, "type") or "Model",
            path=path,
            size_bytes=_bytes(file.get("sizeKB")),
            sha256=sha256 if re.fullmatch(HEX_64_PATTERN, sha256) else None,
            format=_text(metadata, "format"),
            size=_text(metadata, "size"),
            fp=_text(metadata, "fp"),
            is_primary=file.get("primary") is True,
        )


def _path(file: Json) -> str | None:
    """Return the path and query of a file's download link, which callers append to the endpoint.

    The host is not used, because a mirror may pass on links whose host is Civitai's. None if the
    link is not usable.
    """
    try:
        parts = urlsplit(str(file.get("downloadUrl")))
    except ValueError:
        return None
    match = _DOWNLOAD.search(parts.path)
    if parts.scheme not in {"http", "https"} or match is None or not _QUERY.fullmatch(parts.query):
        return None
    return match[0] + (f"?{parts.query}" if parts.query else "")


def _bytes(kilobytes: object) -> int | None:
    """Return a size in bytes. JSON states kilobytes, often with a fraction."""
    if not isinstance(kilobytes, int | float) or not 0 <= kilobytes < COUNT_MAX / 1024:
        return None
    return int(kilobytes * 1024)


def _images(answer: Json) -> Iterator[CivitaiImage]:
    for image in _items(answer, "images", _MAX_FILES):
        url = image.get("url")
        if isinstance(url, str) and _IMAGE.fullmatch(url):
            yield CivitaiImage(
                url=url,
                nsfw_level=_count(image, "nsfwLevel"),
                is_video=image.get("type") == "video",
            )


def _early_access(answer: Json) -> str | None:
    """Return the value of `VersionAnswer.early_access`, from the new field or the old ones."""
    paid = inner_object(answer, "paidAccess")
    if paid.get("permanent") is True:
        return ""
    ends = _text(paid, "endsAt") or _text(answer, "earlyAccessEndsAt")
    if ends is not None and re.match(r"\d{4}-\d\d-\d\d", ends, re.ASCII):
        return ends[:10]
    return "" if paid or answer.get("availability") == "EarlyAccess" else None


def _uses(value: object) -> tuple[str, ...] | None:
    """Read allowCommercialUse, which is a list, one word, or words in braces."""
    words = _WORD.findall(value) if isinstance(value, str) else _texts(value)
    return None if value is None else tuple(words)[:MAX_USES]


def _text(answer: Json, name: str) -> str | None:
    return next(iter(_texts([answer.get(name)])), None)


def _texts(values: object) -> tuple[str, ...]:
    """Return the texts of a list, each stripped and cut to its maximum length.

    Halves of surrogate pairs, which are not characters, are replaced.
    """
    if not isinstance(values, list):
        return ()
    texts = [
        value.encode(errors="replace").decode().strip()
        for value in values
        if isinstance(value, str)
    ]
    return tuple(text[:TEXT_MAX_LENGTH].strip() for text in texts if text)


def _count(answer: Json, name: str) -> int | None:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= COUNT_MAX else None


def _flag(answer: Json, name: str) -> bool | None:
    value = answer.get(name)
    return value if isinstance(value, bool) else None


def _items(answer: Json, name: str, most: int) -> list[Json]:
    values = answer.get(name)
    if not isinstance(values, list):
        return []
    return [value for value in values[:most] if isinstance(value, dict)]
