"""The load form: the resource that it describes, and the errors of each field. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sd_api import names
from sd_api.wording import reword
from sd_operator.gateway.errors import in_words
from sd_operator.gateway.gallery.controls import FIELDS, GROUPS, Field, Group


@dataclass(frozen=True)
class Complaints:
    """The errors of a submitted form."""

    at: Mapping[str, list[str]] = field(default_factory=dict)
    """The errors of each field, by the field's path."""
    others: tuple[str, ...] = ()
    """The errors that belong to no field of the form."""

    def __bool__(self) -> bool:
        return bool(self.at or self.others)


_LABELS = {control.path: control.label for control in FIELDS}


def values(submitted: Mapping[str, object]) -> dict[str, str]:
    """Return the text of each form field, stripped; ignore everything else that was submitted."""
    texts = {path: submitted.get(path) for path in _LABELS}
    return {path: text.strip() for path, text in texts.items() if isinstance(text, str)}


def manifest(texts: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """Return the resource that the form describes."""
    body: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": texts.get("metadata.name", ""), "namespace": namespace},
        "spec": {},
    }
    for control in FIELDS:
        text = texts.get(control.path, "")
        if not text:
            continue
        *parents, last = control.path.split(".")
        target = body
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = control.value(text)
    return body


@dataclass(frozen=True)
class Fold:
    """A group of the form's fields, with a title, which can be opened."""

    group: Group
    fields: tuple[Field, ...]
    is_open: bool


def folds(
    fields: Sequence[Field],
    texts: Mapping[str, str],
    errors: Mapping[str, list[str]],
    opened: str = "",
) -> tuple[Fold, ...]:
    """Return the groups of these fields. A group with a text or an error in it is open.

    opened: the id of a group that is always open.
    """
    shown = []
    for group in GROUPS:
        own = tuple(field for field in group.fields if field in fields)
        is_used = any(texts.get(field.path) or field.path in errors for field in own)
        shown.append(Fold(group, own, is_used or group.id == opened))
    return tuple(shown)


def complaints(causes: Iterable[tuple[str, str]], default: str) -> Complaints:
    """Sort the API server's causes by form field; without causes, the only error is `default`."""
    at: defaultdict[str, list[str]] = defaultdict(list)
    others: list[str] = []
    for where, message in in_words(causes):
        path = _field(where) or _field(message.partition(" ")[0].rstrip(":"))
        messages = at[path] if path else others
        text = in_labels(message)
        if text not in messages:
            messages.append(text)
    if not at and not others:
        others.append(default)
    return Complaints(dict(at), tuple(others))


def beside(
    errors: Complaints, texts: Mapping[str, str], *, submitted: bool
) -> Mapping[str, list[str]]:
    """Return the errors to show beside the fields, by the field's path.

    Before the form is submitted, an empty field shows no error: it may be filled in later.
    """
    return {path: messages for path, messages in errors.at.items() if submitted or texts.get(path)}


def in_labels(message: str) -> str:
    """Return a message with the labels of the form in place of the resource's fields."""
    return reword(message, label, yes="Yes")


def label(path: str) -> str | None:
    """Return the label of the form field for a path of the resource."""
    return _LABELS.get(_field(path) or "")


def _field(path: str) -> str | None:
    """Return the path of the form field at or above this path, else of the first field below it."""
    for field_path in _LABELS:
        if path == field_path or path.startswith(f"{field_path}."):
            return field_path
    inner = [
        field_path
        for field_path in _LABELS
        if path.startswith("spec.") and field_path.startswith(f"{path}.")
    ]
    return inner[0] if inner else None
