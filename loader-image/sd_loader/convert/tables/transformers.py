"""The key tables of transformers, in which a row stands for all layers that have its tensor."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from sd_loader.convert.tables.architecture import DATA, Component, Row

TRANSFORMER = "transformer"
"""Name of the component in a pipeline."""

TABLES = DATA / "transformers"
_NUMBER = "{}"
"""The placeholder for a layer's number in the names of a table."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of a table. It stands for one tensor, or for one tensor in each of several layers."""

    row: Row
    """The row. Names of tensors in layers have `{}` instead of the layer's number."""

    where: str
    """The layers with the tensor: "" for all, `last`, `but last`, `with NAME` or `without NAME`.

    NAME stands for a group of tensors that only some layers have: it is the name in the file of the
    group's first tensor.
    """

    @property
    def stack(self) -> str:
        """The beginning of the layers' names in the file. Empty for a tensor outside of layers."""
        before, number, _ = self.row.source.partition(_NUMBER)
        return before if number else ""


@dataclass(frozen=True)
class TransformerTable:
    """The key table of a family's transformer."""

    class_name: str
    """diffusers' class."""

    kinds: tuple[Kind, ...]
    unused: frozenset[str] = field(default=frozenset())
    """Names of tensors that a file may have although the model does not use them."""

    def component(self, names: Iterable[str], prefix: str = "") -> Component:
        """The transformer with the layers that a file has. prefix: of its tensors' names."""
        own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return Component(
            TRANSFORMER,
            prefix,
            tuple(_Rows(self.kinds, own, prefix)),
            frozenset(prefix + name for name in self.unused),
        )

    def in_diffusers_layout(self) -> TransformerTable:
        """The table of a file that has diffusers' own names and needs no conversion."""
        targets: dict[str, str] = {}
        for kind in self.kinds:
            targets.setdefault(kind.row.source, kind.row.target)

        def where(text: str) -> str:
            word, _, name = text.partition(" ")
            return f"{word} {targets[name]}" if word in ("with", "without") else text

        return replace(
            self,
            kinds=tuple(
                Kind(Row(kind.row.target, kind.row.target, "", kind.row.shape), where(kind.where))
                for kind in self.kinds
            ),
            unused=frozenset(),
        )

    def layers(self, names: Iterable[str], prefix: str = "") -> Mapping[str, int]:
        """How many layers a file has, by the beginning of the layers' names (`joint_blocks`)."""
        own = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        counts = layer_counts(self.kinds, own)
        return {stack.removesuffix("."): count for stack, count in counts.items()}


@cache
def load_transformer(family: str) -> TransformerTable:
    """Read a family's table."""
    table = json.loads((TABLES / f"{family}.json").read_text())
    return TransformerTable(
        table["class"],
        tuple(Kind(Row(*row[:4]), row[4] if len(row) > 4 else "") for row in table["rows"]),
        frozenset(table["unused"]),
    )


def layer_counts(kinds: Iterable[Kind], names: Iterable[str]) -> Mapping[str, int]:
    """How many layers a file has in each stack, up to the first gap in their numbers."""
    stacks = {kind.stack for kind in kinds} - {""}
    numbers: dict[str, set[str]] = {stack: set() for stack in stacks}
    for name in names:
        for stack in stacks:
            if name.startswith(stack):
                numbers[stack].add(name.removeprefix(stack).partition(".")[0])
    return {stack: _first_missing(found) for stack, found in numbers.items()}


def _first_missing(numbers: set[str]) -> int:
    count = 0
    while str(count) in numbers:
        count += 1
    return count


class _Rows:
    """The rows for the layers of a file, in the order of the model's state_dict."""

    def __init__(self, kinds: Sequence[Kind], names: set[str], prefix: str) -> None:
        self._kinds = kinds
        self._names = names
        self._prefix = prefix
        self._counts = layer_counts(kinds, names)
        self._groups = _groups(kinds)

    def __iter__(self) -> Iterator[Row]:
        done: set[str] = set()
        for kind in self._kinds:
            if not kind.stack:
                yield from self._row(kind, None)
            elif kind.stack not in done:
                done.add(kind.stack)
                together = [other for other in self._kinds if other.stack == kind.stack]
                for layer in range(self._counts[kind.stack]):
                    for other in together:
                        yield from self._row(other, layer)

    def _row(self, kind: Kind, layer: int | None) -> Iterator[Row]:
        if self._is_in(kind, layer):
            row = kind.row
            yield Row(
                self._prefix + _numbered(row.source, layer),
                _numbered(row.target, layer),
                row.op,
                row.shape,
            )

    def _is_in(self, kind: Kind, layer: int | None) -> bool:
        """Whether a layer has the tensor. layer: its number. None outside of layers."""
        match kind.where.split():
            case []:
                return True
            case ["last"]:
                return layer == self._counts[kind.stack] - 1
            case ["but", "last"]:
                return layer != self._counts[kind.stack] - 1
            case ["with" | "without" as word, name]:
                # A layer with any tensor of a group needs all of them. `bind` reports missing ones.
                has_group = any(
                    _numbered(source, layer) in self._names for source in self._groups[name]
                )
                return has_group is (word == "with")
            case _:
                raise ValueError(kind.where)


def _groups(kinds: Iterable[Kind]) -> Mapping[str, set[str]]:
    """For each group, by its first name: the tensors that only layers with the group have."""
    groups: dict[str, set[str]] = defaultdict(set)
    elsewhere = {kind.row.source for kind in kinds if not kind.where.startswith("with ")}
    for kind in kinds:
        if kind.where.startswith("with ") and kind.row.source not in elsewhere:
            groups[kind.where.removeprefix("with ")].add(kind.row.source)
    return groups


def _numbered(name: str, layer: int | None) -> str:
    return name if layer is None else name.replace(_NUMBER, str(layer), 1)
