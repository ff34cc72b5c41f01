"""The options of one conversion: what the user asks for, apart from where the model comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from sd_api.spec import (
    BaseModelName,
    ModelType,
    PredictionType,
    Revision,
    Verify,
    Weights,
)

PIPELINES = frozenset({ModelType.API_TRAINED, ModelType.CUSTOM_CKPT, ModelType.HUGGINGFACE})
"""Model types that are whole pipelines. The others are one component, or an adapter."""


@dataclass(frozen=True)
class Conversion:
    """What to make of a downloaded model."""

    model_type: ModelType
    """What the user says the source is; it decides how the source is converted."""

    model_id: str
    """The model's id. It names the token of an embedding whose file has no usable name."""

    precision: Revision | None = None
    """Floating-point type of the published weights (spec.revision). None keeps the source's."""

    weights: Weights = Weights.STANDARD
    """Which set of weights to publish of a checkpoint that has two."""

    base_model: BaseModelName | None = None
    """The architecture family that the user names. None if the file alone decides."""

    prediction_type: PredictionType | None = None
    """What the UNet predicts. None if the original config, the file or the usual value decides."""

    upcast_attention: bool | None = None
    """Whether the UNet computes attention in single precision. None keeps the model's setting."""

    safetensors_only: bool = False
    """Refuse pickled weights (spec.fromSafetensors)."""

    original_config: bool = False
    """Whether spec.originalConfig gives the YAML config that the checkpoint was trained with."""

    replacement_vae: bool = False
    """Whether spec.vae replaces the model's own VAE. Without its download nothing is converted."""

    verify: Verify = field(default_factory=Verify)
    """How thoroughly the converted folder is checked before it is published."""

    @property
    def is_pipeline(self) -> bool:
        """Whether the model is a whole pipeline rather than one component or an adapter."""
        return self.model_type in PIPELINES
