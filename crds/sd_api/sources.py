"""Reads a model's url in every form that people have it in. Only this module gives urls a meaning.

`read_source` is pure and never raises. The operator, the loader and the gateway call it; the rules
of the CRD are made from the same patterns (`sd_api.url_forms`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

from sd_api import url_forms
from sd_api.choices import ModelType
from sd_api.defaults import HUB_ENDPOINT
from sd_api.trained import is_trained_id

MAIN = "main"


@dataclass(frozen=True)
class HubRepo:
    """A repo of the Hub or of a mirror."""

    repo_id: str

    revision: str | None = None
    """Branch, tag or commit. None for the main branch."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repo, at a branch, tag or commit."""

    repo_id: str
    revision: str
    path: str


@dataclass(frozen=True)
class Link:
    """A file behind an http(s) link."""

    url: str


@dataclass(frozen=True)
class FileChoice:
    """The properties by which a url selects a file of a version. None fits every file."""

    file_id: int | None = None

    type: str | None = None
    """Its role, such as Model or VAE."""

    format: str | None = None
    """SafeTensor or PickleTensor."""

    size: str | None = None
    """full or pruned."""

    fp: str | None = None
    """fp16, bf16, fp32 or another precision."""


@dataclass(frozen=True)
class CivitaiModel:
    """A model of Civitai, or one of its versions."""

    model_id: int | None
    """None: the model that the version belongs to."""

    version_id: int | None
    """None: the newest version."""

    choice: FileChoice = FileChoice()


@dataclass(frozen=True)
class TrainedId:
    """The bare id of a trained model, which the administrator's template turns into a link."""

    model: str


@dataclass(frozen=True)
class Unreadable:
    """A url that the loader does not read."""

    words: str
    """The rest of a sentence that begins with the field's name: what is wrong, and what to give
    instead."""

    may_be_path: bool = False
    """Whether a caller that accepts paths may read the url as a path."""


Meaning = HubRepo | HubFile | CivitaiModel | Link | TrainedId | Unreadable


def read_source(
    url: str,
    model_type: ModelType | None,
    git_revision: str | None = None,
    hub_endpoint: str = HUB_ENDPOINT,
) -> Meaning:
    """Return what a url means for a model type, at the revision that url and spec agree on.

    model_type: None if the source shows its type.
    hub_endpoint: the Hub, or the mirror whose pages and files are read like the Hub's own.
    """
    unreadable = _refused(url, model_type)
    if unreadable is not None:
        return unreadable
    text = url.strip(url_forms.BLANKS)
    if is_trained_id(text, model_type):
        return _without_revision(TrainedId(text), git_revision)
    on_hub = _on_hub(text) or _on_mirror(text, hub_endpoint, model_type)
    if on_hub is not None:
        return _at(on_hub, git_revision)
    if model_type is ModelType.HUGGINGFACE:
        return Unreadable(url_forms.NOT_ON_THE_HUB)
    return _without_revision(_on_civitai(text) or Link(_with_https(text)), git_revision)


def civitai_download(url: str, endpoint: str) -> CivitaiModel | None:
    """Return the version that a download link of Civitai or of its mirror means.

    None for any other link. endpoint: Civitai, or the mirror.
    """
    hosts = f"{url_forms.CIVITAI_ORIGIN}|{re.escape(endpoint)}"
    match = re.fullmatch(f"(?:{hosts})/api/download/models/({url_forms.NUMBER})/?([?#].*)?", url)
    return None if match is None else _version(None, match[1], match[2])


def _refused(url: str, model_type: ModelType | None) -> Unreadable | None:
    is_trained = model_type is ModelType.API_TRAINED
    for kind in url_forms.NAMED:
        if kind.matches(url) and (kind.concerns_trained or not is_trained):
            return Unreadable(kind.words)
    if is_trained:
        is_read = re.search(url_forms.LINK_OR_TRAINED_ID, url) is not None
        return None if is_read else Unreadable(url_forms.NOT_TRAINED, may_be_path=True)
    if url_forms.BARE_ID.matches(url):
        return Unreadable(url_forms.BARE_ID.words, may_be_path=True)
    is_read = re.search(url_forms.LINK_OR_REPO, url) is not None
    return None if is_read else Unreadable(url_forms.NEITHER, may_be_path=True)


@dataclass(frozen=True)
class _OnHub:
    """A repo, or one of its files, at the revision that the url names."""

    repo_id: str
    revision: str | None = None
    path: str | None = None


