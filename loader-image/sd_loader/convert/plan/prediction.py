"""Decides what a checkpoint's UNet predicts, which its tensors do not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_api.choices import BaseModelName, PredictionType
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.original import OriginalConfig

# Names of empty tensors that show how a checkpoint was trained.
_V_PREDICTION_MARK = "v_pred"
_ZERO_SNR_MARK = "ztsnr"
_METADATA_PREDICTION = "modelspec.prediction_type"
_PREDICTIONS = {
    "v": PredictionType.V_PREDICTION,
    "v_prediction": PredictionType.V_PREDICTION,
    "epsilon": PredictionType.EPSILON,
}
_METADATA_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = {
    "stable-diffusion-v2-512": PredictionType.EPSILON,
    "stable-diffusion-v2-768-v": PredictionType.V_PREDICTION,
}
_STEP = "global_step"
_STEP_OF_SD2_BASE = "875000"
"""Training steps of Stable Diffusion 2 base (512-base-ema.ckpt). diffusers used this mark, too."""


@dataclass(frozen=True)
class Prediction:
    """What the UNet predicts."""

    type: PredictionType

    zero_terminal_snr: bool = False
    """Whether the noise schedule ends without any signal."""

    warning: str | None = None
    """A text about how the type was decided; None if the user or the file names the type."""


def decide_prediction(
    base_model: BaseModelName,
    names: Iterable[str],
    metadata: Mapping[str, str],
    conversion: Conversion,
    original: OriginalConfig,
    *,
    text_to_image: bool = True,
) -> Prediction:
    """Decide what the UNet predicts. The order is: spec, original config, file, usual value.

    names: the names of the file's tensors. text_to_image: false for other tasks. Only text-to-image
    models of Stable Diffusion 2 were published with both types.
    """
    names = set(names)
    asked = conversion.prediction_type
    is_sd2 = base_model is BaseModelName.SD2 and text_to_image
    zero_snr = _ZERO_SNR_MARK in names
    if asked is not None:
        return Prediction(asked, zero_snr)
    if is_sd2 and conversion.upcast_attention:
        return Prediction(
            PredictionType.V_PREDICTION,
            zero_snr,
            "spec.upcastAttention is true: taken for Stable Diffusion 2.1 (768, v_prediction)",
        )
    stated = original.prediction_type or _stated(names, metadata)
    if stated is not None:
        return Prediction(stated, zero_snr)
    if not is_sd2:
        return Prediction(PredictionType.EPSILON, zero_snr)
    if metadata.get(_STEP) == _STEP_OF_SD2_BASE:
        return Prediction(
            PredictionType.EPSILON,
            zero_snr,
            f"the checkpoint's {_STEP} is that of Stable Diffusion 2 base (512, epsilon)",
        )
    return Prediction(
        PredictionType.V_PREDICTION,
        zero_snr,
        "the file does not say what its UNet predicts: taken for Stable Diffusion 2.1 (768,"
        " v_prediction), as diffusers does; for a 512 base model set spec.predictionType: epsilon",
    )


def _stated(names: set[str], metadata: Mapping[str, str]) -> PredictionType | None:
    """The type that the file itself states. None if it states none."""
    if _V_PREDICTION_MARK in names:
        return PredictionType.V_PREDICTION
    prediction = _PREDICTIONS.get(metadata.get(_METADATA_PREDICTION, ""))
    # kohya's programs append what was trained, as in `stable-diffusion-v2-512/lora`.
    family = metadata.get(_METADATA_ARCHITECTURE, "").partition("/")[0]
    return prediction or _ARCHITECTURES.get(family)
