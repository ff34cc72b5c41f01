"""Turns resources into the values that templates show. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from sd_api.card import Card as ModelCard
from sd_api.choices import ModelType
from sd_api.humanize import duration, size
from sd_api.reasons import ReadyReason, Reason
from sd_api.redaction import redact_url
from sd_api.status import Condition, ConditionType, Phase
from sd_api.taxonomy import canonical, title_of
from sd_operator.base import times
from sd_operator.gateway.gallery.snippets import manifest_yaml, snippet
from sd_operator.resources.model import Model

Json = Mapping[str, Any]

TYPES = {
    ModelType.HUGGINGFACE: "Hugging Face repo",
    ModelType.CUSTOM_CKPT: "Checkpoint",
    ModelType.API_TRAINED: "Trained model",
    ModelType.LORA: "LoRA",
    ModelType.EMBEDDINGS: "Embedding",
    ModelType.CONTROLNET: "ControlNet",
    ModelType.VAE: "VAE",
}

_TONES = {
    Phase.READY: "good",
    Phase.FAILED: "bad",
    Phase.PENDING: "wait",
    Phase.QUEUED: "wait",
    Phase.DELETING: "wait",
}
PAGE = 60
"""How many cards the list shows at first."""

_NEWS_PERCENT = 25
"""Progress is announced each time it passes a multiple of this."""


@dataclass(frozen=True)
class Filter:
    """Which models the list shows. An empty field matches every model."""

    text: str = ""
    type: str = ""
    phase: str = ""
    show: int = PAGE
    """The maximum number of cards."""

    @property
    def query(self) -> str:
        """The filter as a URL query, without empty fields and without `show`."""
        fields = {"q": self.text, "type": self.type, "phase": self.phase}
        return urlencode({name: value for name, value in fields.items() if value})

    def matches(self, card: Card) -> bool:
        """Return whether a card has the text, the type and the phase.

        The text is the name of the card's base model, or words that the card contains.
        """
        words = f"{card.name} {card.model_id} {card.type_name} {card.base} {card.source}".lower()
        base = canonical(self.text)
        return (
            (
                (base is not None and base is canonical(card.base))
                or all(word in words for word in self.text.lower().split())
            )
            and self.type in ("", card.type)
            and self.phase in ("", card.phase)
        )


@dataclass(frozen=True)
class Bar:
    """The progress of a load."""

    stage: str
    percent: int | None
    text: str


@dataclass(frozen=True)
class Card:
    """A model as the list shows it."""

    name: str
    model_id: str
    type: str
    type_name: str
    base: str
    """The base model's display name; empty if it is not known yet."""
    size: str
    phase: str
    tone: str
    """The CSS class of the phase: good, bad, wait or busy."""
    note: str
    """The reason, if the phase does not imply it."""
    bar: Bar | None
    """None unless a load is running."""
    source: str
    """The URL of the source without secrets."""
    version: str
    """The loadHash of the published files; empty if nothing is published."""


@dataclass(frozen=True)
class ConditionView:
    """A condition with its remedy."""

    type: str
    status: str
    reason: str
    message: str
    remedy: str
    tone: str
    ago: str


@dataclass(frozen=True)
class EventView:
    """An Event about a model."""

    reason: str
    message: str
    warning: bool
    ago: str


@dataclass(frozen=True)
class Detail:
    """A model as its own page shows it."""

    card: Card
    uid: str
    namespace: str
    conditions: tuple[ConditionView, ...]
    facts: tuple[tuple[str, str], ...]
    """Titles and values."""
    about: tuple[tuple[str, str], ...]
    """Titles and texts of the model card. Nobody has checked it."""
    page: str | None
    """The model's page at its source."""
    source: str
    """The URL of the source without secrets."""
    source_link: str | None
    """The source as a link; None if it is not a link or does not work without its secrets."""
    created: str
    """How long ago the resource was created."""
    yaml: str
    snippet: str | None
    deleting: bool
    retain: bool
    """Whether the files stay when the model is deleted."""


def card(body: Json) -> Card:
    """Return a model as the list shows it."""
    model = Model.from_body(body)
    status, artifact = model.status, model.status.artifact
    phase = status.phase or Phase.PENDING
    stalled = _find(status.conditions, ConditionType.STALLED)
    bar = None
    if status.progress is not None and phase not in (Phase.READY, Phase.FAILED, Phase.DELETING):
        bar = Bar(status.progress.stage, status.progress.percent, status.progress.text)
    base = artifact.base_model if artifact is not None else None
    kind = model.model_type
    return Card(
        name=model.name,
        model_id=model.model_id,
        type=kind or "",
        type_name=TYPES[kind] if kind else "Model",
        base=title_of(base) if base else "",
        size=artifact.size if artifact else "",
        phase=phase,
        tone="bad" if stalled else _TONES.get(phase, "busy"),
        note=_note(status.reason, phase, stalled),
        bar=bar,
        source=source(model)[0],
        version=artifact.load_hash if artifact else "",
    )


def detail(body: Json, now: datetime) -> Detail:
    """Return a model as its own page shows it; `events` returns its Events."""
    model = Model.from_body(body)
    text, link = source(model)
    created = _ago(body["metadata"].get("creationTimestamp"), now)
    about = model.status.artifact.card if model.status.artifact else None
    return Detail(
        card=card(body),
        uid=model.uid,
        namespace=model.namespace,
        conditions=_conditions(model, now),
        facts=tuple(_facts(model)),
        about=tuple(_about(about)) if about else (),
        page=about.page if about else None,
        source=text,
        source_link=link,
        created=created,
        yaml=manifest_yaml(body),
        snippet=snippet(model),
        deleting=model.deleted_at is not None,
        retain=model.retain,
    )


