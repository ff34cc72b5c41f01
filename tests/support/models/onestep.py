"""One denoising step of the pipelines of `tinyfamilies`, on the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.models.tinycomponents import PROMPT

SIDE = 32
"""Width and height of the image, in pixels, unless a pipeline needs another size."""


def _wan_image_to_video() -> dict[str, Any]:
    # The pipeline cleans prompts with a library that is not installed.
    embeds = torch.ones(1, 16, 8)
    return {
        "prompt": None,
        "prompt_embeds": embeds,
        "negative_prompt_embeds": embeds,
        "num_frames": 1,
        "image": Image.new("RGB", (SIDE, SIDE)),
    }


def _kandinsky() -> dict[str, Any]:
    embeds = torch.ones(1, 8)
    return {"image_embeds": embeds, "negative_image_embeds": embeds}


_OTHERS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "sd-3": lambda: {"height": 16, "width": 16},
    "wan": lambda: {"num_frames": 1},
    "z-image": lambda: {"max_sequence_length": 16},
    "lumina2": lambda: {"max_sequence_length": 16},
    "auraflow": lambda: {"height": 8, "width": 8},
    "pixart": lambda: {"use_resolution_binning": False, "clean_caption": False},
    "kandinsky": _kandinsky,
    "ltx": lambda: {"num_frames": 1},
    "sana": lambda: {"use_resolution_binning": False, "complex_human_instruction": None},
    # HiDream enlarges every image to this size.
    "hidream": lambda: {"height": 128, "width": 128, "max_sequence_length": 64},
    "flux2": lambda: {"text_encoder_out_layers": (0, 1, 1)},
    "flux2-klein": lambda: {"text_encoder_out_layers": (0, 1, 1)},
    "wan-i2v": _wan_image_to_video,
}
"""The arguments that a family needs besides those that all have."""


def one_step(pipeline: Any, family: str) -> np.ndarray[Any, Any]:
    """Return the latents after one step from a prompt, with the same noise each time."""
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 1,
        "output_type": "latent",
        "return_dict": False,
        "generator": torch.Generator().manual_seed(0),
    }
    if family != "kandinsky":  # its decoder continues from an embedded image
        arguments["prompt"] = PROMPT
    latents = pipeline(**arguments | _OTHERS.get(family, dict)())[0]
    # Z-Image returns a list of one.
    found = latents if isinstance(latents, torch.Tensor) else latents[0]
    return found.float().numpy()
