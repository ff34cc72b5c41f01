"""Programs of CEL stop at the side that decides, with the results of celpy's own evaluator."""

from __future__ import annotations

import itertools

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from sd_operator.standalone import cel

SIDES = ("true", "false", "self.absent == 1", "has(self.absent)", "has(self.here)")
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
    """An error on one side does not matter if the other side decides."""
    for expression in (f"{left} {operator} {right}", f"!({left} {operator} {right}) || {right}"):
        plain = celpy.Environment()
        expected = result(plain.program(plain.compile(expression)))
        assert result(cel.program(expression)) == expected, expression


@pytest.mark.parametrize("expression", ["true || self.slow()", "false && self.slow()"])
def test_the_side_that_does_not_matter_is_not_evaluated(expression: str) -> None:
    """The function would be called if the left side did not decide."""

    def slow(_: object) -> celpy.celtypes.BoolType:
        raise AssertionError("called")

    environment = cel.environment()
    program = environment.program(environment.compile(expression), functions={"slow": slow})
    assert program.evaluate(SELF) == expression.startswith("true")
