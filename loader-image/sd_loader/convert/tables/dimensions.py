"""Dimensions of a model by name: learned from the shapes of tensors, filled into configs.

An expression is a sum of terms, each a number, a name, or a number times a name:
`4*unet_0`, `unet_2+unet_1`, `text_encoder_2_projection+1536`. In configs a sum may be divided:
`unet_0//64`. The result is rounded down, and is at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

Dimensions = dict[str, int]


def evaluate(expression: str, dimensions: Mapping[str, int]) -> int:
    """The value of an expression. Raises KeyError for a name without a value."""
    sum_, _, divisor = expression.partition("//")
    value = sum(factor * (dimensions[name] if name else 1) for factor, name in _terms(sum_))
    return max(1, value // int(divisor)) if divisor else value


def matches(pattern: str, shape: tuple[int, ...], dimensions: Dimensions) -> bool:
    """Whether a shape fits the pattern. Adds the values of unknown names to `dimensions`."""
    expected = pattern.split()
    return len(expected) == len(shape) and all(
        _agrees(expression, size, dimensions)
        for expression, size in zip(expected, shape, strict=True)
    )


def describe(pattern: str, dimensions: Mapping[str, int]) -> str:
    """Format the shape that a pattern requires. Unknown dimensions appear by name."""
    return ", ".join(
        str(evaluate(expression, dimensions)) if is_known(expression, dimensions) else expression
        for expression in pattern.split()
    )


def is_known(expression: str, dimensions: Mapping[str, int]) -> bool:
    """Whether every name in an expression has a value."""
    return all(name in dimensions for _, name in _terms(expression) if name)


def with_values(pattern: str, values: Mapping[str, str]) -> str:
    """Replace names in a pattern by expressions. values: the expressions, by name."""
    return " ".join(
        "+".join(
            f"{factor * inner}*{word}" if word else str(factor * inner)
            for factor, name in _terms(expression)
            for inner, word in _terms(values.get(name, name) or "1")
        )
        for expression in pattern.split()
    )


def _agrees(expression: str, size: int, dimensions: Dimensions) -> bool:
    terms = _terms(expression)
    if len(terms) == 1 and terms[0][1] and terms[0][1] not in dimensions:
        factor, name = terms[0]
        if size == 0 or size % factor:
            return False
        dimensions[name] = size // factor
        return True
    # A sum with an unknown term fits no size.
    return is_known(expression, dimensions) and evaluate(expression, dimensions) == size


@cache
def _terms(sum_: str) -> tuple[tuple[int, str], ...]:
    """Factor and name of each term. The name of a plain number is empty."""
    factors: dict[str, int] = {}
    for term in sum_.split("+"):
        factor, times, name = term.rpartition("*")
        if not times:
            factor, name = (term, "") if term.isdigit() else ("1", term)
        factors[name] = factors.get(name, 0) + int(factor)
    return tuple((factor, name) for name, factor in factors.items())
