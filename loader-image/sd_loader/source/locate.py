"""Finds the source that a url means, from the url, the model type and the settings.

`sd_api.sources` reads the url. This module adds what only the loader knows: files on this machine
at the command line, and the administrator's link for trained models.
A link to one file of a Hub repo means this file for every model type. The file is fetched through
the Hub's API, which states its commit, size and digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sd_api.choices import ModelType
from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.sources import CivitaiModel, HubFile, HubRepo, Link, TrainedId, Unreadable, read_source
from sd_api.trained import KEY, trained_link
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source.ref import SourceRef

_MODEL_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".zip")
_NOT_FETCHED = (Reason.ADDRESS_REFUSED, Reason.SOURCE_NOT_FOUND, Reason.SOURCE_UNREACHABLE)
"""Reasons with which a link fails if its url was meant as a path."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: str


Place = HubRepo | HubFile | Link | LocalFile
"""A place that bytes are fetched from."""
Located = Place | CivitaiModel


def locate(ref: SourceRef, settings: Settings, *, allow_local: bool = False) -> Located:
    """Find the source that a reference means. Raise LoaderError if the url cannot be read.

    allow_local: a url without a scheme may be a path on this machine. An existing file takes
    precedence over a repo or a link. Only the command line sets allow_local, so that a request of
    the operator cannot read files of the node.
    """
    meaning = read_source(ref.url, ref.model_type, ref.git_revision, settings.hub_endpoint)
    # With modelType huggingface, a person means a whole repo and never a file.
    if allow_local and ref.model_type is not ModelType.HUGGINGFACE and "://" not in ref.url:
        is_file_name = isinstance(meaning, HubRepo) and ref.url.endswith(_MODEL_FILE)
        if (
            _is_file(ref.url)
            or is_file_name
            or (isinstance(meaning, Unreadable) and meaning.may_be_path)
        ):
            return LocalFile(ref.url)
    match meaning:
        case Unreadable(words):
            raise LoaderError(Reason.INVALID_SPEC, f"{ref.field} {words}")
        case TrainedId(model):
            return Link(_trained_link(model, ref, settings))
        case _:
            return meaning


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # The path is too long, or a folder of it may not be read.
        return False


@contextmanager
def naming_both_readings(ref: SourceRef, place: Located, *, allow_local: bool) -> Iterator[None]:
    """Add to a link's error that the url may have been meant as a path, if it has no scheme."""
    try:
        yield
    except LoaderError as error:
        is_completed = place == Link(f"https://{ref.url.strip()}")
        if not allow_local or not is_completed or error.reason not in _NOT_FETCHED:
            raise
        raise LoaderError(
            error.reason,
            f"{error.message}; {redact_url(ref.url)} was taken for a link, because it is not a file"
            " on this machine",
        ) from error


def _trained_link(model: str, ref: SourceRef, settings: Settings) -> str:
    """Build the link of a trained model from its id and the link template."""
    if settings.trained_url_template is None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{model} is the id of a trained model, but the administrator has set no link"
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
    return trained_link(settings.trained_url_template, model)
