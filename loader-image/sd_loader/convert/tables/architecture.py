"""What is known of an architecture: its key table and the folder it makes, from data files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sd_loader.convert.tables.dimensions import evaluate
from sd_loader.convert.write.files import DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS
from sd_loader.convert.write.views import rows, strides_of, transposed, view
from sd_loader.tensors import Tensor

DATA = Path(__file__).parent / "data"
ARCHITECTURES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
UNET_CONFIG = "unet/config.json"

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Row:
    """Where one tensor of a component comes from.

    source: key in the checkpoint. op: how the tensor is taken from it. shape: a pattern of
    `dimensions`, for the target.
    """

    source: str
    target: str
    op: str
    shape: str

    @property
    def layer(self) -> int | None:
        """Number of the text encoder's layer that it belongs to."""
        found = _LAYER.search(self.target)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Component:
    """A model within the pipeline.

    rows: in the order of the model's state_dict. unused: keys of the checkpoint that have no place
    in it.
    """

    name: str
    prefix: str
    rows: tuple[Row, ...]
    unused: frozenset[str]

    @property
    def stem(self) -> str:
        """The name of its weights file, without what follows."""
        is_text = self.name.startswith("text_encoder")
        return TRANSFORMERS_WEIGHTS if is_text else DIFFUSERS_WEIGHTS


@dataclass(frozen=True)
class Variant:
    """What differs in a model of the family: small files, and the UNet where its blocks do.

    patches: by path, values that replace a template's (null: that take one away).
    """

    patches: dict[str, dict[str, Any]]
    unet: Component | None


@dataclass(frozen=True)
class Architecture:
    """A family of models that have the same structure, but for its variants."""

    name: str
    components: tuple[Component, ...]
    templates: dict[str, Any]
    variants: dict[str, Variant]

    @property
    def unet(self) -> Component:
        """The component that the others serve."""
        return self.component("unet")

    def component(self, name: str) -> Component:
        """One of the components."""
        return next(part for part in self.components if part.name == name)

    def varied(self, *names: str) -> Architecture:
        """The architecture as these of its variants have it."""
        varied = self
        for name in names:
            varied = _vary(varied, self.variants[name])
        return varied

    def unets(self) -> Iterator[Architecture]:
        """The architecture with each UNet that it is known with, the usual one first."""
        yield self
        yield from (self.varied(name) for name, it in self.variants.items() if it.unet is not None)


@cache
def load(name: str) -> Architecture:
    """Read an architecture's data files."""
    folder = DATA / name
    return Architecture(
        name,
        _components(folder),
        _templates(folder / "folder"),
        {path.name: _variant(path) for path in sorted((folder / "variants").glob("*"))},
    )


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


def take(tensor: Tensor, op: str) -> Tensor | None:
    """The part of a source tensor that a row names; None where its shape does not allow it.

    Ops: "" the whole; `third 0` to `third 2`, query, key and value stored in one; `transpose`;
    `matrix`, a convolution of one pixel as the matrix that it is.
    """
    shape = tensor.shape
    match op.split():
        case []:
            return tensor
        case ["third", number] if shape and shape[0] % 3 == 0:
            third = shape[0] // 3
            return rows(tensor, int(number) * third, (int(number) + 1) * third)
        case ["transpose"] if len(shape) == 2:
            return transposed(tensor)
        case ["matrix"] if len(shape) >= 2 and all(size == 1 for size in shape[2:]):
            return view(tensor, shape[:2], strides_of(tensor)[:2])
        case _:
            return None


def fill_in(template: Any, dimensions: dict[str, int]) -> Any:  # noqa: ANN401 - any JSON value
    """A config with its `$expressions` evaluated."""
    if isinstance(template, dict):
        return {key: fill_in(value, dimensions) for key, value in template.items()}
    if isinstance(template, list):
        return [fill_in(value, dimensions) for value in template]
    if isinstance(template, str) and template.startswith("$"):
        return evaluate(template[1:], dimensions)
    return template
