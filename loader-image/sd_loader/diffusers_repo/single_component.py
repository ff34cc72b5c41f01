"""Finds out which component a repo of one component has: a ControlNet or a VAE.

The classes of Stable Diffusion have key tables. Those of other families are in the generated
list of classes; this module states their families, because no config states them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.index import CONFIG_NAME, parse_json
from sd_loader.diffusers_repo.listed import Component
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet

SINGLE = {
    ModelType.CONTROLNET: ("controlnet", "ControlNetModel"),
    ModelType.VAE: ("vae", "AutoencoderKL"),
}
"""Model types that are a single component: its name in pipelines, and its class in those of Stable
Diffusion."""

OTHER_FAMILIES: Mapping[ModelType, Mapping[str, BaseModelName]] = {
    ModelType.CONTROLNET: {
        "FluxControlNetModel": BaseModelName.FLUX,
        "QwenImageControlNetModel": BaseModelName.QWEN_IMAGE,
        "SD3ControlNetModel": BaseModelName.SD3,
        "SanaControlNetModel": BaseModelName.SANA,
        "ZImageControlNetModel": BaseModelName.Z_IMAGE,
    },
    ModelType.VAE: {
        "AutoencoderDC": BaseModelName.SANA,
        "AutoencoderKLCogVideoX": BaseModelName.COGVIDEOX,
        "AutoencoderKLFlux2": BaseModelName.FLUX2,
        "AutoencoderKLHunyuanVideo": BaseModelName.HUNYUAN_VIDEO,
        "AutoencoderKLLTX2Video": BaseModelName.LTX2,
        "AutoencoderKLLTXVideo": BaseModelName.LTX,
        "AutoencoderKLQwenImage": BaseModelName.QWEN_IMAGE,
        "AutoencoderKLWan": BaseModelName.WAN,
    },
}
"""Classes of other families that diffusers opens alone, with their families."""


@dataclass(frozen=True)
class SingleComponent:
    """The config of a component's repo that was checked against the model type."""

    name: str
    """The component's folder in a pipeline."""

    class_name: str
    config: Mapping[str, Any]
    """The config of the repo, unchanged."""

    other_family: BaseModelName | None
    """The family. None for a class of Stable Diffusion."""

    @property
    def listed(self) -> Component:
        """The component, as the index of a pipeline would name it."""
        return Component("diffusers", self.class_name, Role.MODEL)


def parse_component(content: bytes, model_type: ModelType) -> SingleComponent:
    """Check the config of a component against the model type. Refuse a class of another type."""
    config = parse_json(content, CONFIG_NAME, rewritten=True)
    name, expected = SINGLE[model_type]
    class_name = config.get("_class_name")
    if isinstance(class_name, str):
        needed = _type_of(class_name)
        if needed is model_type:
            family = OTHER_FAMILIES[model_type].get(class_name)
            return SingleComponent(name, class_name, config, family)
        if needed is not None:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"the repo is a {class_name}: it needs spec.modelType: {needed.value}",
            )
    others = ", ".join(sorted(OTHER_FAMILIES[model_type]))
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"{CONFIG_NAME} names the class {json_snippet(class_name)}; spec.modelType"
        f" {model_type.value} is for {expected} and, of other families, for {others}",
    )


def component_type(content: bytes) -> ModelType | None:
    """Return the model type that loads the component with this config. None if no type does."""
    try:
        class_name = str(parse_json(content, CONFIG_NAME, rewritten=True).get("_class_name"))
    except LoaderError:
        return None  # It is not a config of diffusers.
    return _type_of(class_name)


def _type_of(class_name: str) -> ModelType | None:
    for model_type, (_component, its_class) in SINGLE.items():
        if class_name == its_class or class_name in OTHER_FAMILIES[model_type]:
            return model_type
    return None
