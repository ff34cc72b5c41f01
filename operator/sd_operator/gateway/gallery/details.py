"""The values that the page of a model shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sd_api import defaults
from sd_api.choices import PIPELINES, ModelType
from sd_api.humanize import files, size
from sd_api.reasons import Reason
from sd_api.status import ConditionType
from sd_api.wire import Receipt
from sd_operator.gateway.gallery import cardview, components, snippets, steps, views, words
from sd_operator.resources.model import Model

Json = Mapping[str, Any]
Facts = tuple[tuple[str, str], ...]
"""Titles and values."""

_OF_THE_TYPE = frozenset({Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED})
"""Reasons of failures that may disappear if the model is loaded as another type."""


@dataclass(frozen=True)
class Detail:
    """The values that the page of a model shows."""

    card: views.Card
    headline: words.Headline
    run: steps.Run | None
    """The load that is under way; None if there is none."""
    about: cardview.CardView | None
    """The model card: what the source and the file state about the model. None without a card."""
    painted: str
    """Prompt, seed and steps of the preview; empty if they are not known."""
    snippet: str | None
    servers: tuple[snippets.InferenceServer, ...]
    claim_name: str
    files: Facts
    components: tuple[components.ComponentSize, ...]
    memory: str
    """An estimate of the GPU memory; empty for models that are not pipelines."""
    source: str
    """The URL of the source without secrets."""
    source_link: str | None
    """The source as a link; None if it is not a link or does not work without its secrets."""
    origin: Facts
    conditions: tuple[words.ConditionView, ...]
    yaml: str
    deleting: bool
    suspended: bool
    retypes: tuple[tuple[str, str], ...]
    """Other types to try, with their names; empty unless the type may be the cause of a failure."""


@dataclass(frozen=True)
class Doomed:
    """A model that a visitor wants to delete."""

    card: views.Card
    uid: str
    retain: bool
    """Whether the files stay when the model is deleted."""


def doomed(model: Model) -> Doomed:
    """Return a model for the page that asks for confirmation of its deletion."""
    return Doomed(views.card(model), model.uid, model.retain)


def detail(model: Model, body: Json, now: datetime, receipt: Receipt | None = None) -> Detail:
    """Return the values that the page of a model shows.

    body: the JSON that the model was read from.
    receipt: the receipt of the published version; None if the gateway cannot read it.
    """
    text, link = views.source(model)
    artifact = model.status.artifact
    card = views.card(model)
    return Detail(
        card=card,
        headline=words.headline(model, now),
        run=steps.run(model, now),
        about=cardview.card_view(model),
        painted=_painted(model),
        snippet=snippets.snippet(model),
        servers=snippets.servers(model) if card.type in PIPELINES else (),
        claim_name=artifact.claim_name if artifact else "",
        files=tuple(_files(model)),
        components=components.components(receipt) if receipt else (),
        memory=components.memory(artifact, receipt) if card.type in PIPELINES else "",
        source=text,
        source_link=link,
        origin=tuple(_origin(model, body, now)),
        conditions=words.conditions(model, now),
        yaml=snippets.manifest_yaml(body),
        deleting=model.deleted_at is not None,
        suspended=model.spec is not None and model.spec.suspend,
        retypes=_retypes(model, card),
    )


def _painted(model: Model) -> str:
    """Return prompt, seed and steps of the preview; empty if the published load is outdated."""
    artifact = model.status.artifact
    if artifact is None or model.spec is None or artifact.load_hash != model.wanted:
        return ""
    verify = model.spec.verify
    prompt = verify.prompt or defaults.RENDER_PROMPT
    count = verify.steps or defaults.RENDER_STEPS
    return f"“{prompt}”, seed {defaults.RENDER_SEED}, {count} steps"


def _files(model: Model) -> Iterable[tuple[str, str]]:
    artifact = model.status.artifact
    if artifact is None:
        return
    shared = f", {size(artifact.shared_bytes)} shared" if artifact.shared_bytes else ""
    yield "Size", f"{artifact.size} in {files(artifact.files)}{shared}"
    if artifact.precision:
        yield "Precision", artifact.precision
    if artifact.variant:
        yield "Variant", artifact.variant
    if artifact.format:
        yield "Format", artifact.format
    if artifact.pipeline_class:
        yield "Class", artifact.pipeline_class
    if artifact.prediction_type:
        yield "Prediction type", artifact.prediction_type
    if artifact.lora_rank:
        yield "LoRA rank", str(artifact.lora_rank)
    yield "Path", f"{artifact.path} in PVC {artifact.claim_name}"
    yield "Path of this version", artifact.immutable_path
    yield "Folder digest", artifact.digest


def _origin(model: Model, body: Json, now: datetime) -> Iterable[tuple[str, str]]:
    origin = model.status.source
    if origin is not None:
        if origin.size_bytes is not None:
            file_format = f", {origin.format}" if origin.format else ""
            yield "Downloaded", f"{size(origin.size_bytes)}{file_format}"
        if origin.commit:
            yield "Commit", origin.commit
        if origin.sha256:
            yield "Digest", f"sha256:{origin.sha256}"
    yield "Model id", model.model_id
    if created := words.ago(body["metadata"].get("creationTimestamp"), now):
        yield "Created", created
    if model.status.job is not None:
        yield "Job", f"{model.status.job.name} (attempt {model.status.job.attempt + 1})"


def _retypes(model: Model, card: views.Card) -> tuple[tuple[str, str], ...]:
    conditions = model.status.conditions
    stalled = {item.reason for item in conditions if item.type == ConditionType.STALLED}
    if not stalled & _OF_THE_TYPE:
        return ()
    others = tuple((kind.value, views.TYPES[kind]) for kind in ModelType if kind != card.type)
    is_given = model.spec is not None and model.spec.model_type is not None
    return (("", "The one that the source shows"), *others) if is_given else others
