"""Renders models as tables and panels for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sd_api.humanize import duration, files, size
from sd_api.reasons import ReadyReason, Reason, WebhookReason
from sd_api.redaction import redact_url
from sd_api.status import Condition, ConditionType, Phase, Status
from sd_operator.base import times
from sd_operator.resources.model import Model

_COLORS = {Phase.READY: "green", Phase.FAILED: "red", Phase.PENDING: "yellow"}
_BAR_WIDTH = 40
_TICK, _DOTS, _CROSS = ("✓ ", "green"), ("… ", "cyan"), ("✗ ", "red")
_IN_PROGRESS = frozenset({*ReadyReason, WebhookReason.DELIVERY_PENDING})
"""Reasons of a condition that is not true yet, but is not a problem."""


def plain(text: str) -> str:
    """Replace control characters, so that text from the cluster cannot control the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def model_table(
    bodies: Iterable[Mapping[str, Any]], now: datetime, *, everywhere: bool = False
) -> Table:
    """Render one row for each model: its progress, or the reason why it is not ready."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in (["NAMESPACE"] if everywhere else []) + ["NAME", "TYPE", "PHASE"]:
        table.add_column(title, no_wrap=True)
    for title in ("PROGRESS", "BASE", "SIZE", "AGE"):
        table.add_column(title)
    for body in bodies:
        model = Model.from_body(body)
        status = model.status
        progress = status.progress.text if status.progress else ""
        if status.phase is not Phase.READY and not progress:
            progress = status.reason or ""
        row: list[RenderableType] = [model.namespace] if everywhere else []
        row += [model.name, status.model_type or "", phase(status.phase), progress]
        row += [status.artifact.base_model or "" if status.artifact else ""]
        row += [status.artifact.size if status.artifact else "", _age(body, now)]
        table.add_row(*row)
    return table


def phase(phase: Phase | None) -> Text:
    """Render a phase in its colour."""
    return Text(phase or "", style=_COLORS.get(phase, "cyan") if phase else "")


def model_panel(
    body: Mapping[str, Any], events: Iterable[Mapping[str, Any]], now: datetime
) -> RenderableType:
    """Render one model in full, with the remedy if it is stalled."""
    model = Model.from_body(body)
    status = model.status
    parts: list[RenderableType] = [
        Text.assemble((model.name, "bold"), f" in {model.namespace}: ", phase(status.phase))
    ]
    if status.progress is not None:
        parts += [Text(f"{status.progress.stage}: {status.progress.text}")]
        if status.progress.percent is not None:
            # In a grid, a line break follows the bar.
            bar = Table.grid()
            bar.add_row(ProgressBar(completed=status.progress.percent, width=_BAR_WIDTH))
            parts += [bar]
    facts = Table(box=None, show_header=False, pad_edge=False)
    for title, value in _facts(model):
        facts.add_row(Text(title, style="dim"), Text(plain(value)))
    parts += [facts, *(_condition(condition) for condition in status.conditions)]
    remedy = _remedy(status)
    if remedy:
        parts += [Text.assemble(("What to do: ", "bold"), remedy)]
    parts += [_event(event, now) for event in events]
    return Group(*parts)


def _remedy(status: Status) -> str:
    """Return the remedy for the reason of the Stalled condition; empty if there is none."""
    for condition in status.conditions:
        reason = Reason.parse(condition.reason)
        if condition.type == ConditionType.STALLED and reason is not None:
            return reason.remedy_for(status.job.name if status.job else "NAME")
    return ""


def is_settled(body: Mapping[str, Any]) -> bool:
    """Return whether the model is stalled, or loaded as its spec asks."""
    model = Model.from_body(body)
    if model.status.observed_generation != model.generation:
        return False
    conditions = _true_conditions(model)
    if ConditionType.STALLED in conditions:
        return True
    # The reload annotation changes the wanted loadHash but not the generation.
    loaded = model.status.artifact is not None and model.status.artifact.load_hash == model.wanted
    return (
        loaded and ConditionType.READY in conditions and ConditionType.RECONCILING not in conditions
    )


def is_stalled(body: Mapping[str, Any]) -> bool:
    """Return whether the Stalled condition is true, which means that the model needs help."""
    return ConditionType.STALLED in _true_conditions(Model.from_body(body))


def _true_conditions(model: Model) -> set[str]:
    return {condition.type for condition in model.status.conditions if condition.status == "True"}


def _facts(model: Model) -> Iterable[tuple[str, str]]:
    status = model.status
    yield "model id", status.model_id or model.model_id
    if status.model_type:
        yield "type", status.model_type
    source = status.source.url if status.source is not None else None
    if source is None and model.spec is not None:
        # The status has the source only after the first load.
        source = redact_url(model.spec.effective_url(model.name) or "")
    if source:
        yield "source", source
    if status.source is not None and status.source.commit:
        yield "commit", status.source.commit
    if status.artifact is not None:
        artifact = status.artifact
        yield "path", f"{artifact.path} in PVC {artifact.claim_name}"
        shared = f", {size(artifact.shared_bytes)} shared" if artifact.shared_bytes else ""
        yield "size", f"{artifact.size} in {files(artifact.files)}{shared}"
        contents = (
            artifact.base_model,
            artifact.variant,
            artifact.pipeline_class,
            artifact.precision,
        )
        yield "contents", ", ".join(word for word in contents if word)
        if artifact.card is not None:
            yield from artifact.card.lines()
    if status.job is not None:
        yield "job", f"{status.job.name} (attempt {status.job.attempt + 1})"
    if status.last_failure is not None:
        yield "last failure", f"{status.last_failure.reason}: {status.last_failure.message}"
    if status.webhook is not None and status.webhook.outbox:
        yield "webhook", f"undelivered calls: {len(status.webhook.outbox)}"


def _mark(condition: Condition) -> tuple[str, str]:
    """Return a cross for a problem, dots for work in progress, and a tick otherwise."""
    is_true = condition.status == "True"
    if condition.type == ConditionType.STALLED:
        return _CROSS if is_true else _TICK
    if condition.type == ConditionType.RECONCILING:
        return _DOTS if is_true else _TICK
    if is_true:
        return _TICK
    return _DOTS if condition.reason in _IN_PROGRESS else _CROSS


def _condition(condition: Condition) -> Text:
    mark = _mark(condition)
    message = f": {plain(condition.message)}" if condition.message else ""
    return Text.assemble(mark, f"{condition.type}={condition.status} {condition.reason}{message}")


def _event(event: Mapping[str, Any], now: datetime) -> Text:
    moment = times.parse(event.get("lastTimestamp") or event.get("eventTime"))
    ago = f"{duration(max(0, int((now - moment).total_seconds())))} ago" if moment else ""
    text = plain(f"{event.get('reason', '')}: {event.get('message', '')}")
    style = "yellow" if event.get("type") == "Warning" else "dim"
    return Text(f"  {ago:>10}  {text}", style=style)


def _age(body: Mapping[str, Any], now: datetime) -> str:
    created = times.parse(body["metadata"].get("creationTimestamp"))
    return duration(max(0, int((now - created).total_seconds()))) if created else ""
