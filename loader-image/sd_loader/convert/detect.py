"""Which architecture a file of tensors is of, or what else it is, said by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType
from sd_loader.convert.architecture import ARCHITECTURES
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor

UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
_FIRST_PROJECTION = f"{UNET}input_blocks.1.1.proj_in.weight"
_SIZE_EMBEDDING = f"{UNET}label_emb.0.0.weight"
_EXAMPLES = 3

# Pipelines that give the UNet more than the latents, told by its input channels.
_INPUTS = {
    9: "an inpainting model",
    8: "an instruct-pix2pix model",
    7: "an upscaler",
    5: "a depth-to-image model",
}


@dataclass(frozen=True)
class _Kind:
    """Something else than a checkpoint, told by the name of one tensor."""

    what: str
    pattern: re.Pattern[str]
    model_type: ModelType | None = None

    def __str__(self) -> str:
        if self.model_type is None:
            return self.what
        return f"{self.what}: it needs spec.modelType: {self.model_type.value}"


_CONTROLNET = _Kind(
    "a ControlNet",
    re.compile(r"(control_model|controlnet_cond_embedding|controlnet_down_blocks)\.|lllite_"),
    ModelType.CONTROLNET,
)
_OTHERS = (
    _Kind(
        "a LoRA",
        re.compile(
            r"lora_(unet|te\d?|transformer)_"
            r"|.*\.(lora_(up|down|A|B|linear_layer)|lora\.(up|down))\."
            r"|.*\.(hada_w1_a|lokr_w[12](_a)?)$"
        ),
        ModelType.LORA,
    ),
    _CONTROLNET,
    _Kind(
        "a textual-inversion embedding",
        re.compile(r"(emb_params|string_to_param(\.\*)?|clip_[lg]|\*|<[^>]*>)$"),
        ModelType.EMBEDDINGS,
    ),
    _Kind(
        "a VAE",
        re.compile(r"(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid)\."),
        ModelType.VAE,
    ),
    _Kind(
        "a VAE",
        re.compile(r"(encoder|decoder)\.mid_block\."),
        ModelType.VAE,
    ),
    _Kind("a FLUX model", re.compile(r"(.*\.)?double_blocks\.0\.img_attn\.")),
    _Kind("a Stable Diffusion 3 model", re.compile(r"(.*\.)?joint_blocks\.0\.")),
    _Kind("an AnimateDiff motion module", re.compile(r".*\.motion_modules\.")),
    _Kind("an IP-Adapter", re.compile(r"(ip_adapter|image_proj)\.")),
    _Kind(
        "one component in diffusers' layout; load its whole repo, with spec.modelType: huggingface",
        re.compile(r"(down_blocks|up_blocks|transformer_blocks|text_model)\."),
    ),
    _Kind("a UNet without its pipeline", re.compile(r"input_blocks\.0\.0\.weight$")),
)


def known_to_diffusers_only(tensors: Mapping[str, Tensor]) -> str | None:
    """What the file is, where diffusers converts it and this loader does not; else None."""
    return next(
        (
            kind.what
            for kind in _OTHERS
            if kind.what in ("a FLUX model", "a Stable Diffusion 3 model")
            and any(kind.pattern.match(name) for name in tensors)
        ),
        None,
    )


def detect(tensors: Mapping[str, Tensor], base_model: BaseModelName | None = None) -> BaseModelName:
    """The architecture of a checkpoint in the original layout.

    base_model: what the user says it is. Anything that cannot be converted is refused, by name.
    """
    if _FIRST_CONVOLUTION not in tensors:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {_other(tensors)}")
    for name in tensors:
        if _CONTROLNET.pattern.match(name):
            raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {_CONTROLNET}")
    found = _family(tensors)
    if base_model is not None and base_model is not found:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {base_model.value}, but the file is a checkpoint of {found.value}",
        )
    _refuse_other_inputs(tensors[_FIRST_CONVOLUTION])
    if "edm_mean" in tensors:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, "the file is a Playground v2.5 checkpoint")
    if found.value not in ARCHITECTURES:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is a checkpoint of {found.value}; supported are {', '.join(ARCHITECTURES)}",
        )
    return found


def _family(tensors: Mapping[str, Tensor]) -> BaseModelName:
    if _SIZE_EMBEDDING in tensors:
        # SDXL's UNet has three levels (input blocks 0 to 8), the refiner's four.
        refiner = any(name.startswith(f"{UNET}input_blocks.9.") for name in tensors)
        return BaseModelName.SDXL_REFINER if refiner else BaseModelName.SDXL
    projection = tensors.get(_FIRST_PROJECTION)
    if projection is None or len(projection.shape) == 4:
        return BaseModelName.SD1
    return BaseModelName.SD2  # its transformers project by matrices, SD 1's by convolutions


def _refuse_other_inputs(convolution: Tensor) -> None:
    channels = convolution.shape[1] if len(convolution.shape) == 4 else 0
    if channels != 4:
        what = _INPUTS.get(channels, f"a checkpoint whose UNet takes {channels} channels")
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is {what} ({channels} input channels); supported are text-to-image models",
        )


def _other(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "empty: it holds no tensors"
    for kind in _OTHERS:
        if any(kind.pattern.match(name) for name in tensors):
            return str(kind)
    examples = ", ".join(snippet(name) for name in sorted(tensors)[:_EXAMPLES])
    return (
        f"no Stable Diffusion checkpoint: its {len(tensors)} tensors are named like {examples},"
        f" none is {_FIRST_CONVOLUTION}"
    )
