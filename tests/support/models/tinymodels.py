"""A tiny checkpoint of each architecture in the original layout, and its diffusers configs.

The configs are those of the models' own repositories, with tiny widths. Tests give them to
`from_single_file` and compare them with the configs that the loader writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from devkit.layers import Shapes
from devkit.ldm_layouts import (
    TINY_REFINER,
    TINY_SD2,
    TINY_SD15,
    TINY_SDXL,
    Widths,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from tests.support.models.checkpoints import Checkpoint, random_tensors, tiny_configs

Changes = Mapping[str, Mapping[str, Any]]
ABSENT = object()
INDEX, UNET, VAE = "model_index.json", "unet/config.json", "vae/config.json"
SCHEDULER = "scheduler/scheduler_config.json"

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


@dataclass(frozen=True)
class TinyModel:
    """An architecture: its tiny checkpoint, its configs, and the expected result of a load."""

    title: str
    pipeline: str
    base_model: str
    """The expected base model in the status."""
    shapes: Callable[[Widths], Shapes]
    widths: Widths
    configs: str = "sd15"
    """The architecture of `tiny_configs` to start from."""
    changes: Changes = field(default_factory=dict)
    """The changes to these configs, by file."""
    prediction_type: str = "epsilon"
    """The expected prediction type in the status."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the load's request."""
    warns: str | None = None
    """A part of the only expected warning; None if no warning is expected."""

    def tensors(self, dtype: torch.dtype = torch.float16) -> Checkpoint:
        """Return the checkpoint's tensors."""
        return random_tensors(self.shapes(self.widths), dtype)

    def write_configs(self, folder: Path) -> Path:
        """Write the configs of a repo of this model."""
        tiny_configs(folder, self.configs)
        for path, changes in self.changes.items():
            values = json.loads((folder / path).read_text()) | changes
            values = {key: value for key, value in values.items() if value is not ABSENT}
            (folder / path).write_text(json.dumps(values))
        if self.base_model == "sdxl-refiner":
            shutil.rmtree(folder / "text_encoder")
            shutil.rmtree(folder / "tokenizer")
        return folder

    def __str__(self) -> str:
        return self.title


def _inputs(widths: Widths, channels: int, changes: Changes) -> tuple[Widths, Changes]:
    unet = {**changes.get(UNET, {}), "in_channels": channels}
    return replace(widths, inputs=channels), {**changes, UNET: unet}


_SD2_TEXT = {"hidden_act": "gelu", "num_hidden_layers": 23, "projection_dim": 512}
_SD2: Changes = {
    UNET: {"attention_head_dim": [1, 1, 2, 2], "use_linear_projection": True},
    "text_encoder/config.json": _SD2_TEXT,
}
_SD2_V: Changes = {
    **_SD2,
    UNET: {**_SD2[UNET], "sample_size": 96, "upcast_attention": True},
    VAE: {"sample_size": 768},
    INDEX: {"scheduler": ["diffusers", "DDIMScheduler"]},
    SCHEDULER: {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "prediction_type": "v_prediction",
    },
}
_EULER_ANCESTRAL = {"scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]}


def _with_unet(changes: Changes, **values: Any) -> Changes:
    return {**changes, UNET: {**changes.get(UNET, {}), **values}}


def _model(
    title: str,
    pipeline: str,
    base_model: str,
    shapes: Callable[[Widths], Shapes],
    widths: Widths,
    channels: int = 4,
    changes: Changes | None = None,
    index: Mapping[str, Any] | None = None,
    **rest: Any,
) -> TinyModel:
    widths, changes = _inputs(widths, channels, changes or {})
    whole = {**changes.get(INDEX, {}), "_class_name": pipeline, **(index or {})}
    return TinyModel(
        title, pipeline, base_model, shapes, widths, changes={**changes, INDEX: whole}, **rest
    )


_FOUR_LEVELS: Changes = {
    UNET: {
        "attention_head_dim": [1, 1, 2, 2],
        "block_out_channels": TINY_REFINER.unet_levels,
        "cross_attention_dim": 64,
        "down_block_types": [_PLAIN, _CROSS, _CROSS, _PLAIN],
        "up_block_types": [_PLAIN_UP, _CROSS_UP, _CROSS_UP, _PLAIN_UP],
        "projection_class_embeddings_input_dim": 64 + 5 * 256,
        "transformer_layers_per_block": 4,
    },
    "text_encoder_2/config.json": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "projection_dim": 64,
    },
}
_ONE_LAYER = {"layers_per_block": 1}
_THREE_LEVELS = {
    "block_out_channels": [32, 64, 128],
    "down_block_types": [_CROSS] * 3,
    "up_block_types": [_CROSS_UP] * 3,
    **_ONE_LAYER,
}
_SD1_ARGUMENTS = ("sd-1", sd15_shapes)
_SD2_ARGUMENTS = ("sd-2", sd2_shapes)
_SDXL_ARGUMENTS = ("sdxl", sdxl_shapes)


