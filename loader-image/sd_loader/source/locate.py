"""Finds the source that a url means, from the url, the model type and the settings alone.

A link to one file of a Hub repo means this file for every model type. The file is fetched through
the Hub's API, which states its commit, size and digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.spec import HUB_PAGE_PATTERN, HUB_REPO_PATTERN, ModelType
from sd_api.trained import KEY, is_trained_id, trained_link
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source.ref import SourceRef

_HUB = r"https://(?:www\.)?(?:huggingface\.co|hf\.co)"
_FILE = (
    r"/([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)/(?:resolve|blob)/(refs/(?:pr|convert)/[^/]+|[^/]+)/(.+)"
)
_MODEL_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".zip")


@dataclass(frozen=True)
class HubRepo:
    """A repo of the Hub or of a mirror."""

    repo_id: str


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
class LocalFile:
    """A file on this machine."""

    path: str


Located = HubRepo | HubFile | Link | LocalFile


def locate(ref: SourceRef, settings: Settings, *, allow_local: bool = False) -> Located:
    """Find the source that a reference means. Raise InvalidSpec if it cannot mean any.

    allow_local: a url that is not a link may be a path on this machine. Only the command line sets
    it, so that a request of the operator cannot read files of the node.
    """
    url, model_type = ref.url, ref.model_type
    if "://" in url:
        return _behind_link(ref, settings)
    if model_type is ModelType.HUGGINGFACE:
        return HubRepo(_repo_id(ref, settings.hub_endpoint))
    if is_trained_id(url, model_type):
        return Link(_trained_link(ref, settings))
    is_repo = re.match(HUB_REPO_PATTERN, url) is not None
    if allow_local and (not is_repo or url.endswith(_MODEL_FILE)):
        return LocalFile(url)
    if is_repo and model_type is not ModelType.API_TRAINED:
        return HubRepo(url)
    expected = (
        "a trained model's id" if model_type is ModelType.API_TRAINED else "a repo id (ORG/NAME)"
    )
    raise LoaderError(
        Reason.INVALID_SPEC,
        f"{redact_url(url)} is neither {expected} nor an http(s) link",
        field=ref.field,
    )


def _repo_id(ref: SourceRef, endpoint: str) -> str:
    """Return `ORG/NAME` from a repo id, or from a repo's page on the Hub or the mirror."""
    path = ref.url.rstrip("/").removeprefix(endpoint.rstrip("/") + "/")
    if re.match(HUB_PAGE_PATTERN, ref.url):
        path = "/".join(path.rsplit("/", 2)[1:])
    if re.match(HUB_REPO_PATTERN, path):
        return path
    raise LoaderError(
        Reason.INVALID_SPEC,
        f"{redact_url(ref.url)} is neither a Hugging Face repo id (ORG/NAME) nor a repo's page nor"
        " a link to one of its files (set a branch or commit in spec.gitRevision)",
        field=ref.field,
    )


def _behind_link(ref: SourceRef, settings: Settings) -> Located:
    endpoint = settings.hub_endpoint
    place = ref.url.partition("#")[0].partition("?")[0]
    match = re.fullmatch(f"(?:{_HUB}|{re.escape(endpoint)}){_FILE}", place)
    if match is not None:
        repo_id, revision, path = match.groups()
        return HubFile(repo_id, unquote(revision), unquote(path))
    # A path of two words is a repo on the Hub, but may be a file on another host.
    if ref.model_type is ModelType.HUGGINGFACE or re.match(HUB_PAGE_PATTERN, ref.url):
        return HubRepo(_repo_id(ref, endpoint))
    return Link(ref.url)


def _trained_link(ref: SourceRef, settings: Settings) -> str:
    """Build the link of a trained model from its id and the link template."""
    if settings.trained_url_template is None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{ref.url} is the id of a trained model, but the administrator has set no link"
            f" template for such ids ({LoaderEnv.name_of('trained_url_template')}); give the"
            " model's link instead",
            field=ref.field,
        )
    if KEY in settings.trained_url_template:
        raise LoaderError(
            Reason.SECRET_NOT_FOUND,
            "the link template of trained models needs a key, and the Secret of the"
            " administrator's logins, or its key `trained`, is missing",
        )
    return trained_link(settings.trained_url_template, ref.url)
