"""A component's table for files that hold the component alone, under names of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sd_loader.convert.tables.architecture import Component


def under(component: Component, prefix: str) -> Component:
    """The component whose names in the file begin otherwise."""

    def moved(name: str) -> str:
        return prefix + name.removeprefix(component.prefix)

    return replace(
        component,
        prefix=prefix,
        rows=tuple(replace(row, source=moved(row.source)) for row in component.rows),
        unused=frozenset(map(moved, component.unused)),
    )


def own_layout(component: Component, prefix: str = "") -> Component:
    """The component in diffusers' own layout, which needs no conversion."""
    rows = tuple(replace(row, source=prefix + row.target, op="") for row in component.rows)
    return replace(component, prefix=prefix, rows=rows, unused=frozenset())


def foreign(component: Component, names: Iterable[str]) -> list[str]:
    """The tensors of the file that are not the component's."""
    own = {row.source for row in component.rows} | component.unused
    return [name for name in names if name not in own]
