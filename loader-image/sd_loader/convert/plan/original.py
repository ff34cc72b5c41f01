"""Reads the YAML config that a checkpoint was trained with: the few keys that a folder needs.

The YAML becomes strings, lists and mappings only. Its tags are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd_api.choices import PredictionType
from sd_api.reasons import Reason
from sd_loader.diffusers_repo import config_limits as limits
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet

ORIGINAL_MAX_BYTES = 64 << 10
"""Maximum size of an original config. Published configs have 2 to 4 KB."""

_LDM_PREDICTIONS = {"eps": PredictionType.EPSILON, "v": PredictionType.V_PREDICTION}
_SGM_PREDICTIONS = {
    "EpsScaling": PredictionType.EPSILON,
    "DiscreteEpsScaling": PredictionType.EPSILON,
    "VScaling": PredictionType.V_PREDICTION,
}


@dataclass(frozen=True)
class OriginalConfig:
    """The values that are read from an original config. None stands for an absent key."""

    prediction_type: PredictionType | None = None

    image_size: int | None = None
    """Width of the latents."""

    heads: int | None = None
    """Heads of the UNet's attentions. Never set together with head_channels."""

    head_channels: int | None = None
    """Width of a head of the UNet's attentions."""

    beta_start: float | None = None
    """Noise of the first step."""

    beta_end: float | None = None
    """Noise of the last step."""

    timesteps: int | None = None
    """Steps of the noise schedule."""

    in_channels: int | None = None
    """Channels that the UNet reads. The tensors must agree."""

    model_channels: int | None = None
    """Width of the UNet's first level. The tensors must agree."""

    context_dim: int | None = None
    """Width of the input of the UNet's cross attention. The tensors must agree."""


NO_ORIGINAL = OriginalConfig()


def read_original(path: Path) -> OriginalConfig:
    """Read a downloaded config."""
    with path.open("rb") as file:
        return parse_original(file.read(ORIGINAL_MAX_BYTES + 1))


def parse_original(content: bytes) -> OriginalConfig:
    """Parse a config in LDM's or SGM's form. Refuses anything else."""
    if len(content) > ORIGINAL_MAX_BYTES:
        raise _refused(f"it is larger than {ORIGINAL_MAX_BYTES} bytes")
    model = _mapping(_parsed(content).get("model")).get("params")
    if not isinstance(model, Mapping):
        raise _refused("it has no model.params, so it is not the config of a checkpoint")
    is_sgm = "network_config" in model
    unet = _mapping(
        _mapping(model.get("network_config" if is_sgm else "unet_config")).get("params")
    )
    heads, head_channels = _whole(unet, "num_heads"), _whole(unet, "num_head_channels")
    return OriginalConfig(
        prediction_type=_sgm_prediction(model) if is_sgm else _ldm_prediction(model),
        image_size=None if is_sgm else _whole(model, "image_size"),
        heads=heads,
        head_channels=head_channels if heads is None else None,
        beta_start=_number(model, "linear_start"),
        beta_end=_number(model, "linear_end"),
        timesteps=_whole(model, "timesteps", limits.NUMBERS["num_train_timesteps"][1]),
        in_channels=_whole(unet, "in_channels"),
        model_channels=_whole(unet, "model_channels"),
        context_dim=_whole(unet, "context_dim"),
    )


def _parsed(content: bytes) -> Mapping[str, object]:
    import yaml

    try:
        # The base loader makes all scalars strings and ignores tags.
        document = yaml.BaseLoader(content.decode()).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refused("it is not valid YAML") from error
    return _mapping(document)


def _ldm_prediction(model: Mapping[str, object]) -> PredictionType:
    value = model.get("parameterization", "eps")
    found = _LDM_PREDICTIONS.get(value) if isinstance(value, str) else None
    if found is None:
        raise _refused(f"parameterization is {snippet(str(value))}; known are eps and v")
    return found


def _sgm_prediction(model: Mapping[str, object]) -> PredictionType | None:
    denoiser = _mapping(_mapping(model.get("denoiser_config")).get("params"))
    scaling = _mapping(denoiser.get("scaling_config")).get("target")
    if scaling is None:
        return None
    found = _SGM_PREDICTIONS.get(str(scaling).rpartition(".")[2])
    if found is None:
        raise _refused(
            f"scaling_config is {snippet(str(scaling))}; known are {', '.join(_SGM_PREDICTIONS)}"
        )
    return found


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _whole(values: Mapping[str, object], key: str, most: float = limits.MOST) -> int | None:
    """Read a positive whole number. None if it is absent or -1, which also stands for absent."""
    value = values.get(key, "-1")
    if value == "-1":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{0,5}", value):
        raise _refused(f"{key} is {snippet(str(value))}, not a positive whole number")
    if int(value) > most:
        raise _refused(f"{key} is {value}; it should be at most {most:,}")
    return int(value)


def _number(values: Mapping[str, object], key: str) -> float | None:
    """Read a number between 0 and 1, as the noise schedule has them. None if it is absent."""
    value = values.get(key)
    if value is None:
        return None
    text = str(value)
    number = float(text) if re.fullmatch(r"[0-9]{0,2}\.?[0-9]{1,20}", text, re.ASCII) else 0
    if not 0 < number < 1:
        raise _refused(f"{key} is {snippet(text)}, not a number between 0 and 1")
    return number


def _refused(what: str) -> LoaderError:
    return LoaderError(Reason.INVALID_SPEC, f"spec.originalConfig: {what}")
