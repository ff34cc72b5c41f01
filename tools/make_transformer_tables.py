"""Make the loader's key tables for transformers from diffusers' own converters.

The converters run on symbols: a symbol records which rows of which tensors it stands for, and
raises an error for operations that a table cannot express. So a table is complete, and a converter
that calculates with numbers cannot have a table.
`tests/loader/convert/test_transformer_tables.py` makes the tables again.

    python -m tools.make_transformer_tables     writes …/convert/tables/data/transformers/*.json
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from sd_loader.convert.tables.transformers import TABLES
from tools.make_tables import ROOT, Shape
from tools.transformer_families import FAMILIES
from tools.transformer_family import Config, Family

LARGEST_CONSTANT = 16
FACTORS = (2, 3, 4, 5, 6, 8, 9, 12)
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
WHOLE = (Fraction(0), Fraction(1))

Piece = tuple[str, Fraction, Fraction]
"""A range of the rows of a tensor of the checkpoint, as fractions of all its rows."""


@dataclass(frozen=True)
class Symbol:
    """Ranges of rows of tensors of a checkpoint, one after another."""

    pieces: tuple[Piece, ...]

    height: int = 1
    """The number of rows. 1 if it is not known."""

    folded: int = 0
    """Into how many rows a vector is folded. 0 if it is not folded."""

    @classmethod
    def whole(cls, key: str, height: int = 1) -> Symbol:
        """Return all rows of a tensor."""
        return cls(((key, *WHOLE),), height)

    @property
    def shape(self) -> Shape:
        """The first dimension of the shape, which is all that converters read."""
        return (self.height,)

    def chunk(self, count: int, dim: int = 0) -> tuple[Symbol, ...]:
        """Cut the rows into equal parts."""
        return self.split([1] * count, dim)

    def split(self, sizes: list[int], dim: int = 0) -> tuple[Symbol, ...]:
        """Cut the rows into parts of these sizes."""
        if dim != 0 or len(self.pieces) != 1:
            raise NotImplementedError(f"{self} is not cut into rows of one tensor")
        key, start, stop = self.pieces[0]
        parts, position, total = [], 0, sum(sizes)
        for size in sizes:
            ends = (Fraction(edge, total) for edge in (position, position + size))
            low, high = (start + (stop - start) * end for end in ends)
            parts.append(Symbol(((key, low, high),), self.height * size // total))
            position += size
        return tuple(parts)

    def reshape(self, rows: int, columns: int) -> Symbol:
        """Fold a vector into rows."""
        if columns != -1:
            raise NotImplementedError(f"{self} reshaped to {rows, columns}")
        return replace(self, folded=rows)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: object,
        args: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's protocol
        """Apply torch.chunk, torch.split or torch.cat."""
        options = options or {}
        match function.__name__:
            case "chunk" | "split" as name:
                return getattr(args[0], name)(*args[1:], **options)
            case "cat" if options.get("dim", args[1] if len(args) > 1 else 0) == 0:
                pieces = tuple(piece for symbol in args[0] for piece in symbol.pieces)
                return cls(pieces, sum(symbol.height for symbol in args[0]))
            case name:
                raise NotImplementedError(f"the loader has no operation for {name}")

    @property
    def source(self) -> str:
        """The name of the one tensor that has all the rows."""
        (name,) = {name for name, _, _ in self.pieces}
        return name

    @property
    def op(self) -> str:
        """The operation in the language of the tables (`architecture.take`)."""
        ranges = [piece[1:] for piece in self.pieces]
        if ranges == [WHOLE]:
            return f"fold {self.folded}" if self.folded else ""
        half = Fraction(1, 2)
        if ranges == [(half, 1), (0, half)]:
            return "swap"
        ((start, stop),) = ranges
        parts = max(start.denominator, stop.denominator)
        return f"rows {int(start * parts)}-{int(stop * parts)} of {parts}"


class Asked(dict[str, Any]):
    """A checkpoint that has every tensor that a converter asks for."""

    def pop(self, key: str, *_default: object) -> Any:  # noqa: ANN401 - dict's method
        """Return all rows of the tensor."""
        return Symbol.whole(key)

    def __getitem__(self, key: str) -> Symbol:
        """Return all rows of the tensor."""
        return Symbol.whole(key)


@dataclass(frozen=True)
class Kind:
    """The tensors of a family that differ only in the number of their layer."""

    source: str
    target: str
    op: str
    shape: str


Place = tuple[int, int | None]
"""The number of a variant, and the number of one of its layers, or None outside of layers."""


def make_rows(family: Family) -> list[list[str]]:
    """Return the rows of a family's table, in the order of the last variant's state_dict."""
    places: dict[Kind, set[Place]] = defaultdict(set)
    for number, config in reversed([*enumerate(family.configs)]):
        for kind, layer in _kinds(family, config):
            places[kind].add((number, layer))
    order = {target: number for number, target in enumerate(reversed([k.target for k in places]))}
    stacks: dict[str, set[Place]] = defaultdict(set)
    for kind, found in places.items():
        stacks[_stack(kind.target)] |= found
    rows = []
    for kind in sorted(places, key=lambda kind: -order[kind.target]):
        found = places[kind]
        where = _where(kind, found, stacks[_stack(kind.target)], places)
        row = [kind.source, kind.target, kind.op, kind.shape]
        rows.append([*row, where] if where else row)
    return rows


def _kinds(family: Family, config: Config) -> Iterator[tuple[Kind, int | None]]:
    with torch.device("meta"):
        model = family.model.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    symbols = _converted(family, config, shapes)
    if missing := shapes.keys() - symbols.keys():
        raise ValueError(f"diffusers' converter does not make {min(missing)}")
    lists = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)
    }
    for target, shape in shapes.items():
        symbol = symbols[target]
        found = LAYER.search(target)
        sizes = " ".join(_expression(size, family) for size in shape)
        sizes = family.exceptions.get(target, sizes)
        op = family.ops.get(symbol.op, symbol.op)
        kind, layer = Kind(symbol.source, target, op, sizes), None
        if found and target[: found.start() - 1] in lists:
            source, count = re.subn(rf"(?<=\.){found[0]}(?=\.)", "{}", symbol.source, count=1)
            if count:
                layer = int(found[0])
                kind = replace(kind, source=source, target=LAYER.sub("{}", target, count=1))
        yield kind, layer


def _converted(family: Family, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Symbol]:
    if family.original is None:
        checkpoint: dict[str, Any] = Asked.fromkeys(family.seeds(config))
    else:
        heights: dict[str, int] = defaultdict(int)
        for name, shape in shapes.items():
            heights[family.original(name)] += shape[0]
        checkpoint = {name: Symbol.whole(name, height) for name, height in heights.items()}
    made = family.converter(checkpoint)
    return {name: symbol for name, symbol in made.items() if symbol is not None}


def _expression(size: int, family: Family) -> str:
    for name, value in family.sizes.items():
        if value == size:
            return name
    if size <= LARGEST_CONSTANT or size in family.constants:
        return str(size)
    found = [
        f"{factor}*{name}"
        for name, value in family.sizes.items()
        for factor in FACTORS
        if factor * value == size
    ]
    if len(found) != 1:
        raise ValueError(f"{size} needs one expression but has {found}")
    return found[0]


def _stack(target: str) -> str:
    return target.partition("{}")[0] if "{}" in target else ""


def _where(
    kind: Kind, found: set[Place], all_: set[Place], places: Mapping[Kind, set[Place]]
) -> str:
    """Return which layers have the tensors, in the language of the tables."""
    highest: dict[int, int] = {}
    for variant, layer in all_:
        if layer is not None:
            highest[variant] = max(layer, highest.get(variant, 0))
    last = set(highest.items())
    if found == all_:
        return ""
    if found == last:
        return "last"
    if found == all_ - last:
        return "but last"
    for word, wanted in (("with", found), ("without", all_ - found)):
        mark = _mark(wanted, kind, places)
        if mark is not None:
            return f"{word} {mark}"
    raise ValueError(f"no tensor shows where {kind.target} is")


def _mark(wanted: set[Place], kind: Kind, places: Mapping[Kind, set[Place]]) -> str | None:
    """Return the first tensor that a checkpoint has in exactly these places. None without one."""
    by_source: dict[str, set[Place]] = defaultdict(set)
    for other, found in places.items():
        if _stack(other.target) == _stack(kind.target):
            by_source[other.source] |= found
    return next((source for source, found in by_source.items() if found == wanted), None)


def render(family: Family, rows: Iterable[list[str]]) -> str:
    """Return the table as JSON with one row per line."""
    lines = ",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in rows)
    return (
        f'{{"class": {json.dumps(family.model.__name__)},\n"rows": [\n{lines}\n],\n'
        f'"unused": {json.dumps(list(family.unused))}}}\n'
    )


def made(name: str) -> str:
    """Return the content of a family's table."""
    return render(FAMILIES[name], make_rows(FAMILIES[name]))


def main() -> None:
    """Write all tables."""
    for name in FAMILIES:
        path = TABLES / f"{name}.json"
        path.write_text(made(name))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