def _distilled(title: str, structure: str, base: str, **unet: Any) -> TinyModel:
    pipeline, shapes, widths, changes = {
        "sd-1": ("StableDiffusionPipeline", sd15_shapes, TINY_SD15, {}),
        "sd-2": ("StableDiffusionPipeline", sd2_shapes, TINY_SD2, _SD2),
        "sdxl": ("StableDiffusionXLPipeline", sdxl_shapes, TINY_SDXL, {}),
    }[base]
    return _model(
        title,
        pipeline,
        base,
        shapes,
        replace(widths, architecture=structure),
        changes=_with_unet(changes, **unet),
        configs="sdxl" if base == "sdxl" else "sd15",
        request={"prediction_type": "epsilon"} if base == "sd-2" else {},
    )


MODELS = (
    _model(
        "SD 2 base (512)",
        "StableDiffusionPipeline",
        *_SD2_ARGUMENTS,
        TINY_SD2,
        changes=_SD2,
        request={"prediction_type": "epsilon"},
    ),
    _model(
        "SD 2.1 (768, v)",
        "StableDiffusionPipeline",
        *_SD2_ARGUMENTS,
        TINY_SD2,
        changes=_SD2_V,
        prediction_type="v_prediction",
        warns="taken for Stable Diffusion 2.1",
    ),
    _model(
        "SDXL refiner",
        "StableDiffusionXLImg2ImgPipeline",
        "sdxl-refiner",
        refiner_shapes,
        TINY_REFINER,
        changes=_FOUR_LEVELS,
        configs="sdxl",
        index={
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
        },
    ),
    _model(
        "SD 1.5 inpainting",
        "StableDiffusionInpaintPipeline",
        *_SD1_ARGUMENTS,
        TINY_SD15,
        9,
        changes={SCHEDULER: {"_class_name": "DDIMScheduler", "clip_sample": False}},
        index={"scheduler": ["diffusers", "DDIMScheduler"]},
    ),
    _model(
        "SD 2 inpainting",
        "StableDiffusionInpaintPipeline",
        *_SD2_ARGUMENTS,
        TINY_SD2,
        9,
        changes=_SD2,
    ),
    _model(
        "SDXL inpainting",
        "StableDiffusionXLInpaintPipeline",
        *_SDXL_ARGUMENTS,
        TINY_SDXL,
        9,
        configs="sdxl",
        index={"requires_aesthetics_score": False},
    ),
    _model(
        "InstructPix2Pix (SD 1.5)",
        "StableDiffusionInstructPix2PixPipeline",
        *_SD1_ARGUMENTS,
        TINY_SD15,
        8,
        changes={SCHEDULER: {"_class_name": "EulerAncestralDiscreteScheduler"}},
        index=_EULER_ANCESTRAL,
    ),
    _model(
        "InstructPix2Pix (SDXL)",
        "StableDiffusionXLInstructPix2PixPipeline",
        *_SDXL_ARGUMENTS,
        TINY_SDXL,
        8,
        configs="sdxl",
        index={"feature_extractor": ABSENT, "image_encoder": ABSENT},
    ),
    _distilled("BK-SDM base", "bk-base", "sd-1", **_ONE_LAYER),
    _distilled("BK-SDM small", "bk-small", "sd-1", mid_block_type=None, **_ONE_LAYER),
    _distilled("BK-SDM tiny", "bk-tiny", "sd-1", mid_block_type=None, **_THREE_LEVELS),
    _distilled("BK-SDM v2 base", "bk-v2-base", "sd-2", **_ONE_LAYER),
    _distilled(
        "BK-SDM v2 tiny",
        "bk-v2-tiny",
        "sd-2",
        mid_block_type=None,
        **_THREE_LEVELS | {"attention_head_dim": [1, 1, 2]},
    ),
    _distilled(
        "SSD-1B",
        "ssd-1b",
        "sdxl",
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 2, 4],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    ),
    _distilled(
        "Segmind Vega",
        "vega",
        "sdxl",
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 1, 2],
    ),
    _distilled(
        "KOALA 1B", "koala-1b", "sdxl", transformer_layers_per_block=[1, 2, 6], **_ONE_LAYER
    ),
    _distilled(
        "KOALA 700M",
        "koala-700m",
        "sdxl",
        mid_block_type=None,
        transformer_layers_per_block=[1, 2, 5],
        **_ONE_LAYER,
    ),
)
