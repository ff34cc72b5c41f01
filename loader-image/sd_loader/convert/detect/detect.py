"""Which architecture a file of tensors is of, or what else it is, said by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType
from sd_loader.convert.tables import architecture
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor

UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
_PROJECTION = re.compile(re.escape(UNET) + r"(input_blocks\.\d+|middle_block)\.1\.proj_in\.weight")
_SIZE_EMBEDDING = f"{UNET}label_emb.0.0.weight"
_TEXT_ENCODERS = {
    "cond_stage_model.transformer.": BaseModelName.SD1,
    "cond_stage_model.model.": BaseModelName.SD2,
}
_EXAMPLES = 3

INPAINTING = "inpainting"
INSTRUCT_PIX2PIX = "instruct-pix2pix"
# What the UNet is given beside the latents tells the task; told by its input channels.
_TASKS = {4: None, 9: INPAINTING, 8: INSTRUCT_PIX2PIX}
_OTHER_INPUTS = {7: "an upscaler", 5: "a depth-to-image model"}


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


_CHECKPOINT = _Kind(
    "a checkpoint", re.compile(re.escape(_FIRST_CONVOLUTION)), ModelType.CUSTOM_CKPT
)
_CONTROLNET = _Kind(
    "a ControlNet",
    re.compile(r"(control_model|controlnet_cond_embedding|controlnet_down_blocks)\.|lllite_"),
    ModelType.CONTROLNET,
)
_LORA = _Kind(
    "a LoRA",
    re.compile(
        r"lora_(unet|te\d?|transformer)_"
        r"|.*\.(lora_(up|down|A|B|linear_layer)|lora\.(up|down))\."
        r"|.*\.to_(q|k|v|out)_lora\.(up|down)\."
        r"|.*\.(hada_w1_a|lokr_w[12](_a)?)$|bundle_emb\.|lora_controlnet$"
    ),
    ModelType.LORA,
)
_OTHERS = (
    _LORA,
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
    _Kind("an AnimateDiff motion module", re.compile(r".*\.motion_modules\.")),
    _Kind("an IP-Adapter", re.compile(r"(ip_adapter|image_proj)\.")),
    _Kind(
        "one component in diffusers' layout; load its whole repo, with spec.modelType: huggingface",
        re.compile(r"(down_blocks|up_blocks|transformer_blocks|text_model)\."),
    ),
    _Kind("a UNet without its pipeline", re.compile(r"input_blocks\.0\.0\.weight$")),
)


def kind_of(tensors: Mapping[str, Tensor]) -> ModelType | None:
    """The model type that a file of these tensors needs; None where it is no known one."""
    if _FIRST_CONVOLUTION in tensors:
        return ModelType.CUSTOM_CKPT
    found = _kind(tensors)
    return found.model_type if found else None


def refuse_other_kinds(tensors: Mapping[str, Tensor], wanted: ModelType) -> None:
    """Refuse, by name, what is recognised as another kind of model than the one wanted."""
    other = known_to_diffusers_only(tensors)
    if other is not None:
        raise _unsupported(other)
    found = _CHECKPOINT if _FIRST_CONVOLUTION in tensors else _kind(tensors)
    if found is not None and found.model_type is not wanted:
        raise _unsupported(str(found))


# What diffusers' from_single_file reads, and this loader does not.
_DIFFUSERS_ONLY = tuple(
    _Kind(what, re.compile(rf"(model\.diffusion_model\.)?{pattern}"))
    for what, pattern in (
        ("a Stable Diffusion 3 model", r"joint_blocks\.0\."),
        ("a FLUX model", r"double_blocks\.0\.img_attn\."),
        ("an AuraFlow model", r"double_layers\.0\.attn\."),
        ("a Lumina 2 model", r"cap_embedder\.0\.weight$"),
        ("a Z-Image model", r"layers\.0\.adaLN_modulation\.0\."),
        ("a Stable Cascade model", r"(clip_txt_mapper|down_blocks\.1\.0\.channelwise\.0)\."),
        ("a Sana model", r"blocks\.0\.cross_attn\.(q|kv)_linear\."),
        ("a Wan model", r"head\.modulation$"),
        ("a HunyuanVideo model", r"txt_in\.individual_token_refiner\."),
        ("an LTX-Video model", r"patchify_proj\."),
        ("a Mochi model", r"blocks\.0\.attn\.qkv_x\."),
    )
)
_PLAYGROUND_MARK = "edm_mean"
_COSXL_MARK = "edm_vpred.sigma_max"


def known_to_diffusers_only(tensors: Mapping[str, Tensor]) -> str | None:
    """What the file is, where diffusers converts it and this loader does not; else None."""
    if any(_LORA.pattern.match(name) for name in tensors):
        return None  # of whatever model
    if _PLAYGROUND_MARK in tensors:
        return "a Playground v2.5 checkpoint"
    if f"{UNET}label_emb.weight" in tensors and _channels(tensors) == 7:
        return "an upscaler"
    return next(
        (
            kind.what
            for kind in _DIFFUSERS_ONLY
            if any(kind.pattern.match(name) for name in tensors)
        ),
        None,
    )


def detect(tensors: Mapping[str, Tensor], base_model: BaseModelName | None = None) -> BaseModelName:
    """The architecture of a checkpoint in the original layout.

    base_model: what the user says it is, which decides where the file is not clear. Anything that
    cannot be converted is refused, by name.
    """
    other = known_to_diffusers_only(tensors)
    if other is not None:
        raise _unsupported(f"{other}, which this loader does not convert")
    if _FIRST_CONVOLUTION not in tensors:
        raise _unsupported(_other(tensors))
    if any(_CONTROLNET.pattern.match(name) for name in tensors):
        raise _unsupported(str(_CONTROLNET))
    if _COSXL_MARK in tensors:
        raise _unsupported("a CosXL checkpoint")
    found = _family(tensors, base_model)
    if base_model is not None and base_model is not found:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {base_model.value}, but the file is a checkpoint of {found.value}",
        )
    task = task_of(tensors)
    if task is not None and task not in architecture.load(found.value).variants:
        raise _unsupported(f"an {task} model of {found.value}, which no pipeline of diffusers runs")
    return found


def task_of(tensors: Mapping[str, Tensor]) -> str | None:
    """What a checkpoint's UNet does else than make an image of a text: INPAINTING or the other."""
    channels = _channels(tensors)
    if channels not in _TASKS:
        what = _OTHER_INPUTS.get(channels, f"a checkpoint whose UNet takes {channels} channels")
        raise _unsupported(
            f"{what} ({channels} input channels); supported are text-to-image, inpainting and"
            " instruct-pix2pix models"
        )
    return _TASKS[channels]


