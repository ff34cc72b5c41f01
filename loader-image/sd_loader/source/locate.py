"""Finds the source that a url means, from the url, the model type and the settings alone.

`sd_api.sources` reads the url. This module adds what only the loader knows: files on this machine
at the command line, and the administrator's link for trained models.
A link to one file of a Hub repo means this file for every model type. The file is fetched through
the Hub's API, which states its commit, size and digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_api.sources import HubFile, HubRepo, Link, TrainedId, Unreadable, read_source
from sd_api.spec import ModelType
from sd_api.trained import KEY, trained_link
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source.ref import SourceRef

_MODEL_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".zip")


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
    meaning = read_source(ref.url, ref.model_type, ref.git_revision, settings.hub_endpoint)
    # With modelType huggingface, a person means a whole repo and never a file.
    if allow_local and ref.model_type is not ModelType.HUGGINGFACE and "://" not in ref.url:
        is_file_name = isinstance(meaning, HubRepo) and ref.url.endswith(_MODEL_FILE)
        if is_file_name or (isinstance(meaning, Unreadable) and meaning.may_be_path):
            return LocalFile(ref.url)
    match meaning:
        case Unreadable(words):
            raise LoaderError(Reason.INVALID_SPEC, f"{ref.field} {words}")
        case TrainedId(model):
            return Link(_trained_link(model, ref, settings))
        case _:
            return meaning


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
