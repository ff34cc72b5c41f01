"""Checks a diffusers repo against lists of supported pipelines, components and classes.

diffusers imports the classes that `model_index.json` names. Therefore names that are not on these
lists are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.config_keys import allowed_config
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet

INDEX_NAME = "model_index.json"
CONFIG_NAME = "config.json"
MAX_JSON_BYTES = 4 << 20
"""Maximum size of a file that is parsed as JSON. The largest such file in the repos of Stable
Diffusion, CLIP's tokenizer.json, has 2 to 3 MB. Parsing 4 MB takes up to 200 MB of memory."""
_MAX_DEPTH = 32
"""Maximum nesting of a config. `json` can read deeper documents than it can write."""

SD_PIPELINES = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
    }
)
SDXL_PIPELINES = frozenset(
    {
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
    }
)
SCHEDULERS = frozenset(
    {
        "DDIMInverseScheduler",
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
_TEXT_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
_TOKENIZERS = frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})
_CLASSES: Mapping[str, tuple[str, frozenset[str]]] = {
    "scheduler": ("diffusers", SCHEDULERS),
    "text_encoder": ("transformers", _TEXT_ENCODERS),
    "text_encoder_2": ("transformers", _TEXT_ENCODERS),
    "tokenizer": ("transformers", _TOKENIZERS),
    "tokenizer_2": ("transformers", _TOKENIZERS),
    "unet": ("diffusers", frozenset({"UNet2DConditionModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKL"})),
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""The components that have weights, and the standard stem of their files."""
DROPPED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that are published as null. They are not part of the model; two of them block images.
"""
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
_REQUIRED = ("scheduler", "unet", "vae")
_FIRST = ["text_encoder"]
_SECOND = {"text_encoder": "text_encoder_2", "tokenizer": "tokenizer_2"}


@dataclass(frozen=True)
class Pipeline:
    """The content of a model_index.json that was checked."""

    class_name: str

    components: Mapping[str, str]
    """The class of each component that is loaded."""

    options: Mapping[str, Any]
    """The pipeline's own settings."""

    @property
    def is_sdxl(self) -> bool:
        """Whether the pipeline belongs to the SDXL family."""
        return self.class_name in SDXL_PIPELINES

    def only(self, names: Iterable[str]) -> Pipeline:
        """Return the pipeline with these components only."""
        wanted = list(names)
        lacking = [name for name in wanted if name not in self.components]
        if lacking:
            raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{INDEX_NAME} lacks {', '.join(lacking)}")
        return replace(self, components={name: self.components[name] for name in wanted})

    def without(self, names: Container[str]) -> Pipeline:
        """Return the pipeline without these components."""
        return self.only(name for name in self.components if name not in names)

    def canonical(self) -> Pipeline:
        """Return the pipeline with the component names that are published."""
        return replace(
            self,
            components={
                self._renamed.get(name, name): kind for name, kind in self.components.items()
            },
        )

    def origin(self, component: str) -> str:
        """Return the folder in this repo that has the given component of the published pipeline."""
        return next((old for old, new in self._renamed.items() if new == component), component)

    @property
    def _renamed(self) -> Mapping[str, str]:
        """Components that are renamed when they are published, with their new names.

        The SDXL refiner has only the second text encoder. If the encoder has the name of the first
        one, diffusers opens the pipeline, but fails later because text_encoder_2 is missing.
        """
        encoders = {name for name in self.components if name.startswith("text_encoder")}
        kind = self.components.get("text_encoder")
        is_second = self.is_sdxl and kind == "CLIPTextModelWithProjection"
        return _SECOND if is_second and encoders == {"text_encoder"} else {}


def parse_json(
    content: bytes, name: str, *, infinite: bool = False, rewritten: bool = False
) -> dict[str, Any]:
    """Parse a JSON object of the repo. Refuse one that asks to run code of the repo.

    infinite: accept -Infinity, as Python writes it. rewritten: only keys that a class documents are
    published, so the content of other keys does not matter.
    """

    def constant(text: str) -> float:
        return -math.inf if infinite and text == "-Infinity" else _finite(text)

    try:
        value = json.loads(content, parse_float=_finite, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise LoaderError(Reason.DAMAGED_FILE, f"{name} is not valid JSON") from error
    if _depth(value) > _MAX_DEPTH:
        raise LoaderError(Reason.DAMAGED_FILE, f"{name} is nested more than {_MAX_DEPTH} deep")
    if not isinstance(value, dict):
        raise LoaderError(Reason.DAMAGED_FILE, f"{name} is not a JSON object")
    if "auto_map" in value or (not rewritten and _has_key(value, "auto_map")):
        raise LoaderError(Reason.UNSAFE_MODEL, f"{name} asks for code of the repo (auto_map)")
    return value


def _has_key(value: object, key: str) -> bool:
    """Whether an object in a JSON value has a key."""
    if isinstance(value, list):
        return any(_has_key(item, key) for item in value)
    if isinstance(value, dict):
        return key in value or any(_has_key(item, key) for item in value.values())
    return False


def _finite(text: str) -> float:
    """Parse a number. Refuse Infinity and NaN, which are not valid JSON."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not valid JSON")
    return number


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [
        child
        for item in level
        if isinstance(item, dict | list)
        for child in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth


def parse_pipeline(content: bytes) -> Pipeline:
    """Check a model_index.json against the lists. Raise UnsafeModel or UnsupportedFormat."""
    index = parse_json(content, INDEX_NAME, rewritten=True)
    class_name = pipeline_class(index)
    components: dict[str, str] = {}
    options: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not isinstance(value, list):
            options[name] = _option(name, value)
            continue
        library, class_ = _pair(name, value)
        if library is not None and name not in DROPPED:
            components[name] = _known_class(name, library, class_)
    if class_name not in SD_PIPELINES | SDXL_PIPELINES:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"pipelines of class {json_snippet(class_name)} are not supported",
        )
    if class_name in SD_PIPELINES and any(name.endswith("_2") for name in components):
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{class_name} has one text encoder, not two")
    missing = [name for name in _REQUIRED if name not in components]
    # The SDXL refiner has one text encoder, which most repos call the second one.
    encoders = [name for name in components if name.startswith("text_encoder")]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders or _FIRST]
    missing += [name for name in (*(encoders or _FIRST), *tokenizers) if name not in components]
    if missing:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{INDEX_NAME} lacks {', '.join(missing)}")
    options = allowed_config(options, class_name, INDEX_NAME, reason=Reason.UNSUPPORTED_FORMAT)
    return Pipeline(class_name, components, options)


def pipeline_class(index: Mapping[str, Any]) -> str:
    """Return the class that a model_index.json names. Refuse custom pipelines and other values."""
    class_name = index.get("_class_name")
    if isinstance(class_name, list | dict):
        raise LoaderError(
            Reason.UNSAFE_MODEL, f"{INDEX_NAME} names a custom pipeline: {json_snippet(class_name)}"
        )
    if not isinstance(class_name, str) or not class_name:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: _class_name is {json_snippet(class_name)}; it should be the class of a"
            " pipeline, such as StableDiffusionPipeline",
        )
    return class_name


def refuse_replaced(names: Iterable[str]) -> None:
    """Refuse components of the spec that no pipeline of Stable Diffusion 1, 2 and XL takes."""
    others = sorted(set(names) - {"vae"})
    if others:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{', '.join(f'spec.components.{name}' for name in others)} is not for models of Stable"
            " Diffusion 1, 2 and XL, of which only the VAE can be replaced; remove it from the"
            " spec",
        )


def _pair(name: str, value: list[Any]) -> tuple[str | None, str]:
    if value == [None, None]:
        return None, ""
    if len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: {json_snippet(name)} is {json_snippet(value)}; it should name a"
            " library and a class",
        )
    library, class_ = value
    if library not in _LIBRARIES:
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            f"{INDEX_NAME}: {json_snippet(name)} comes from {json_snippet(library)}, which is"
            " code of the repo's own or of an unknown library",
        )
    return library, class_


def _known_class(name: str, library: str, class_: str) -> str:
    expected, classes = _CLASSES.get(name, ("", frozenset()))
    if library != expected or class_ not in classes:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: {json_snippet(name)} is a {json_snippet(class_)} of {library}, which"
            " is not supported",
        )
    return class_


def _option(name: str, value: Any) -> bool | int | float | None:  # noqa: ANN401 - untrusted JSON
    if not re.fullmatch(r"[a-z_]{1,64}", name) or not isinstance(value, bool | int | float | None):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{INDEX_NAME}: {json_snippet(name)} is {json_snippet(value)}; it should be a number,"
            " true, false or null, or a list of a library and a class if it is a component",
        )
    return value