def _on_hub(text: str) -> _OnHub | None:
    """Return the meaning of a repo id, or of a url of the Hub."""
    for form in (
        url_forms.HUB_PAGE,
        url_forms.HUB_TREE,
        url_forms.HUB_FILE,
        url_forms.REPO_ID,
        url_forms.HF_REPO,
        url_forms.HF_FILE,
    ):
        if match := re.fullmatch(form, text):
            return _decoded(match)
    return None


def _on_mirror(text: str, endpoint: str, model_type: ModelType | None) -> _OnHub | None:
    """Return the meaning of a mirror's url.

    A path of two words may be an ordinary file of the mirror, so it means a repo only with
    modelType huggingface.
    """
    forms = [url_forms.FILE_PATH]
    if model_type is ModelType.HUGGINGFACE:
        forms += [url_forms.PAGE_PATH, url_forms.TREE_PATH]
    for form in forms:
        if match := re.fullmatch(re.escape(endpoint.rstrip("/")) + form, text):
            return _decoded(match)
    return None


def _on_civitai(text: str) -> CivitaiModel | None:
    """Return the model that a resource identifier or a page of Civitai names."""
    if match := re.fullmatch(url_forms.CIVITAI_AIR, text):
        model, version, file, kind, query = match.groups()
        found = _version(model, version, query)
        choice = found.choice
        if file is not None:
            choice = replace(choice, file_id=int(file))
        if kind is not None:
            choice = replace(choice, format=kind)
        return replace(found, choice=choice)
    if match := re.fullmatch(url_forms.CIVITAI_VERSION, text):
        return _version(None, match[1], match[2])
    if match := re.fullmatch(url_forms.CIVITAI_PAGE, text):
        return _version(match[1], _asked(match[2]).get("modelVersionId"), match[2])
    return None


def _version(model: str | None, version: str | None, query: str | None) -> CivitaiModel:
    """Return a version, with the choice of a file that the query makes."""
    asked = _asked(query)
    file = asked.get("fileId", "")
    return CivitaiModel(
        None if model is None else int(model),
        None if version is None else int(version),
        FileChoice(
            int(file) if re.fullmatch(url_forms.NUMBER, file) else None,
            *(asked.get(name) for name in ("type", "format", "size", "fp")),
        ),
    )


def _asked(query: str | None) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(query or "").query))


def _decoded(match: re.Match[str]) -> _OnHub:
    repo_id, *others = match.groups()
    return _OnHub(repo_id, *(None if text is None else unquote(text) for text in others))


def _at(place: _OnHub, git_revision: str | None) -> HubRepo | HubFile | Unreadable:
    """Return the repo or file at its revision. Refuse two different revisions."""
    if git_revision is not None and place.revision not in (None, git_revision):
        is_short = re.fullmatch(r"[A-Za-z0-9._/-]{1,80}", place.revision or "") is not None
        named = place.revision if is_short else "another revision"
        return Unreadable(
            f"links to {named}, but spec.gitRevision is {git_revision}; remove one of them"
        )
    revision = place.revision or git_revision
    if place.path is None:
        return HubRepo(place.repo_id, revision)
    return HubFile(place.repo_id, revision or MAIN, place.path)


def _without_revision(
    source: CivitaiModel | Link | TrainedId, git_revision: str | None
) -> CivitaiModel | Link | TrainedId | Unreadable:
    if git_revision is None:
        return source
    if isinstance(source, CivitaiModel):
        return Unreadable(
            "is not a repo of the Hub, and spec.gitRevision is only for Hub repos; name the version"
            " in the link, https://civitai.com/models/MODEL?modelVersionId=VERSION"
        )
    return Unreadable(
        "is not a repo of the Hub, and spec.gitRevision is only for Hub repos; use spec.sha256 to"
        " pin a link"
    )


def _with_https(text: str) -> str:
    """Return a link with its scheme. The page of a file in a dataset or a Space becomes its link.

    Links to files in datasets and Spaces are called over https, even if they name http.
    """
    text = re.sub(f"^{url_forms.PAGE_OF_OTHER_FILE}$", r"\1/resolve/\2", text)
    if re.fullmatch(url_forms.HUB_OTHER_FILE, text):
        text = re.sub("^(?i:http)://", "", text)
    return text if re.match("(?i:https?)://", text) else f"https://{text}"
