"""What pages show of a model: from resources to words and numbers. Pure; templates add the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from sd_api.humanize import duration, size
from sd_api.reasons import ReadyReason, Reason
from sd_api.redaction import redact_url
from sd_api.spec import ModelType
from sd_api.status import Condition, ConditionType, Phase
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
BASES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL", "sdxl-refiner": "SDXL refiner"}

_TONES = {
    Phase.READY: "good",
    Phase.FAILED: "bad",
    Phase.PENDING: "wait",
    Phase.QUEUED: "wait",
    Phase.DELETING: "wait",
}
PAGE = 60

_NEWS_PERCENT = 25


@dataclass(frozen=True)
class Filter:
    """What of the list is asked for; show: how many at most."""

    text: str = ""
    type: str = ""
    phase: str = ""
    show: int = PAGE

    @property
    def query(self) -> str:
        """As it stands in the address, without what is not set."""
        given = {"q": self.text, "type": self.type, "phase": self.phase}
        return urlencode({name: value for name, value in given.items() if value})

    def takes(self, card: Card) -> bool:
        """Whether a card is asked for: by all words of the text, type and phase."""
        words = f"{card.name} {card.model_id} {card.type_name} {card.base} {card.source}".lower()
        return (
            all(word in words for word in self.text.lower().split())
            and self.type in ("", card.type)
            and self.phase in ("", card.phase)
        )


@dataclass(frozen=True)
class Bar:
    """How far a load is."""

    stage: str
    percent: int | None
    text: str


@dataclass(frozen=True)
class Card:
    """A model in brief."""

    name: str
    model_id: str
    type: str
    type_name: str
    base: str
    size: str
    phase: str
    tone: str
    note: str
    bar: Bar | None
    source: str
    version: str
    """Of the published weights; empty while there are none."""


@dataclass(frozen=True)
class ConditionView:
    """A condition, and what to do about it."""

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
    """All that there is to say of a model. facts: titles and values."""

    card: Card
    uid: str
    namespace: str
    conditions: tuple[ConditionView, ...]
    facts: tuple[tuple[str, str], ...]
    source: str
    source_link: str | None
    created: str
    yaml: str
    snippet: str | None
    deleting: bool
    retain: bool


def card(body: Json) -> Card:
    """The model in brief."""
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
        base=BASES.get(base, base) if base else "",
        size=artifact.size if artifact else "",
        phase=phase,
        tone="bad" if stalled else _TONES.get(phase, "busy"),
        note=_note(status.reason, phase, stalled),
        bar=bar,
        source=source(model)[0],
        version=artifact.load_hash if artifact else "",
    )


def detail(body: Json, now: datetime) -> Detail:
    """All of a model but its Events."""
    model = Model.from_body(body)
    text, link = source(model)
    created = _ago(body["metadata"].get("creationTimestamp"), now)
    return Detail(
        card=card(body),
        uid=model.uid,
        namespace=model.namespace,
        conditions=_conditions(model, now),
        facts=tuple(_facts(model)),
        source=text,
        source_link=link,
        created=created,
        yaml=manifest_yaml(body),
        snippet=snippet(model),
        deleting=model.deleted_at is not None,
        retain=model.retain,
    )


def source(model: Model) -> tuple[str, str | None]:
    """Where a model comes from, without secrets; and a link to it, where that still leads there."""
    url = (model.status.source.url if model.status.source else None) or ""
    if model.spec is not None:
        url = redact_url(model.url)
    whole = model.spec is not None and url == model.url
    return url, url if whole and url.startswith(("https://", "http://")) else None


def events(found: Iterable[Json], now: datetime) -> list[EventView]:
    """The Events about a model, as they come."""
    return [
        EventView(
            reason=str(event.get("reason") or ""),
            message=str(event.get("message") or ""),
            warning=event.get("type") == "Warning",
            ago=_ago(event.get("lastTimestamp") or event.get("eventTime"), now),
        )
        for event in found
    ]


def news(before: Card | None, after: Card) -> str:
    """What a listener is told of a change; empty where it is not worth an interruption."""
    if before is None or before.phase != after.phase or before.tone != after.tone:
        return f"{after.name}: {after.phase}{f', {after.note}' if after.note else ''}"
    old = before.bar.percent if before.bar else None
    new = after.bar.percent if after.bar else None
    if new is not None and after.bar and new // _NEWS_PERCENT > (old or 0) // _NEWS_PERCENT:
        return f"{after.name}: {after.bar.text}"
    return ""


def _note(reason: str | None, phase: Phase, stalled: Condition | None) -> str:
    """The reason, where the phase does not say as much."""
    if stalled is not None:
        return stalled.reason
    return reason if reason and reason not in (phase, ReadyReason.LOADED) else ""


def _find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    held = (one for one in conditions if one.type == kind and one.status == "True")
    return next(held, None)


def _conditions(model: Model, now: datetime) -> tuple[ConditionView, ...]:
    """What needs help first; Ready repeats the reason, which is not said twice."""
    found = sorted(model.status.conditions, key=lambda one: one.type != ConditionType.STALLED)
    told: set[str] = set()
    shown = []
    for one in found:
        view = _condition(one, model, now)
        if one.message in told:
            view = replace(view, message="", remedy="")
        told.add(one.message)
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
        # The operator's messages end with the remedy, which has a place of its own here.
        message=condition.message.removesuffix(remedy).strip(),
        remedy=remedy,
        tone=tone,
        ago=_ago(condition.last_transition_time, now),
    )


def _facts(model: Model) -> Iterable[tuple[str, str]]:
    status, artifact, origin = model.status, model.status.artifact, model.status.source
    yield "Model id", model.model_id
    if artifact is not None:
        yield "Path", f"{artifact.path} in claim {artifact.claim_name}"
        shared = f", {size(artifact.shared_bytes)} shared" if artifact.shared_bytes else ""
        files = "1 file" if artifact.files == 1 else f"{artifact.files} files"
        yield "Size", f"{artifact.size} in {files}{shared}"
        if artifact.base_model:
            yield "Base model", BASES.get(artifact.base_model, artifact.base_model)
        if artifact.pipeline_class:
            yield "Class", artifact.pipeline_class
        if artifact.precision:
            yield "Precision", artifact.precision
        if artifact.prediction_type:
            yield "Predicts", artifact.prediction_type
        yield "Folder's digest", f"sha256:{artifact.digest}"
        yield "This version", artifact.immutable_path
    if origin is not None:
        if origin.commit:
            yield "Source commit", origin.commit
        if origin.sha256:
            yield "Source digest", f"sha256:{origin.sha256}"
        if origin.size_bytes is not None:
            what = f", {origin.format}" if origin.format else ""
            yield "Downloaded", f"{size(origin.size_bytes)}{what}"
    if status.job is not None:
        yield "Job", f"{status.job.name} (attempt {status.job.attempt + 1})"


def _ago(moment: object, now: datetime) -> str:
    parsed = times.parse(moment)
    return f"{duration(max(0, int((now - parsed).total_seconds())))} ago" if parsed else ""
