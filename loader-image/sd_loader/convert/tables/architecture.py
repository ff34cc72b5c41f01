"""Architectures of pipelines, read from data files: key tables and templates of configs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sd_loader.convert.tables.dimensions import evaluate
from sd_loader.tensors import Joined, Source, Tensor, rows, strides_of, transposed, view

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"

DATA = Path(__file__).parent / "data"
ARCHITECTURES = ("sd-1", "sd-2", "sdxl", "sdxl-refiner")
UNET_CONFIG = "unet/config.json"

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a key table: a tensor of a component, and its source in the file."""

    source: str
    """Name in the file."""

    target: str
    """Name in the published folder."""

    op: str
    """How the target is taken from the source (see `take`)."""

    shape: str
    """Pattern of the target's shape, in the language of `dimensions`."""

    @property
    def layer(self) -> int | None:
        """Number of the text encoder's layer that has the tensor. None for any other tensor."""
        found = _LAYER.search(self.target)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Component:
    """A model within the pipeline."""

    name: str
    """Name of its folder in the pipeline."""

    prefix: str
    """Prefix of its tensors' names in the file."""

    rows: tuple[Row, ...]
    """Its tensors, in the order of the model's state_dict."""

    unused: frozenset[str]
    """Names of tensors that a file may have although the model does not use them."""

    @property
    def stem(self) -> str:
        """Name of its weights file, without the suffix."""
        is_text = self.name.startswith("text_encoder")
        return TRANSFORMERS_WEIGHTS if is_text else DIFFUSERS_WEIGHTS

    def under(self, prefix: str) -> Component:
        """The same component in a file where its names begin with another prefix."""

        def moved(name: str) -> str:
            return prefix + name.removeprefix(self.prefix)

        return replace(
            self,
            prefix=prefix,
            rows=tuple(replace(row, source=moved(row.source)) for row in self.rows),
            unused=frozenset(map(moved, self.unused)),
        )

    def in_diffusers_layout(self, prefix: str = "") -> Component:
        """The same component in a file that has diffusers' own names and needs no conversion."""
        rows = tuple(replace(row, source=prefix + row.target, op="") for row in self.rows)
        return replace(self, prefix=prefix, rows=rows, unused=frozenset())


@dataclass(frozen=True)
class Variant:
    """How some models of a family differ from the usual ones."""

    patches: dict[str, dict[str, Any]]
    """By the path of a template: values that replace its own. A null removes the key."""

    unet: Component | None
    """The UNet, if its blocks differ from those of the usual one."""


@dataclass(frozen=True)
class Architecture:
    """A family of models with the same structure."""

    name: str
    components: tuple[Component, ...]
    templates: dict[str, Any]
    """JSON files of the published folder by their paths. `fill_in` evaluates `$expressions`."""

    variants: dict[str, Variant]
    """Models of the family that differ in part, by name."""

    @property
    def unet(self) -> Component:
        """The UNet, the main component."""
        return self.component("unet")

    def component(self, name: str) -> Component:
        """The component of this name."""
        return next(component for component in self.components if component.name == name)

    def varied(self, *names: str) -> Architecture:
        """The architecture with the changes of the named variants."""
        varied = self
        for name in names:
            varied = _vary(varied, self.variants[name])
        return varied

    def unets(self) -> Iterator[Architecture]:
        """The architecture with each of its UNets, the usual one first."""
        yield self
        yield from (
            self.varied(name) for name, variant in self.variants.items() if variant.unet is not None
        )


@cache
def load_architecture(name: str) -> Architecture:
    """Read an architecture's data files."""
    folder = DATA / name
    return Architecture(
        name,
        _components(folder),
        load_templates(name),
        {path.name: _variant(path) for path in sorted((folder / "variants").glob("*"))},
    )


@cache
def load_templates(name: str) -> dict[str, Any]:
    """Read the JSON files of a family's published folder."""
    return _templates(DATA / name / "folder")


def _components(folder: Path) -> tuple[Component, ...]:
    table = json.loads((folder / "table.json").read_text())
    return tuple(
        Component(
            component,
            content["prefix"],
            tuple(Row(content["prefix"] + row[0], *row[1:]) for row in content["rows"]),
            frozenset(content["prefix"] + key for key in content["unused"]),
        )
        for component, content in table.items()
    )


