"""Compiles expressions of CEL, the language of the rules in a CRD's schema."""

from __future__ import annotations

from functools import cache
from typing import Any

from celpy import Environment, InterpretedRunner, Runner
from celpy.celtypes import BoolType, Value
from celpy.evaluation import Context, Evaluator, Result
from lark import Tree

_DECIDES = {"conditionalor": True, "conditionaland": False}


class _Evaluator(Evaluator):
    """Skips the right side of `||` and `&&` if the left side decides.

    celpy evaluates both sides. The result is the same, but in celpy a rule with many alternatives
    takes two to three times as long.
    """

    def visit_children(self, tree: Tree[Any]) -> list[Result]:
        if tree.data not in _DECIDES or len(tree.children) == 1:
            return super().visit_children(tree)
        left, right = tree.children
        value = self.visit(left)
        decides = isinstance(value, BoolType) and bool(value) is _DECIDES[tree.data]
        return [value, value if decides else self.visit(right)]


class _Runner(InterpretedRunner):
    def evaluate(self, context: Context) -> Value:
        return _Evaluator(ast=self.ast, activation=self.new_activation()).evaluate(context)


@cache
def environment() -> Environment:
    """Return the CEL environment that all programs share; create it on the first call.

    Creating it raises the recursion limit of Python.
    """
    return Environment(runner_class=_Runner)


def program(expression: str) -> Runner:
    """Return the compiled program of an expression."""
    return environment().program(environment().compile(expression))
