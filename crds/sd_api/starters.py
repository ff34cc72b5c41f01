"""The starter catalog: models to begin with, which need no account at their source.

The gallery offers each by a button; charts/sd-models/values-starter.yaml has all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_api.choices import ModelType, Revision
from sd_api.controlnets import CONTROLNET_REPOS


@dataclass(frozen=True)
class Starter:
    """A model of the starter catalog."""

    name: str
    """The name of its resource."""
    title: str
    about: str
    model_type: ModelType
    url: str | None = None
    """None for a ControlNet, whose name implies the url."""

    @property
    def spec(self) -> dict[str, Any]:
        """The spec of its resource."""
        source = {"url": self.url} if self.url else {}
        return {**source, "modelType": self.model_type.value, "revision": Revision.FP16.value}


STARTERS = (
    Starter(
        "sd15",
        "Stable Diffusion 1.5",
        "Small and fast; most ControlNets and LoRAs are made for it.",
        ModelType.HUGGINGFACE,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Starter(
        "sdxl",
        "Stable Diffusion XL",
        "Larger images with more detail, at 1024 by 1024 pixels.",
        ModelType.HUGGINGFACE,
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    Starter(
        "vae-ft-mse",
        "VAE ft-MSE",
        "Smoother faces and colours with Stable Diffusion 1.5.",
        ModelType.VAE,
        "stabilityai/sd-vae-ft-mse",
    ),
    Starter(
        "lcm-sd15",
        "LCM for SD 1.5",
        "Images in 4 to 8 steps instead of 30.",
        ModelType.LORA,
        "latent-consistency/lcm-lora-sdv1-5",
    ),
    Starter(
        "lcm-sdxl",
        "LCM for SDXL",
        "Images in 4 to 8 steps instead of 30.",
        ModelType.LORA,
        "latent-consistency/lcm-lora-sdxl",
    ),
    *(
        Starter(name, f"ControlNet {name}", "For Stable Diffusion 1.5.", ModelType.CONTROLNET)
        for name in sorted(CONTROLNET_REPOS)
    ),
)
