"""The options of a conversion, and the check that they are possible."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from sd_api.choices import PIPELINES, BaseModelName, ModelType, PredictionType, Revision, Weights
from sd_api.reasons import Reason
from sd_api.spec import LoraOptions, Verify
from sd_api.taxonomy import LOADED, listed
from sd_loader.errors import LoaderError
from sd_loader.torchstack import has_torch

NO_EMA = (
    "spec.weights: ema is for checkpoints (modelType custom_ckpt): a diffusers folder or component"
    " has one set of weights"
)

_CHECKPOINTS = frozenset({ModelType.API_TRAINED, ModelType.CUSTOM_CKPT})
"""Model types whose source may be a whole checkpoint."""


@dataclass(frozen=True)
class Conversion:
    """The options of a conversion."""

    model_type: ModelType
    """The kind of model, from the request or else from the source. It decides how the model is
    converted."""

    model_id: str
    """The model's id. It names the token of an embedding whose file has no usable name."""

    precision: Revision | None = None
    """Floating-point type of the published weights (spec.revision). None keeps the source's."""

    weights: Weights = Weights.STANDARD
    """Which weights to publish if a checkpoint has two sets."""

    base_model: BaseModelName | None = None
    """The architecture family that the user names. None if the file alone decides."""

    prediction_type: PredictionType | None = None
    """What the UNet predicts. None if the original config, the file or the usual value decides."""

    upcast_attention: bool | None = None
    """Whether the UNet computes attention in single precision. None keeps the model's setting."""

    safetensors_only: bool = False
    """Refuse pickled weights (spec.fromSafetensors)."""

    original_config: bool = False
    """Whether spec.originalConfig names the YAML config that the checkpoint was trained with."""

    replaced: frozenset[str] = frozenset()
    """Components that replace the model's own (spec.components, spec.vae). The conversion fails if
    one of them is not downloaded."""

    has_skeleton: bool = False
    """True if the components that the file lacks come from a repo (spec.components.from)."""

    lora: LoraOptions = field(default_factory=LoraOptions)
    """How a LoRA is published. Other model types must not set it."""

    verify: Verify = field(default_factory=Verify)
    """How thoroughly the converted folder is checked before it is published."""

    @property
    def is_pipeline(self) -> bool:
        """Whether the model is a whole pipeline rather than one component or an adapter."""
        return self.model_type in PIPELINES


def refuse_impossible(conversion: Conversion) -> None:
    """Refuse contradictory options, and options that need a library which the image lacks.

    The load calls this before the download and again before the conversion.
    """
    model_type = conversion.model_type
    if conversion.weights is Weights.EMA and model_type not in _CHECKPOINTS:
        raise LoaderError(Reason.INVALID_SPEC, NO_EMA)
    if conversion.original_config and model_type not in _CHECKPOINTS:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.originalConfig is for checkpoints: other models come with their configs",
        )
    if (conversion.replaced or conversion.has_skeleton) and not conversion.is_pipeline:
        is_vae = conversion.replaced == {"vae"} and not conversion.has_skeleton
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{'spec.vae is' if is_vae else 'spec.components is'} for whole models; modelType"
            f" {model_type.value} has none",
        )
    if conversion.lora != LoraOptions() and model_type is not ModelType.LORA:
        raise LoaderError(
            Reason.INVALID_SPEC, f"spec.lora is for LoRAs; modelType is {model_type.value}"
        )
    loaded = LOADED[model_type]
    if conversion.base_model is not None and conversion.base_model not in loaded:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {conversion.base_model.value}, but with modelType"
            f" {model_type.value} only models of {listed(loaded)} load",
        )
    refuse_render_without_torch(conversion)


def refuse_render_without_torch(conversion: Conversion) -> None:
    """Refuse to render an image if the libraries for it are missing."""
    if conversion.verify.render and not has_torch():
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.verify.render needs torch, diffusers and transformers, which this loader image"
            " lacks: set it to false, or have the administrator name an image with them in"
            " loader.image",
        )


def refuse_contradiction(
    base_model: BaseModelName | None, families: Collection[str], what: str
) -> None:
    """Refuse a spec.baseModel that is not one of `families`. what: the source, in words."""
    if base_model is not None and base_model not in families:
        raise LoaderError(Reason.INVALID_SPEC, f"spec.baseModel is {base_model.value}, but {what}")


def refuse_without_effect(
    what: str, conversion: Conversion, *, takes_components: bool = False
) -> None:
    """Refuse options that have no effect on the file. The message names the first one.

    what: the file, in words. takes_components: whether the file lacks components of its pipeline,
    so that the options for components have an effect.
    """
    given = {
        "weights": conversion.weights is Weights.EMA,
        "predictionType": conversion.prediction_type is not None,
        "upcastAttention": conversion.upcast_attention is not None,
        "originalConfig": conversion.original_config,
        "vae": not takes_components and conversion.replaced == {"vae"},
        "components": not takes_components and bool(conversion.has_skeleton or conversion.replaced),
    }
    for field_, is_given in given.items():
        if is_given:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.{field_} does not apply: the file is {what}"
            )
