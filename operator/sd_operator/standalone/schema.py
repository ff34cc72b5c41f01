"""Structural schemas: pruning, defaults, validation and CEL rules, as a real server has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped]
from celpy import Runner
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from sd_operator.standalone import cel
from sd_operator.standalone.errors import Cause, Json, Value, quote

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_INTEGERS = 2**63
_CEL_REASONS = {
    "FieldValueRequired": "Required value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueDuplicate": "Duplicate value",
}
PRESERVE = "x-kubernetes-preserve-unknown-fields"
UNCHECKED = (
    "some validation rules were not checked because the object was invalid;"
    " correct the existing errors to complete validation"
)


def type_name(value: Value) -> str:
    """Return the JSON type of a value, as schemas name it."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "number"
    return next((name for name, types in _TYPES.items() if isinstance(value, types)), "null")


def has_type(value: Value, expected: str) -> bool:
    """Return whether a value has a schema's type; a boolean is not an integer."""
    if isinstance(value, bool):
        return expected == "boolean"
    if expected == "integer" and isinstance(value, float):
        return value.is_integer() and abs(value) < _INTEGERS
    return isinstance(value, _TYPES[expected])


def children(schema: Json, value: Value) -> Iterator[tuple[Any, str, Json | None]]:
    """Yield key, path step and schema of each child of a value; the schema is None if unknown."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        additional = schema.get("additionalProperties")
        for key in value:
            yield key, f".{key}", properties.get(key, additional)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index in range(len(value)):
            yield index, f"[{index}]", schema["items"]


def prune(schema: Json, value: Value, path: str = "") -> list[str]:
    """Drop nulls and unknown fields in place; return the paths of the unknown fields."""
    unknown: list[str] = []
    if schema.get(PRESERVE):
        return unknown
    for key, step, child in list(children(schema, value)):
        child_path = f"{path}{step}".lstrip(".")
        if child is None:
            unknown.append(child_path)
            del value[key]
        elif value[key] is None and isinstance(value, dict):
            del value[key]
        else:
            unknown += prune(child, value[key], child_path)
    return unknown


def set_defaults(schema: Json, value: Value) -> None:
    """Set the defaults of absent fields in place."""
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = child["default"]
    for key, _, child in children(schema, value):
        if child is not None:
            set_defaults(child, value[key])


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> Value:
    return re2.compile(pattern)


def validate(schema: Json, value: Value, path: str = "") -> Iterator[Cause]:
    """Yield all errors of a value, in the order of its fields."""
    either = schema.get("x-kubernetes-int-or-string")
    if either and type_name(value) not in {"string", "integer"}:
        yield _wrong_type(path, value, "integer,string")
        return
    type_matches = "type" not in schema or has_type(value, schema["type"])
    if not type_matches:
        yield _wrong_type(path, value, schema["type"])
        if type_name(value) == "number":
            text = f"Checked value must be of type integer (default format) in {path}"
            yield Cause.invalid("<nil>", "", text)
    else:
        yield from _validate_limits(schema, value, path)
    if "enum" in schema and value not in schema["enum"]:
        yield Cause.unsupported(path, value, schema["enum"])
    if not type_matches:
        return
    if schema.get("x-kubernetes-list-type") == "map":
        yield from _validate_keys(schema["x-kubernetes-list-map-keys"], value, path)
    for key in schema.get("required", ()):
        if isinstance(value, dict) and key not in value:
            yield Cause.required(f"{path}.{key}".lstrip("."))
    for key, step, child in children(schema, value):
        if child is not None:
            yield from validate(child, value[key], f"{path}{step}".lstrip("."))


def _wrong_type(path: str, value: Value, expected: str) -> Cause:
    name = type_name(value)
    return Cause.wrong_type(path, name, f'{path} in body must be of type {expected}: "{name}"')


def _validate_keys(keys: Sequence[str], items: Sequence[Json], path: str) -> Iterator[Cause]:
    seen: list[Json] = []
    for index, item in enumerate(items):
        key = {name: item[name] for name in keys if name in item}
        if key in seen:
            yield Cause(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {quote(key)}")
        seen.append(key)


def _validate_limits(schema: Json, value: Value, path: str) -> Iterator[Cause]:
    def broken(text: str) -> Cause:
        return Cause.invalid(path, value, f"{path} in body should {text}")

    if isinstance(value, str):
        # A real server reports only the first of these errors of a string.
        if len(value) > schema.get("maxLength", len(value)):
            text = f"Too long: may not be more than {schema['maxLength']} bytes"
            yield Cause(path, "FieldValueTooLong", text)
        elif len(value) < schema.get("minLength", 0):
            yield broken(f"be at least {schema['minLength']} chars long")
        elif "pattern" in schema and not _pattern(schema["pattern"]).search(value):
            yield broken(f"match '{schema['pattern']}'")
        if schema.get("format") == "date-time" and not _is_time(value):
            text = f"{path} in body must be of type date-time: {quote(value)}"
            yield Cause.wrong_type(path, value, text)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            yield broken(f"be greater than or equal to {schema['minimum']}")
        if value > schema.get("maximum", value):
            yield broken(f"be less than or equal to {schema['maximum']}")
    for kind, limit in ((list, "maxItems"), (dict, "maxProperties")):
        if isinstance(value, kind) and len(value) > schema.get(limit, len(value)):
            text = f"Too many: {len(value)}: must have at most {schema[limit]} items"
            yield Cause(path, "FieldValueTooMany", text)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


class Rules:
    """The compiled CEL rules at the root of a schema."""

    def __init__(self, rules: Sequence[Mapping[str, str]]) -> None:
        self._rules = [(rule, cel.program(rule["rule"])) for rule in rules]

    def check(self, new: Json, old: Json | None) -> Iterator[Cause]:
        """Yield the errors of an object; rules with oldSelf apply only to updates."""
        context = {"self": json_to_cel(new)}
        if old is not None:
            context["oldSelf"] = json_to_cel(old)
        for rule, program in self._rules:
            if old is None and "oldSelf" in rule["rule"]:
                continue
            if not _holds(program, context):
                reason = rule.get("reason", "FieldValueInvalid")
                field = rule.get("fieldPath", "").lstrip(".") or "<nil>"
                prefix = _CEL_REASONS.get(reason, "Invalid value")
                yield Cause(field, reason, f"{prefix}: {rule['message']}")


def _holds(program: Runner, context: Json) -> bool:
    try:
        return bool(program.evaluate(context))
    except CELEvalError:
        return False
