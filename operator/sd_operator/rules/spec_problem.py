"""Finds what is wrong with a spec, as far as the spec and the operator's settings show it."""

from __future__ import annotations

import re

from sd_api.choices import ModelType, contradiction
from sd_api.defaults import HUB_ENDPOINT
from sd_api.sources import TrainedId, Unreadable, read_source
from sd_api.spec import TWO_VAES, Spec
from sd_api.url_forms import NOT_A_SKELETON, WHOLE_REPO
from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model


def spec_problem(model: Model, settings: Settings) -> str | None:
    """Return why a model cannot be loaded. None if its spec shows no reason."""
    if model.spec is None:
        return model.problem
    return (
        _url_problem(model, model.spec, settings)
        or _components_problem(model.spec, settings)
        or _type_problem(model, model.spec)
    )


def _url_problem(model: Model, spec: Spec, settings: Settings) -> str | None:
    hub = settings.hub_endpoint or HUB_ENDPOINT
    match read_source(model.url, spec.model_type, spec.git_revision, hub):
        case Unreadable(words):
            return f"spec.url {words}"
        case TrainedId() if settings.trained_url_template is None:
            return (
                "spec.url is the bare id of a trained model, and the operator has no link template"
                " for those (SD_OPERATOR_TRAINED_URL_TEMPLATE)"
            )
        case _:
            return None


def _components_problem(spec: Spec, settings: Settings) -> str | None:
    hub = settings.hub_endpoint or HUB_ENDPOINT
    repo = spec.components.from_
    if repo is not None and re.search(WHOLE_REPO, repo) is None:
        return f"spec.components.from {NOT_A_SKELETON}"
    if spec.vae is not None and spec.components.vae is not None:
        return TWO_VAES
    for field, url in spec.replacements().values():
        meaning = read_source(url, ModelType.CUSTOM_CKPT, hub_endpoint=hub)
        if isinstance(meaning, Unreadable):
            return f"{field} {meaning.words}"
    return None


def _type_problem(model: Model, spec: Spec) -> str | None:
    """Return how spec.modelType contradicts the published artifact's type; None if it does not."""
    artifact = model.status.artifact
    if artifact is None or artifact.load_hash != model.wanted:
        return None
    return contradiction(spec.model_type, artifact.model_type)
