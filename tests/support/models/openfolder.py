"""Renders with the model in the first argument's folder; saves the image to the second argument.

A third argument is the folder of a LoRA, which the model is rendered with.

The script imports nothing of the project, so it runs in any environment that has diffusers. It
works offline and passes diffusers no options about the model's weight files.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from diffusers import DiffusionPipeline

LORA_FILE = "pytorch_lora_weights.safetensors"


def main(folder: str, out: str, lora: str | None = None) -> None:
    """Open the folder, render an image and save it."""
    pipeline = DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, torch_dtype=torch.float32
    )
    if lora is not None:
        # Older versions do not look for the file while they are offline, so they get its name.
        pipeline.load_lora_weights(lora, weight_name=LORA_FILE, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a red fox, in a forest; 1girl",
        num_inference_steps=3,
        height=128,
        width=128,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    np.save(out, images)


if __name__ == "__main__":
    main(*sys.argv[1:])
