"""Keeps only the keys of a config that its class documents, with values that the class can have.

The list of keys is generated from diffusers and transformers (`tools/make_config_keys.py`). Every
other key is left out: base classes of both libraries read keys that name code, kernels, files or
quantizers. `config_limits` bounds the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sd_api.reasons import Reason
from sd_loader.diffusers_repo import config_limits as limits
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet

PATH = Path(__file__).with_name("config_keys.json")

_NESTED = "config "
_SCHEDULER = "Scheduler"
_MOST_BITS = 64
"""Maximum bits of a whole number. JSON allows any length, but a float cannot hold every number."""
_UNKNOWN: Mapping[str, Any] = {"keys": {}}

Classes = Mapping[str, Mapping[str, Any]]


@cache
def known_classes() -> Classes:
    """The generated list: the entry of each class, by name."""
    entries: Classes = json.loads(PATH.read_text())
    return entries


def defaults(class_name: str) -> dict[str, Any]:
    """The default values of a class's keys, which apply to keys that a config does not state."""
    keys = known_classes().get(class_name, _UNKNOWN)["keys"]
    return {name: key["default"] for name, key in keys.items()}


def allowed_config(
    config: Mapping[str, Any],
    class_name: str,
    path: str,
    *,
    reason: Reason = Reason.CONVERSION_FAILED,
    classes: Classes | None = None,
) -> dict[str, Any]:
    """The part of a config that its class documents. Refuse a value that the class cannot have.

    path: the config's file, for messages. classes: the list, if it is not the generated one.
    """
    classes = known_classes() if classes is None else classes
    entry = classes.get(class_name, _UNKNOWN)
    # transformers reads the nested config in place of the one around it.
    nested = config.get(entry["nested_as"]) if "nested_as" in entry else None
    own = nested if isinstance(nested, dict) else config
    allowed: dict[str, Any] = {}
    for name, item in entry["keys"].items():
        if name not in own:
            continue
        value = own[name]
        inner = item["types"][0].removeprefix(_NESTED)
        if inner in classes and isinstance(value, dict):
            allowed[name] = {
                **allowed_config(value, inner, f"{path}: {name}", reason=reason, classes=classes),
                "model_type": classes[inner]["model_type"],
            }
            continue
        key = _Key.of(class_name, name, item)
        if not key.permits(value):
            raise LoaderError(reason, f"{path}: {name} {key.problem(value)}")
        allowed[name] = key.written(value)
    return allowed


def allowed_scheduler(config: Mapping[str, Any], class_name: str, path: str) -> dict[str, Any]:
    """The part of a scheduler's config that this scheduler or another one documents.

    diffusers keeps the keys of other schedulers, and uses them when a user changes the scheduler.
    A key of another scheduler is left out if no scheduler can have its value.
    """
    allowed = allowed_config(config, class_name, path, reason=Reason.UNSUPPORTED_FORMAT)
    for other, entry in known_classes().items():
        for name, item in entry["keys"].items() if other.endswith(_SCHEDULER) else ():
            key = _Key.of(other, name, item)
            if name in config and name not in allowed and key.permits(config[name]):
                allowed[name] = key.written(config[name])
    return allowed


@dataclass(frozen=True)
class _Key:
    """A key of a class's config."""

    types: frozenset[str]
    """JSON types. `int[]` is a list of numbers; `int[][]` is a list of such lists or of numbers."""

    names: tuple[str, ...] | None
    """The strings that the value may be. None if the value must not be a string."""

    least: float
    most: float

    most_items: int
    """Maximum length of a list."""

    may_be_empty: bool
    """Whether the value may be an empty list."""

    only: tuple[object, ...]
    """The only supported value, besides null. Empty if several values are supported."""

    @classmethod
    def of(cls, class_name: str, name: str, item: Mapping[str, Any]) -> _Key:
        types = set(item["types"])
        if "bool" in types:
            types.add("null")  # diffusers has written null for false
        if {f"{class_name}.{name}", name} & limits.NEVER_NULL:
            types.discard("null")
        is_long = "float[]" in types or name in limits.LONG_LISTS
        least, most = limits.limit(limits.NUMBERS, class_name, name) or (0, limits.MOST)
        only = [limits.ONLY[it] for it in (f"{class_name}.{name}", name) if it in limits.ONLY]
        names = item.get("values") or limits.limit(limits.NAMES, class_name, name)
        return cls(
            frozenset(types),
            None if names is None else tuple(names),
            least,
            most,
            limits.MOST if is_long else limits.MOST_ITEMS,
            item["default"] == [],
            tuple(only),
        )

    def permits(self, value: object) -> bool:
        """Whether the key can have the value."""
        if self.only:
            return not value and value in (None, *self.only)
        return self._fits(value, self.types)

    def _fits(self, value: object, types: Iterable[str]) -> bool:
        match value:
            case list():
                inner = {kind.removesuffix("[]") for kind in types if kind.endswith("[]")}
                inner |= {kind.partition("[")[0] for kind in inner}
                is_right_size = len(value) <= self.most_items and bool(value or self.may_be_empty)
                return is_right_size and all(self._fits(item, inner) for item in value)
            case None:
                return "null" in types
            case bool():
                return "bool" in types
            case int() if value.bit_length() > _MOST_BITS:
                return False
            case int() | float():
                is_typed = "float" in types or (isinstance(value, int) and "int" in types)
                return is_typed and self.least <= value <= self.most
            case str():
                return "str" in types and self.names is not None and value in self.names
            case _:
                return False

    def written(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """The value as it is published: transformers refuses `1` instead of `1.0`."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if is_whole and "int" not in self.types else value

    def problem(self, value: object) -> str:
        """Return the end of an error: what is wrong with a value, and what it should be."""
        takes_lists = any(kind.endswith("[]") for kind in self.types)
        if isinstance(value, list) and takes_lists and not 0 < len(value) <= self.most_items:
            return f"has {len(value)} items; it should have 1 to {self.most_items:,}"
        return f"is {json_snippet(value)}; it should be {self.expected}"

    @property
    def expected(self) -> str:
        """What the value should be, for messages."""
        if self.only:
            return "null" if self.only == (None,) else "false"
        types = self.types - {"null"}
        leaves = {kind.partition("[")[0] for kind in types}
        if any(kind.startswith(_NESTED) for kind in types):
            return "an object"
        if self.names is not None:
            what = many = " or ".join(self.names)
        elif "bool" in leaves:
            what = many = "true or false"
        else:
            number = "whole number" if leaves == {"int"} else "number"
            least = f"from {self.least:,}" if self.least != limits.ABOVE_ZERO else "above 0 and up"
            what = f"a {number} {least} to {self.most:,}"
            many = f"{number}s {least} to {self.most:,}"
        lists = {kind for kind in types if kind.endswith("[]")}
        if not lists:
            return what
        return f"a list of {many}" if lists == types else f"{what}, or a list of such"
