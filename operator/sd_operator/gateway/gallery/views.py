"""The values that the list of models shows for a model, and display names of the types. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sd_api.choices import ModelType
from sd_api.reasons import ReadyReason
from sd_api.redaction import redact_url
from sd_api.status import Condition, ConditionType, Phase
from sd_api.taxonomy import title_of
from sd_operator.resources.model import Model

TYPES: Mapping[str, str] = {
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
_NEWS_PERCENT = 25
"""Progress is announced each time it passes a multiple of this."""


@dataclass(frozen=True)
class Bar:
    """The progress of a load."""

    stage: str
    percent: int | None
    text: str


@dataclass(frozen=True)
class Card:
    """The values that the list of models shows for a model."""

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
    """The reason in words; empty if the phase already implies it."""
    bar: Bar | None
    """None unless a load is running."""
    source: str
    """The URL of the source without secrets."""
    version: str
    """The loadHash of the published files; empty if nothing is published."""
    created: datetime
    bytes: int
    """The bytes of the published files."""
    shared_bytes: int
    """How many of these bytes take no extra space, because other models have the same files."""


def card(model: Model) -> Card:
    """Return the values that the list of models shows for a model."""
    status, artifact = model.status, model.status.artifact
    phase = status.phase or Phase.PENDING
    stalled = find(status.conditions, ConditionType.STALLED)
    bar = None
    if status.progress is not None and phase not in (Phase.READY, Phase.FAILED, Phase.DELETING):
        bar = Bar(status.progress.stage, status.progress.percent, status.progress.text)
    base = artifact.base_model if artifact is not None else None
    kind = model.type_with(artifact) or ""
    return Card(
        name=model.name,
        model_id=model.model_id,
        type=kind if kind in TYPES else "",
        type_name=TYPES.get(kind, "Model"),
        base=title_of(base) if base else "",
        size=artifact.size if artifact else "",
        phase=phase,
        tone="bad" if stalled else _TONES.get(phase, "busy"),
        note=_note(status.reason, phase, stalled),
        bar=bar,
        source=source(model)[0],
        version=artifact.load_hash if artifact else "",
        created=model.created,
        bytes=artifact.size_bytes if artifact else 0,
        shared_bytes=artifact.shared_bytes if artifact else 0,
    )


def source(model: Model) -> tuple[str, str | None]:
    """Return two values: the redacted url of a model's source, and the same url as a link.

    The link is None if the url is not http(s), if redaction changed it (it has a login, a query
    or a fragment), or if the spec is invalid.
    """
    url = (model.status.source.url if model.status.source else None) or ""
    if model.spec is not None:
        url = redact_url(model.url)
    whole = model.spec is not None and url == model.url
    return url, url if whole and url.startswith(("https://", "http://")) else None


def news(before: Card | None, after: Card) -> str:
    """Return a text for screen readers about a change; empty if the change is too small for it."""
    if before is None or before.phase != after.phase or before.tone != after.tone:
        return f"{after.name}: {after.phase}{f', {after.note}' if after.note else ''}"
    old = before.bar.percent if before.bar else None
    new = after.bar.percent if after.bar else None
    if new is not None and after.bar and new // _NEWS_PERCENT > (old or 0) // _NEWS_PERCENT:
        return f"{after.name}: {after.bar.text}"
    return ""


def _note(reason: str | None, phase: Phase, stalled: Condition | None) -> str:
    """Return the reason in words; empty if the phase already implies it."""
    if stalled is not None:
        reason = stalled.reason
    elif reason in (None, phase, ReadyReason.LOADED):
        return ""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", reason or "").lower()


def find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of this type if its status is True."""
    true = (item for item in conditions if item.type == kind and item.status == "True")
    return next(true, None)
