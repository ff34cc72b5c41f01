"""If the list allows null for a key, an object of the class can be made with that null."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sd_loader.diffusers_repo.config_keys import allowed_config, known_classes
from sd_loader.errors import LoaderError

LEVELS = {"block_out_channels": [8, 16], "norm_num_groups": 4}
ATTENTION = {"cross_attention_dim": 12, "attention_head_dim": 2}
SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        **LEVELS,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "ControlNetModel": {
        **LEVELS,
        **ATTENTION,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    },
    "UNet2DConditionModel": {
        **LEVELS,
        **ATTENTION,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODERS = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
NOT_MADE = ("DPMSolverSDEScheduler", "LMSDiscreteScheduler")
"""Schedulers that need a library which the test environment does not have."""
CLASSES = [
    name for name in known_classes() if not name.endswith("Pipeline") and name not in NOT_MADE
]


def use(class_name: str, config: dict[str, Any]) -> None:
    """Make an object of the class. Run a text encoder, and set the steps of a scheduler."""
    if class_name in ENCODERS:
        model = ENCODERS[class_name](CLIPTextConfig(**{**TEXT, **config})).eval()
        model(torch.zeros(1, 3, dtype=torch.long))
        return
    # Models without a small config above take gigabytes; on the meta device they take nothing.
    with torch.device("cpu" if class_name.endswith("Scheduler") else "meta"):
        made = getattr(diffusers, class_name).from_config({**SMALL.get(class_name, {}), **config})
    if class_name.endswith("Scheduler"):
        made.set_timesteps(5)


SLOW = {
    "ControlNetModel",
    "FluxControlNetModel",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "SD3ControlNetModel",
}
"""Each takes half a second or more."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "class_name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CLASSES],
)
def test_class_is_made_with_each_null_that_is_allowed(class_name):
    """Some configs have null instead of false, but not every class can use that."""
    for key in known_classes()[class_name]["keys"]:
        try:
            config = allowed_config({key: None}, class_name, "x/config.json")
        except LoaderError:
            continue
        try:
            use(class_name, config)
        except Exception as error:  # noqa: BLE001 - the test reports the key
            pytest.fail(f"{key}: {type(error).__name__}: {error}")
