"""Checks the model_index.json of a pipeline other than Stable Diffusion's against the class list.

diffusers imports the classes that `model_index.json` names. Therefore a class that is not on the
list is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.diffusers_repo import classes
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.index import (
    INDEX_NAME,
    SD_PIPELINES,
    SDXL_PIPELINES,
    Pipeline,
    parse_json,
    parse_pipeline,
    pipeline_class,
)
from sd_loader.diffusers_repo.listed_config import listed_config
from sd_loader.errors import LoaderError, prefixing
from sd_loader.snippet import json_snippet

_FAMILIES = (
    # Prefix of the classes, name in messages, status.artifact.baseModel
    ("AuraFlow", "AuraFlow", BaseModelName.AURAFLOW),
    ("Chroma", "Chroma", BaseModelName.CHROMA),
    ("CogVideoX", "CogVideoX", BaseModelName.COGVIDEOX),
    ("CogView4", "CogView 4", BaseModelName.COGVIEW4),
    ("ErnieImage", "ERNIE-Image", BaseModelName.ERNIE_IMAGE),
    ("Flux2", "FLUX.2", BaseModelName.FLUX2),
    ("Flux3", "FLUX.3", BaseModelName.FLUX3),
    ("Flux", "FLUX", BaseModelName.FLUX),
    ("HiDreamImage", "HiDream", BaseModelName.HIDREAM),
    ("HunyuanVideo", "HunyuanVideo", BaseModelName.HUNYUAN_VIDEO),
    ("Ideogram4", "Ideogram 4", BaseModelName.IDEOGRAM4),
    ("Krea2", "Krea 2", BaseModelName.KREA2),
    ("LTX2", "LTX-2", BaseModelName.LTX2),
    ("LTX", "LTX", BaseModelName.LTX),
    ("Lumina2", "Lumina 2", BaseModelName.LUMINA2),
    ("Mochi", "Mochi", BaseModelName.MOCHI),
    ("PixArt", "PixArt", BaseModelName.PIXART),
    ("QwenImage", "Qwen-Image", BaseModelName.QWEN_IMAGE),
    ("Sana", "Sana", BaseModelName.SANA),
    ("StableDiffusion3", "Stable Diffusion 3", BaseModelName.SD3),
    ("Wan", "Wan", BaseModelName.WAN),
    ("ZImage", "Z-Image", BaseModelName.Z_IMAGE),
)
_SUFFIX = "Pipeline"
_CLASS = re.compile(r"[A-Za-z]\w{0,99}", re.ASCII)
_RUNTIMES = {
    "Flax": "Flax",
    "OV": "OpenVINO",
    "ORT": "ONNX Runtime",
    "Onnx": "ONNX Runtime",
    "Neuron": "AWS Neuron",
}
"""Programs whose repos look like those of diffusers, by the beginning of their pipelines' names."""
_OTHER_RUNTIME = re.compile(rf"({'|'.join(_RUNTIMES)})[A-Z]\w{{0,99}}", re.ASCII)
_WEIGHTY = (Role.MODEL, Role.ENCODER)
"""The roles of components that have weights."""
_DROPPED = (
    ["cosmos", "CosmosSafetyChecker"],
    ["stable_diffusion", "StableDiffusionSafetyChecker"],
)
"""Components that are published as null, as in pipelines of Stable Diffusion: they block images."""


@dataclass(frozen=True)
class Component:
    """A component of a pipeline, as model_index.json names it."""

    library: str
    """diffusers, transformers, or the folder of a pipeline of diffusers."""

    class_name: str
    role: Role


@dataclass(frozen=True)
class ListedPipeline:
    """A model_index.json that was checked against the list of classes."""

    class_name: str
    components: Mapping[str, Component]
    """The components that are loaded, by name."""

    nulls: tuple[str, ...]
    """Components that are published as null: they are null in the repo, or are safety checkers."""

    options: Mapping[str, Any]
    """The pipeline's own settings."""

    version: str | None
    """The version of diffusers that wrote the index."""

    replaced: frozenset[str] = frozenset()
    """Components whose weights come from elsewhere. Only their configs are needed."""

    @property
    def title(self) -> str:
        """The pipeline, for messages: the family, then the class."""
        return title(self.class_name)

    @property
    def base_model(self) -> BaseModelName | None:
        """The family, as status.artifact.baseModel states it. None if it has no name there."""
        family = _family(self.class_name)
        return None if family is None else family[2]

    def only(self, names: Iterable[str]) -> NoReturn:
        """Refuse to take single components: only those of Stable Diffusion fit other models."""
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the repo is {self.title}, which cannot give {', '.join(names)} to another model",
        )

    def without(self, names: Iterable[str]) -> ListedPipeline:
        """Return the pipeline without these components' weights. Refuse unknown components."""
        for name in sorted(names):
            component = self.components.get(name)
            if component is None or component.role not in _WEIGHTY:
                given = [name for name, it in self.components.items() if it.role in _WEIGHTY]
                raise LoaderError(
                    Reason.INVALID_SPEC,
                    f"the repo is {self.title} without the component {name}; its components with"
                    f" weights are {', '.join(sorted(given))}",
                )
        return replace(self, replaced=frozenset(names))


