"""Tests of `||` and `&&` in CEL rules: they stop once the result is certain, and match celpy."""

from __future__ import annotations

import itertools

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from sd_operator.standalone import cel

SIDES = ("true", "false", "self.absent == 1", "has(self.absent)", "has(self.here)")
PLAIN = celpy.Environment()
SELF = {"self": json_to_cel({"here": 1})}


def result(program: celpy.Runner) -> bool | None:
    """Return the result of a program; None if it fails."""
    try:
        return bool(program.evaluate(SELF))
    except CELEvalError:
        return None


@pytest.mark.parametrize("operator", ["||", "&&"])
@pytest.mark.parametrize(("left", "right"), list(itertools.product(SIDES, SIDES)))
def test_results_are_those_of_celpy(left: str, operator: str, right: str) -> None:
    """The result equals celpy's, also if one side has an error and the other side decides."""
    for expression in (f"{left} {operator} {right}", f"!({left} {operator} {right}) || {right}"):
        expected = result(PLAIN.program(PLAIN.compile(expression)))
        assert result(cel.program(expression)) == expected, expression


@pytest.mark.parametrize("expression", ["true || self.slow()", "false && self.slow()"])
def test_the_right_side_is_not_evaluated_if_the_left_side_decides(expression: str) -> None:
    """The function on the right would fail the test."""

    def slow(_: object) -> celpy.celtypes.BoolType:
        raise AssertionError("called")

    environment = cel.environment()
    program = environment.program(environment.compile(expression), functions={"slow": slow})
    assert program.evaluate(SELF) == expression.startswith("true")