def _templates(folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): json.loads(path.read_text())
        for path in sorted(folder.rglob("*.json"))
    }


def _variant(folder: Path) -> Variant:
    patches = _templates(folder)
    has_unet = patches.pop("table.json", None) is not None
    return Variant(patches, _components(folder)[0] if has_unet else None)


def _vary(base: Architecture, variant: Variant) -> Architecture:
    templates = dict(base.templates)
    for path, patch in variant.patches.items():
        merged = {**templates[path], **patch}
        templates[path] = {key: merged[key] for key in merged if patch.get(key, "") is not None}
    unet = variant.unet or base.unet
    components = tuple(unet if part.name == unet.name else part for part in base.components)
    return replace(base, components=components, templates=templates)


def take(tensor: Tensor, op: str, columns: int | None = None) -> Source | None:
    """Apply a row's op to a source tensor. Return None if the tensor's shape does not allow it.

    Raise ValueError if the op does not exist.

    Ops: "" takes the whole tensor; `rows 0-1 of 3` takes the first third of the rows, and `third 0`
    means the same; `queries` takes as many rows as there are columns, `keys` the first half of the
    other rows, and `values` the second; `swap` exchanges the halves of the rows; `fold 6` makes six
    rows of a vector; `transpose` transposes; `matrix` takes a 1x1 convolution as a matrix.

    columns: the number of columns of the layer. It is needed for the up matrix of a LoRA, which has
    only the rows of the layer.
    """
    shape = tensor.shape
    match op.split():
        case []:
            return tensor
        case ["third", number]:
            return _rows(tensor, int(number), int(number) + 1, 3)
        case ["rows", ends, "of", parts]:
            start, _, stop = ends.partition("-")
            return _rows(tensor, int(start), int(stop), int(parts))
        case ["queries" | "keys" | "values" as part]:
            if len(shape) != 2:
                return None
            return _attention_rows(tensor, part, shape[1] if columns is None else columns)
        case ["swap"]:
            first, second = _rows(tensor, 0, 1, 2), _rows(tensor, 1, 2, 2)
            return None if first is None or second is None else Joined((second, first))
        case ["fold", count]:
            if len(shape) != 1 or shape[0] % int(count):
                return None
            columns = shape[0] // int(count)
            stride = strides_of(tensor)[0]
            return view(tensor, (int(count), columns), (columns * stride, stride))
        case ["transpose"]:
            return transposed(tensor) if len(shape) == 2 else None
        case ["matrix"]:
            if len(shape) < 2 or any(size != 1 for size in shape[2:]):
                return None
            return view(tensor, shape[:2], strides_of(tensor)[:2])
        case _:
            raise ValueError(f"no op of a key table: {op!r}")


def _rows(tensor: Tensor, start: int, stop: int, parts: int) -> Tensor | None:
    """Cut the rows into equal parts, and return the parts from `start` up to `stop`.

    None if the rows cannot be cut into equal parts.
    """
    if not tensor.shape or tensor.shape[0] % parts:
        return None
    height = tensor.shape[0] // parts
    return rows(tensor, start * height, stop * height)


def _attention_rows(tensor: Tensor, part: str, queries: int) -> Tensor | None:
    """The rows of the queries, keys or values of an attention. None if the shape does not fit.

    queries: the number of rows of the queries. Keys and values may have fewer rows.
    """
    height = tensor.shape[0]
    keys, odd = divmod(height - queries, 2)
    if keys <= 0 or odd:
        return None
    start, stop = {
        "queries": (0, queries),
        "keys": (queries, queries + keys),
        "values": (queries + keys, height),
    }[part]
    return rows(tensor, start, stop)


def fill_in(template: Any, dimensions: dict[str, int]) -> Any:  # noqa: ANN401 - any JSON value
    """The config with its `$expressions` evaluated."""
    if isinstance(template, dict):
        return {key: fill_in(value, dimensions) for key, value in template.items()}
    if isinstance(template, list):
        return [fill_in(value, dimensions) for value in template]
    if isinstance(template, str) and template.startswith("$"):
        return evaluate(template[1:], dimensions)
    return template