AnyPipeline = Pipeline | ListedPipeline


def read_pipeline(content: bytes) -> AnyPipeline:
    """Check a model_index.json of any pipeline. Raise UnsafeModel or UnsupportedFormat."""
    index = parse_json(content, INDEX_NAME)
    class_name = pipeline_class(index)
    if class_name in SD_PIPELINES | SDXL_PIPELINES:
        return parse_pipeline(content)
    parameters = classes.parameters(class_name)
    if parameters is None or _CLASS.fullmatch(class_name) is None:
        _refuse_other_runtime(class_name)
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME} names the pipeline {json_snippet(class_name)}, which is newer than"
            f" this loader (it knows {classes.version('diffusers')}) or is code of the repo's own",
        )
    with prefixing(title(class_name)):
        return _listed(class_name, parameters, index)


def _refuse_other_runtime(class_name: str) -> None:
    """Refuse a pipeline of another program, such as OpenVINO. The message names the program."""
    match = _OTHER_RUNTIME.fullmatch(class_name)
    if match is not None:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME} names the pipeline {json_snippet(class_name)}: the repo holds the"
            f" model for {_RUNTIMES[match[1]]}; use the repo of the same model for diffusers and"
            " PyTorch",
        )


def title(class_name: str) -> str:
    """A pipeline, for messages: `a FLUX pipeline (FluxPipeline)`."""
    family = _family(class_name)
    name = class_name.removesuffix(_SUFFIX) if family is None else family[1]
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name} pipeline ({class_name})"


def _family(class_name: str) -> tuple[str, str, BaseModelName] | None:
    return next((family for family in _FAMILIES if class_name.startswith(family[0])), None)


def _listed(
    class_name: str, parameters: tuple[str, ...], index: Mapping[str, Any]
) -> ListedPipeline:
    components: dict[str, Component] = {}
    nulls: list[str] = []
    options: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not _names_a_class(value):
            options[name] = value
        elif value == [None, None] or value in _DROPPED:
            nulls += [name] * (name in parameters)
        else:
            component = _component(name, *value)
            if name not in parameters:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"{INDEX_NAME}: the component {json_snippet(name)} is newer than this loader"
                    f" (it knows {classes.version('diffusers')})",
                )
            components[name] = component
    missing = [name for name in classes.required(class_name) if name not in index]
    if missing:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME} lacks {', '.join(missing)}, without which diffusers does not open the"
            " pipeline: use a complete repo",
        )
    version = index.get("_diffusers_version")
    return ListedPipeline(
        class_name,
        components,
        tuple(nulls),
        listed_config(options, class_name, INDEX_NAME),
        version if isinstance(version, str) and re.fullmatch(r"[\w.+]{1,32}", version) else None,
    )


def _names_a_class(value: object) -> bool:
    """Whether an entry names a library and a class, or neither. Other lists are options."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and (value == [None, None] or any(isinstance(part, str) for part in value))
    )


def _component(name: str, library: object, class_name: object) -> Component:
    if not isinstance(library, str) or not isinstance(class_name, str):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: {json_snippet(name)} is {json_snippet([library, class_name])}; it"
            " should name a library and a class",
        )
    if not classes.is_library(library):
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            f"{INDEX_NAME}: {json_snippet(name)} comes from {json_snippet(library)}, which is"
            " code of the repo's own or of an unknown library",
        )
    role = classes.role(library, class_name)
    if role is None:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: {json_snippet(name)} is a {json_snippet(class_name)} of {library},"
            f" which is newer than this loader (it knows {classes.version(library)})",
        )
    return Component(library, class_name, role)
