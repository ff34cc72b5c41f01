"""Label and field selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sd_operator.standalone.errors import Json, Value, bad_request
from sd_operator.standalone.resources import Resource

Predicate = Callable[[Json], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s+\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<op>!=|==?)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s!=,()]+)$")
_FIELDS = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "status.phase"),
    "jobs": ("status.successful",),
    "secrets": ("type",),
    "namespaces": ("status.phase",),
    "events": (
        *(
            f"involvedObject.{part}"
            for part in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")
        ),
        "reason",
        "type",
        "source",
    ),
}


def lookup(item: Value, path: str) -> Value:
    """Return the value at a dotted path; None if it does not exist."""
    for part in path.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def selector(resource: Resource, labels: str, fields: str) -> Predicate:
    """Return a predicate for objects that match both a label and a field selector."""
    tests = [_label(term.strip()) for term in re.split(r",(?![^()]*\))", labels) if term.strip()]
    tests += [_field(resource, term.strip()) for term in fields.split(",") if term.strip()]
    return lambda item: all(test(item) for test in tests)


def _label(term: str) -> Predicate:
    if match := _SET.match(term):
        return _label_test(
            match["key"], set(re.split(r"\s*,\s*", match["values"].strip())), match["op"] == "in"
        )
    if match := _EQUAL.match(term):
        return _label_test(match["key"], {match["value"]}, match["op"] != "!=")
    if match := _EXISTS.match(term):
        return _label_test(match["key"], {None}, bool(match["not"]))
    raise bad_request(f"unable to parse requirement: {term!r} is not a label requirement")


def _label_test(key: str, wanted: Collection[str | None], expected: bool) -> Predicate:
    return lambda item: (item["metadata"].get("labels", {}).get(key) in wanted) == expected


def _field(resource: Resource, term: str) -> Predicate:
    match = _EQUAL.match(term)
    if match is None:
        raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
    key, wanted, expected = match["key"], match["value"], match["op"] != "!="
    if key not in ("metadata.name", "metadata.namespace", *_FIELDS.get(resource.plural, ())):
        raise bad_request(f"field label not supported: {key}")
    return lambda item: ((lookup(item, key) or "") == wanted) == expected
