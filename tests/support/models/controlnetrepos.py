"""Tiny repos of ControlNets of FLUX.1 and SD 3, without torch."""

from __future__ import annotations

import json
from typing import Any

from devkit.layers import Shapes
from sd_loader.convert.tables.controlnet_shapes import CLASSES
from sd_loader.diffusers_repo.config_keys import defaults
from tests.support.models.vaeshapes import empty_weights

STEM = "diffusion_pytorch_model"
_SIZES = {
    "attention_head_dim": 8,
    "in_channels": 4,
    "joint_attention_dim": 8,
    "num_attention_heads": 2,
    "num_layers": 1,
    "pooled_projection_dim": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "FluxControlNetModel": {
        **_SIZES,
        "axes_dims_rope": [2, 2, 4],
        "conditioning_embedding_channels": None,
        "guidance_embeds": True,
        "num_mode": None,
        "num_single_layers": 1,
        "patch_size": 1,
    },
    "SD3ControlNetModel": {
        **_SIZES,
        "caption_projection_dim": 16,
        "out_channels": 4,
        "pos_embed_max_size": 4,
        "sample_size": 4,
    },
}
FORMS = {
    "FLUX.1": ("FluxControlNetModel", {}),
    "FLUX.1 union": ("FluxControlNetModel", {"num_mode": 10, "guidance_embeds": False}),
    "FLUX.1 with hints": ("FluxControlNetModel", {"conditioning_embedding_channels": 4}),
    "SD 3": ("SD3ControlNetModel", {"extra_conditioning_channels": 1}),
    "SD 3.5 medium": (
        "SD3ControlNetModel",
        {"dual_attention_layers": [0], "num_layers": 2, "qk_norm": "rms_norm"},
    ),
    "SD 3.5 large": (
        "SD3ControlNetModel",
        {"joint_attention_dim": None, "use_pos_embed": False, "pos_embed_type": None},
    ),
}
"""The published forms: the class, and the changes to the class's config in CONFIGS."""


def configured(form: str) -> dict[str, Any]:
    """Return the config of a form."""
    class_name, changes = FORMS[form]
    return {"_class_name": class_name, **CONFIGS[class_name], **changes}


def shapes(form: str) -> Shapes:
    """Return the tensor names and shapes of a form."""
    class_name, _ = FORMS[form]
    return dict(CLASSES[class_name]({**defaults(class_name), **configured(form)}))


def repo(form: str, *, shards: int = 1, **changes: Any) -> dict[str, bytes]:
    """Return the files of a form's repo; `changes` are fields of its config."""
    tensors = list(shapes(form).items())
    config = {**configured(form), **changes}
    files = {"config.json": json.dumps(config).encode()}
    weight_map = {}
    for number in range(shards):
        name = f"{STEM}.safetensors"
        if shards > 1:
            name = f"{STEM}-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = dict(tensors[number::shards])
        files[name] = empty_weights(own)
        weight_map |= dict.fromkeys(own, name)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        files[f"{STEM}.safetensors.index.json"] = json.dumps(index).encode()
    return files
