"""The generated list of the classes that pipelines and their components may have.

`tools/make_classes.py` makes it from diffusers and transformers. A class that is not on it is
refused, because both libraries import the classes that a repo names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("classes.json")


class Role(StrEnum):
    """What a component is, which decides what its folder holds."""

    MODEL = "model"
    """A model of diffusers: a config and weights."""

    ENCODER = "encoder"
    """A model of transformers: a config and weights, under other file names."""

    PROCESSOR = "processor"
    """A tokenizer, or a processor of images or sound: several small files."""

    SCHEDULER = "scheduler"
    """A scheduler of diffusers: a config without weights."""

    GUIDER = "guider"
    """A guider of diffusers: a config without weights."""


@cache
def known() -> Mapping[str, Any]:
    """The whole list."""
    content: Mapping[str, Any] = json.loads(PATH.read_text())
    return content


def version(library: str) -> str:
    """The version of a library that the list was made from, for messages."""
    name = library if library in known()["versions"] else "diffusers"
    return f"{name} {known()['versions'][name]}"


def role(library: str, class_name: str) -> Role | None:
    """The role of a class. None if the class is not on the list."""
    found = known()["components"].get(library, {}).get(class_name)
    return None if found is None else Role(found)


def is_library(name: str) -> bool:
    """Whether components may come from `name`: a library, or a pipeline's folder in diffusers."""
    return name in known()["components"]


def parameters(pipeline_class: str) -> tuple[str, ...] | None:
    """The names of a pipeline's components and options. None if the pipeline is not on the list."""
    found = known()["pipelines"].get(pipeline_class)
    return None if found is None else tuple(found)


def required(pipeline_class: str) -> tuple[str, ...]:
    """The parameters of a listed pipeline that its index must have, if only as null."""
    optional = known()["optional"].get(pipeline_class, ())
    return tuple(name for name in known()["pipelines"][pipeline_class] if name not in optional)


def config_class(class_name: str) -> str:
    """The class that documents a class's config. Models of transformers have a separate one."""
    found: str = known()["configs"].get(class_name, class_name)
    return found


def entry(class_name: str) -> Mapping[str, Any]:
    """The keys of a class's config, with their JSON types, and what else the list says of it."""
    found: Mapping[str, Any] = known()["keys"].get(class_name, {"keys": {}})
    return found


def kept_in_fp32(class_name: str, precision: str) -> frozenset[str]:
    """The names of modules that stay in fp32 when the weights are narrowed to a precision."""
    return frozenset(known()["kept_in_fp32"].get(class_name, {}).get(precision, ()))
