"""Edits of a model by the load form: its fields as texts, and the changed spec. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sd_api.redaction import redact_url
from sd_operator.gateway.gallery import controls
from sd_operator.gateway.gallery.snippets import DEFAULTS

IMMUTABLE = frozenset({"metadata.name", "spec.modelId", "spec.storage.claimName"})
FIELDS = tuple(field for field in controls.FIELDS if field.path not in IMMUTABLE)


def texts(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return each field of a spec as text, without secrets. The text of a default is empty."""
    return {field.path: _text(_get(spec, field.path), field) for field in FIELDS}


def edited(spec: Mapping[str, Any], submitted: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec with the values of the submitted fields that the user changed.

    A field counts as changed if its text differs from the one that the form showed. A url is shown
    without its secret parts, and keeps them unless its text is changed.
    """
    changed = copy.deepcopy(dict(spec))
    shown = texts(spec)
    for field in FIELDS:
        text = submitted.get(field.path, shown[field.path])
        if text != shown[field.path]:
            _set(changed, field.path, field.value(text) if text else None)
    return changed


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) that turns `old` into `new`."""
    changes: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if inner := merge_patch(before, value):
                changes[key] = inner
        elif before != value or key not in old:
            changes[key] = value
    return changes


def _text(value: object, field: controls.Field) -> str:
    if value is None or value == _get(DEFAULTS, field.path):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return redact_url(value) if isinstance(value, str) else str(value)


def _get(spec: Mapping[str, Any], path: str) -> object:
    value: Any = spec
    for name in path.split(".")[1:]:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _set(spec: dict[str, Any], path: str, value: object) -> None:
    """Set a field of the spec. If the value is None, remove the field and parents left empty."""
    name, _, rest = path.removeprefix("spec.").partition(".")
    if rest:
        inner = dict(spec.get(name) or {})
        _set(inner, rest, value)
        value = inner or None
    if value is None:
        spec.pop(name, None)
    else:
        spec[name] = value