def source(model: Model) -> tuple[str, str | None]:
    """Return a model's source without secrets, and the same as a link.

    The link is None if the source is not a link, or if it had secrets and cannot work without them.
    """
    url = (model.status.source.url if model.status.source else None) or ""
    if model.spec is not None:
        url = redact_url(model.url)
    whole = model.spec is not None and url == model.url
    return url, url if whole and url.startswith(("https://", "http://")) else None


def events(items: Iterable[Json], now: datetime) -> list[EventView]:
    """Return Events as the page shows them, in the same order."""
    return [
        EventView(
            reason=str(event.get("reason") or ""),
            message=str(event.get("message") or ""),
            warning=event.get("type") == "Warning",
            ago=_ago(event.get("lastTimestamp") or event.get("eventTime"), now),
        )
        for event in items
    ]


def news(before: Card | None, after: Card) -> str:
    """Return the announcement of a change; empty if it is too small to interrupt a user."""
    if before is None or before.phase != after.phase or before.tone != after.tone:
        return f"{after.name}: {after.phase}{f', {after.note}' if after.note else ''}"
    old = before.bar.percent if before.bar else None
    new = after.bar.percent if after.bar else None
    if new is not None and after.bar and new // _NEWS_PERCENT > (old or 0) // _NEWS_PERCENT:
        return f"{after.name}: {after.bar.text}"
    return ""


def _note(reason: str | None, phase: Phase, stalled: Condition | None) -> str:
    """Return the reason; empty if the phase already implies it."""
    if stalled is not None:
        return stalled.reason
    return reason if reason and reason not in (phase, ReadyReason.LOADED) else ""


def _find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of this type if its status is True."""
    true = (item for item in conditions if item.type == kind and item.status == "True")
    return next(true, None)


def _conditions(model: Model, now: datetime) -> tuple[ConditionView, ...]:
    """Return all conditions, Stalled first.

    Ready repeats the message of Stalled: a repeated message is left out.
    """
    ordered = sorted(model.status.conditions, key=lambda item: item.type != ConditionType.STALLED)
    messages: set[str] = set()
    shown = []
    for condition in ordered:
        view = _condition(condition, model, now)
        if condition.message in messages:
            view = replace(view, message="", remedy="")
        messages.add(condition.message)
        shown.append(view)
    return tuple(shown)


def _condition(condition: Condition, model: Model, now: datetime) -> ConditionView:
    job = model.status.job.name if model.status.job else "NAME"
    reason = Reason.parse(condition.reason)
    remedy = reason.remedy_for(job) if reason else ""
    good = (condition.status == "True") == (condition.type != ConditionType.STALLED)
    tone = "good" if good else "bad"
    if condition.type == ConditionType.RECONCILING or (not good and not remedy):
        tone = "busy"
    return ConditionView(
        type=condition.type,
        status=condition.status,
        reason=condition.reason,
        # The operator's messages end with the remedy, which the page shows separately.
        message=condition.message.removesuffix(remedy).strip(),
        remedy=remedy,
        tone=tone,
        ago=_ago(condition.last_transition_time, now),
    )


def _about(about: ModelCard) -> Iterable[tuple[str, str]]:
    """Yield the texts of a model card; its page is a link of its own."""
    for title, text in about.model_copy(update={"page": None}).lines():
        yield title.capitalize(), text


def _facts(model: Model) -> Iterable[tuple[str, str]]:
    status, artifact, origin = model.status, model.status.artifact, model.status.source
    yield "Model id", model.model_id
    if artifact is not None:
        yield "Path", f"{artifact.path} in PVC {artifact.claim_name}"
        shared = f", {size(artifact.shared_bytes)} shared" if artifact.shared_bytes else ""
        files = "1 file" if artifact.files == 1 else f"{artifact.files} files"
        yield "Size", f"{artifact.size} in {files}{shared}"
        if artifact.base_model:
            yield "Base model", title_of(artifact.base_model)
        if artifact.variant:
            yield "Variant", artifact.variant
        if artifact.pipeline_class:
            yield "Class", artifact.pipeline_class
        if artifact.format:
            yield "Format", artifact.format
        if artifact.precision:
            yield "Precision", artifact.precision
        if artifact.prediction_type:
            yield "Prediction type", artifact.prediction_type
        yield "Folder digest", artifact.digest
        yield "Path of this version", artifact.immutable_path
    if origin is not None:
        if origin.commit:
            yield "Source commit", origin.commit
        if origin.sha256:
            yield "Source digest", f"sha256:{origin.sha256}"
        if origin.size_bytes is not None:
            file_format = f", {origin.format}" if origin.format else ""
            yield "Downloaded", f"{size(origin.size_bytes)}{file_format}"
    if status.job is not None:
        yield "Job", f"{status.job.name} (attempt {status.job.attempt + 1})"


def _ago(moment: object, now: datetime) -> str:
    parsed = times.parse(moment)
    return f"{duration(max(0, int((now - parsed).total_seconds())))} ago" if parsed else ""