def _channels(tensors: Mapping[str, Tensor]) -> int:
    convolution = tensors.get(_FIRST_CONVOLUTION)
    shape = () if convolution is None else convolution.shape
    return shape[1] if len(shape) == 4 else 0


def _family(tensors: Mapping[str, Tensor], base_model: BaseModelName | None) -> BaseModelName:
    transformers = {name for name in tensors if _PROJECTION.match(name)}
    if _SIZE_EMBEDDING in tensors:
        if f"{UNET}input_blocks.1.1.proj_in.weight" in transformers:
            # SDXL's first level has no transformers.
            raise _unsupported("a Stable unCLIP checkpoint")
        # SDXL's UNet has three levels (input blocks 0 to 8), the refiner's four.
        refiner = any(name.startswith(f"{UNET}input_blocks.9.") for name in tensors)
        return BaseModelName.SDXL_REFINER if refiner else BaseModelName.SDXL
    # Transformers project by matrices in SD 2, by convolutions in SD 1.
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
    raise LoaderError(
        Reason.INVALID_SPEC,
        "the checkpoint's UNet and text encoder do not agree whether it is of sd1 or sd2: set"
        " spec.baseModel",
    )


def _unsupported(what: str) -> LoaderError:
    return LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {what}")


def _other(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "empty: it holds no tensors"
    found = other_kind(tensors)
    if found is not None:
        return found
    examples = ", ".join(snippet(name) for name in sorted(tensors)[:_EXAMPLES])
    return (
        f"no Stable Diffusion checkpoint: its {len(tensors)} tensors are named like {examples},"
        f" none is {_FIRST_CONVOLUTION}"
    )


def _kind(tensors: Mapping[str, Tensor], sought: ModelType | None = None) -> _Kind | None:
    """The first of the other kinds that a name speaks for, but for the one that was sought."""
    for kind in _OTHERS:
        is_sought = sought is not None and kind.model_type is sought
        if not is_sought and any(kind.pattern.match(name) for name in tensors):
            return kind
    return None


def other_kind(tensors: Mapping[str, Tensor], sought: ModelType | None = None) -> str | None:
    """What a file is that is no checkpoint, as far as its names tell.

    sought: the model type that was asked for, which it is known not to be.
    """
    found = _kind(tensors, sought)
    return None if found is None else str(found)
