"""Detects the family of a checkpoint in the original layout, and the task of its UNet."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_api.choices import BaseModelName
from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_loader.convert.detect.kinds import (
    CONTROLNET,
    FIRST_CONVOLUTION,
    UNET_PREFIX,
    describe_kind,
    example_names,
    input_channels,
    other_pipeline,
    transformer_file,
    unsupported,
)
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

INPAINTING = "inpainting"
INSTRUCT_PIX2PIX = "instruct-pix2pix"

_TASKS = {4: None, 9: INPAINTING, 8: INSTRUCT_PIX2PIX}
"""Tasks by the number of the UNet's input channels: each task adds channels to the four latents."""

_OTHER_INPUTS = {7: "an upscaler", 5: "a depth-to-image model"}
_PROJECTION = re.compile(
    re.escape(UNET_PREFIX) + r"(input_blocks\.\d+|middle_block)\.1\.proj_in\.weight"
)
_SIZE_EMBEDDING = f"{UNET_PREFIX}label_emb.0.0.weight"
_TEXT_ENCODERS = {
    "cond_stage_model.transformer.": BaseModelName.SD1,
    "cond_stage_model.model.": BaseModelName.SD2,
}
REPO_INSTEAD = (
    "use the model's repo in diffusers' layout, which has all components, with spec.modelType:"
    " huggingface"
)
_SKELETON_INSTEAD = (
    "name a diffusers repo that gives the other components in spec.components.from, or have the"
    " administrator set one for the family in SD_OPERATOR_LOADER_DEFAULT_PARTS"
    f" ({LoaderEnv.name_of('default_parts')} by hand)"
)
_COSXL_MARK = "edm_vpred.sigma_max"


def family_of(
    tensors: Mapping[str, Tensor], base_model: BaseModelName | None = None
) -> BaseModelName:
    """Return the family of a checkpoint in the original layout. Refuse any other file.

    base_model: the family that the user specifies. It decides for a file that may be sd-1 or sd-2.
    Any other file must be of this family.
    """
    foreign = other_pipeline(tensors)
    if foreign is not None:
        raise unsupported(f"{foreign}: {REPO_INSTEAD}")
    transformer = transformer_file(tensors)
    if transformer is not None:
        raise unsupported(f"{transformer}: {remedy_of(transformer)}")
    if FIRST_CONVOLUTION not in tensors:
        raise unsupported(_description(tensors))
    if CONTROLNET.fits(tensors):
        raise unsupported(str(CONTROLNET))
    if _COSXL_MARK in tensors:
        raise unsupported("a CosXL checkpoint")
    family = _family(tensors, base_model)
    if base_model is not None and base_model is not family:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {base_model.value}, but the file is a checkpoint of {family.value}",
        )
    task = task_of(tensors)
    if task is not None and task not in load_architecture(family.value).variants:
        raise unsupported(f"an {task} model of {family.value}, which no pipeline of diffusers runs")
    return family


def remedy_of(found: TransformerFile) -> str:
    """How the user can still load a file that lacks components of its pipeline, for messages."""
    return REPO_INSTEAD if found.family.table is None else _SKELETON_INSTEAD


def task_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The task of a checkpoint's UNet. None for text-to-image. Refuses a task that is not known."""
    channels = input_channels(tensors)
    if channels not in _TASKS:
        what = _OTHER_INPUTS.get(channels, f"a checkpoint whose UNet takes {channels} channels")
        raise unsupported(
            f"{what} ({channels} input channels); supported are text-to-image, inpainting and"
            " instruct-pix2pix models"
        )
    return _TASKS[channels]


def _family(tensors: Mapping[str, Tensor], base_model: BaseModelName | None) -> BaseModelName:
    transformers = {name for name in tensors if _PROJECTION.match(name)}
    if _SIZE_EMBEDDING in tensors:
        if f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight" in transformers:
            # SDXL has no transformers in its first level.
            raise unsupported("a Stable unCLIP checkpoint")
        # SDXL's UNet has three levels (input blocks 0 to 8), the refiner's has four.
        refiner = any(name.startswith(f"{UNET_PREFIX}input_blocks.9.") for name in tensors)
        return BaseModelName.SDXL_REFINER if refiner else BaseModelName.SDXL
    # The transformers of SD 2 project by matrices, those of SD 1 by convolutions.
    evidence = {
        BaseModelName.SD1 if len(tensors[name].shape) == 4 else BaseModelName.SD2
        for name in transformers
    } | {
        family
        for prefix, family in _TEXT_ENCODERS.items()
        if any(name.startswith(prefix) for name in tensors)
    }
    if len(evidence) == 1:
        return evidence.pop()
    if base_model in (BaseModelName.SD1, BaseModelName.SD2):
        return base_model
    if not evidence:
        raise unsupported(
            "a checkpoint without the components by which sd-1 and sd-2 differ: its UNet has no"
            " transformers, and it has no text encoder"
        )
    raise LoaderError(
        Reason.INVALID_SPEC,
        "the checkpoint's UNet and text encoder disagree: one is of sd-1, the other of sd-2; set"
        " spec.baseModel",
    )


def _description(tensors: Mapping[str, Tensor]) -> str:
    """Describe a file that is not a checkpoint, for the message."""
    if not tensors:
        return "empty: it holds no tensors"
    return describe_kind(tensors) or (
        f"not a Stable Diffusion checkpoint: its {len(tensors)} tensors are named like"
        f" {example_names(tensors)}, none is {FIRST_CONVOLUTION}"
    )
