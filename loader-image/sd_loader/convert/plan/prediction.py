"""What a checkpoint's UNet predicts, and how that is known: its tensors' names do not say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_api.load import LoadRequest
from sd_api.spec import BaseModelName, PredictionType
from sd_loader.convert.plan.original import OriginalConfig

# Empty tensors by which checkpoints say how they were trained.
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
"""Training steps of 512-base-ema.ckpt, by which diffusers knew it, too."""


@dataclass(frozen=True)
class Prediction:
    """What the UNet predicts. said: how that was decided, where the file did not say it itself."""

    type: PredictionType
    zero_terminal_snr: bool = False
    said: str | None = None


def decide(
    base_model: BaseModelName,
    names: Iterable[str],
    metadata: Mapping[str, str],
    request: LoadRequest,
    original: OriginalConfig,
    *,
    text_to_image: bool = True,
) -> Prediction:
    """Decide it: the spec first, then the original config, then the file, then what is usual.

    names: of the file's tensors. Stable Diffusion 2 alone was published with either prediction.
    """
    names = set(names)
    asked = request.prediction_type
    is_sd2 = base_model is BaseModelName.SD2 and text_to_image
    zero_snr = _ZERO_SNR_MARK in names
    if asked is not None:
        return Prediction(asked, zero_snr)
    if is_sd2 and request.upcast_attention:
        return Prediction(
            PredictionType.V_PREDICTION,
            zero_snr,
            "spec.upcastAttention is true: taken for Stable Diffusion 2.1 (768, v_prediction)",
        )
    told = original.prediction_type or _told(names, metadata)
    if told is not None:
        return Prediction(told, zero_snr)
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


def _told(names: set[str], metadata: Mapping[str, str]) -> PredictionType | None:
    """What the file itself says."""
    if _V_PREDICTION_MARK in names:
        return PredictionType.V_PREDICTION
    stated = _PREDICTIONS.get(metadata.get(_METADATA_PREDICTION, ""))
    # kohya's programs append what was trained, as in `stable-diffusion-v2-512/lora`.
    family = metadata.get(_METADATA_ARCHITECTURE, "").partition("/")[0]
    return stated or _ARCHITECTURES.get(family)
