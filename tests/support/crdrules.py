"""Evaluates the CRD's validation rules (CEL) as an API server does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from celpy.adapter import json_to_cel

from sd_operator.standalone import cel

Spec = Mapping[str, Any]

# celpy raises Python's recursion limit here. Hypothesis warns if that happens within a test.
cel.environment()

_program = cache(cel.program)


def broken(
    rules: Iterable[tuple[str, str, str]],
    spec: Spec,
    old: Spec | None = None,
    name: str = "a-model",
) -> list[str]:
    """Return the messages of the rules that an object breaks.

    rules: path, rule and message of each. old: the spec before the change; without it, the object
    is new, and rules about changes do not apply.
    """
    variables = {
        variable: json_to_cel({"metadata": {"name": name}, "spec": dict(content)})
        for variable, content in (("self", spec), ("oldSelf", old or {}))
    }
    return [
        message
        for _, rule, message in rules
        if (old is not None or "oldSelf" not in rule) and not _program(rule).evaluate(variables)
    ]
