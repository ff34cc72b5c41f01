"""Detects the kind of model in a file from the names of its tensors. Refuses wrong kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import ROLES
from sd_loader.convert.detect.transformers import TransformerFile, transformer_of
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

UNET_PREFIX = "model.diffusion_model."
"""Prefix of the UNet's names in the original layout."""

FIRST_CONVOLUTION = f"{UNET_PREFIX}input_blocks.0.0.weight"
"""The tensor that identifies a checkpoint."""

_OF_CHECKPOINTS = (UNET_PREFIX, "cond_stage_model.", "conditioner.")
"""Prefixes of UNets and text encoders. A file with such a name is a checkpoint, not a VAE."""
_EXAMPLES = 3


@dataclass(frozen=True)
class Kind:
    """A kind of model that is recognised by the name of one of its tensors."""

    what: str
    """Its usual name, with an article."""

    pattern: re.Pattern[str]
    """Matches the beginning of a name that only such a model has."""

    model_type: ModelType | None = None
    """The model type that loads it. None if no type does."""

    def __str__(self) -> str:
        if self.model_type is None:
            return self.what
        return f"{self.what}: it needs spec.modelType: {self.model_type.value}"

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a file with these tensors is of this kind."""
        return any(self.pattern.match(name) for name in tensors)


CHECKPOINT = Kind("a checkpoint", re.compile(re.escape(FIRST_CONVOLUTION)), ModelType.CUSTOM_CKPT)
CONTROLNET = Kind(
    "a ControlNet",
    re.compile(r"(control_model|controlnet_cond_embedding|controlnet_down_blocks)\.|lllite_"),
    ModelType.CONTROLNET,
)
LORA = Kind(
    "a LoRA",
    re.compile(
        r"(lora|oft)_(unet|te\d?|transformer)_|lycoris_"
        r"|.*\.(lora_(up|down|A|B|linear_layer)|lora\.(up|down))\."
        r"|.*\.to_(q|k|v|out)_lora\.(up|down)\."
        r"|.*\.processor\.(qkv|proj)_lora\d?\.(up|down)\."
        rf"|.*\.({ROLES})|bundle_emb\.|lora_controlnet$"
    ),
    ModelType.LORA,
)
_OF_DIFFUSERS = "in diffusers' layout; load its whole repo, with spec.modelType: huggingface"
_KINDS = (
    LORA,
    CONTROLNET,
    Kind(
        "a textual-inversion embedding",
        re.compile(
            r"(emb_params|string_to_param(\..*)?|(clip_[lg]|t5)(_out)?|text_encoders_[01]|\*|<[^>]*>)$"
        ),
        ModelType.EMBEDDINGS,
    ),
    Kind(
        "a VAE",
        re.compile(r"(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid)\."),
        ModelType.VAE,
    ),
    Kind("a VAE", re.compile(r"(encoder|decoder)\.mid_block\."), ModelType.VAE),
    Kind("an AnimateDiff motion module", re.compile(r".*\.motion_modules\.")),
    Kind("an IP-Adapter", re.compile(r"(ip_adapter|image_proj)\.")),
    Kind("a hypernetwork, which is not supported", re.compile(r"\d+\.[01]\.linear")),
    Kind(
        f"a UNet without its pipeline {_OF_DIFFUSERS}",
        re.compile(r"(unet\.)?(down_blocks|mid_block|up_blocks)\."),
    ),
    Kind(
        f"a transformer without its pipeline {_OF_DIFFUSERS}",
        re.compile(r"(transformer\.)?(single_)?transformer_blocks\."),
    ),
    Kind(
        f"a text encoder without its pipeline {_OF_DIFFUSERS}",
        re.compile(
            r"(text_encoder(_2)?\.)?(text_model\.|encoder\.layers\.|embeddings\.(token|position)_embedding\.)"
        ),
    ),
    Kind(
        "a UNet without its pipeline; use the whole checkpoint, which has a VAE and a text encoder,"
        " too",
        re.compile(r"(diffusion_model\.|unet\.)?input_blocks\.0\.0\.weight$"),
    ),
)
"""All kinds except checkpoints. The first that fits counts."""

_STABLE_CASCADE = Kind(
    "a Stable Cascade model",
    re.compile(r"(model\.diffusion_model\.)?(clip_txt_mapper|down_blocks\.1\.0\.channelwise\.0)\."),
)
_CONTROLNET_OF_TRANSFORMER = re.compile(r"controlnet_(x_embedder|(single_)?blocks)\.")
_CONTROLNET_FAMILIES = {
    r"transformer_blocks\.0\.img_mod\.": "Qwen-Image",
    r"pos_embed_input\.proj\.": "Stable Diffusion 3",
    r"transformer_blocks\.0\.ff\.conv_inverted\.": "Sana",
    r"(controlnet_x_embedder|(single_)?transformer_blocks|double_blocks)\.": "FLUX.1",
}
"""Families by the beginning of a tensor's name. The first pattern that matches counts."""
_PLAYGROUND_MARK = "edm_mean"
_UPSCALER_CHANNELS = 7
_NAMES = {ModelType.CONTROLNET: "ControlNet", ModelType.VAE: "VAE"}


def model_type_of(tensors: Mapping[str, Tensor]) -> ModelType | None:
    """The model type that loads a file with these tensors.

    None if the file is not recognised, or if no type loads it.
    """
    kind = _kind(tensors)
    return kind.model_type if kind else None


def found_type(tensors: Mapping[str, Tensor]) -> ModelType:
    """The model type to use if the user does not name one.

    A file that is not recognised counts as a checkpoint, because most users load checkpoints. The
    plan then reports why the file cannot be loaded.
    """
    if not LORA.fits(tensors):
        if CONTROLNET.fits(tensors):
            return ModelType.CONTROLNET  # Some files hold its checkpoint, too.
        is_whole = any(name.startswith(_OF_CHECKPOINTS) for name in tensors)
        if is_whole or transformer_of(tensors) or other_pipeline(tensors):
            return ModelType.CUSTOM_CKPT
    return model_type_of(tensors) or ModelType.CUSTOM_CKPT


def other_pipeline(tensors: Mapping[str, Tensor]) -> str | None:
    """Describe a pipeline whose single files this loader does not convert. None for other files."""
    if LORA.fits(tensors):
        return None  # whatever model the LoRA is for
    if _PLAYGROUND_MARK in tensors:
        return "a Playground v2.5 checkpoint"
    is_labelled = f"{UNET_PREFIX}label_emb.weight" in tensors
    if is_labelled and input_channels(tensors) == _UPSCALER_CHANNELS:
        return "an upscaler"
    return _STABLE_CASCADE.what if _STABLE_CASCADE.fits(tensors) else None


def transformer_file(tensors: Mapping[str, Tensor]) -> TransformerFile | None:
    """The transformer in a file. None without one, and for a LoRA or ControlNet with such names."""
    is_other = LORA.fits(tensors) or _controlnet_of_transformer(tensors) is not None
    return None if is_other else transformer_of(tensors)


def input_channels(tensors: Mapping[str, Tensor]) -> int:
    """Number of channels that a checkpoint's UNet reads. 0 if unknown."""
    convolution = tensors.get(FIRST_CONVOLUTION)
    shape = () if convolution is None else convolution.shape
    return shape[1] if len(shape) == 4 else 0


def describe_kind(tensors: Mapping[str, Tensor], excluded: ModelType | None = None) -> str | None:
    """Describe a file that is not a checkpoint, and name the type that loads it. None if unknown.

    excluded: a model type that the caller has ruled out.
    """
    kind = _other_kind(tensors, excluded)
    return None if kind is None else str(kind)


def refuse_other_kinds(tensors: Mapping[str, Tensor], wanted: ModelType) -> None:
    """Refuse a file that is recognised as another kind of model than the wanted one."""
    foreign = other_pipeline(tensors) or transformer_file(tensors)
    if foreign is not None:
        raise unsupported(str(foreign))
    kind = _kind(tensors)
    if kind is not None and kind.model_type is not wanted:
        raise unsupported(str(kind))


def refuse_patterns(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> None:
    """Refuse a file with a name that matches a pattern. kinds: descriptions by pattern."""
    for pattern, what in kinds.items():
        if any(re.match(pattern, name) for name in tensors):
            raise unsupported(what)


def wrong_type(tensors: Mapping[str, Tensor], wanted: ModelType, mark: str) -> LoaderError:
    """Return the error for a file of another type. It describes the file and names its type.

    mark: the tensor that identifies the wanted type.
    """
    name = _NAMES[wanted]
    if any(tensor.startswith(UNET_PREFIX) for tensor in tensors):
        return unsupported(
            f"a checkpoint without a {name} of its own: it needs spec.modelType:"
            f" {ModelType.CUSTOM_CKPT.value}"
        )
    kind = describe_kind(tensors, wanted)
    if kind is not None:
        return unsupported(kind)
    return LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the file is not a {name}: its {len(tensors)} tensors are named like"
        f" {example_names(tensors) or 'none'}, none is {mark}",
    )


def unsupported(what: str) -> LoaderError:
    """Return the error for a file that is not supported. what: the file, in words."""
    return LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {what}")


def example_names(tensors: Mapping[str, Tensor]) -> str:
    """A few names of tensors, for messages."""
    return ", ".join(snippet(name) for name in sorted(tensors)[:_EXAMPLES])


def _kind(tensors: Mapping[str, Tensor]) -> Kind | None:
    return CHECKPOINT if FIRST_CONVOLUTION in tensors else _other_kind(tensors)


def _other_kind(tensors: Mapping[str, Tensor], excluded: ModelType | None = None) -> Kind | None:
    controlnet = _controlnet_of_transformer(tensors)
    if controlnet is not None and not LORA.fits(tensors):
        return controlnet
    for kind in _KINDS:
        is_excluded = excluded is not None and kind.model_type is excluded
        if not is_excluded and kind.fits(tensors):
            return kind
    return None


def _controlnet_of_transformer(tensors: Mapping[str, Tensor]) -> Kind | None:
    """Return the kind of a ControlNet that is for a model with a transformer. None for other files.

    diffusers does not read such a ControlNet as a single file: no tensor shows its number of heads.
    """
    if not any(_CONTROLNET_OF_TRANSFORMER.match(name) for name in tensors):
        return None
    families = (
        family
        for pattern, family in _CONTROLNET_FAMILIES.items()
        if any(re.match(pattern, name) for name in tensors)
    )
    return Kind(
        f"a ControlNet of {next(families, 'a model with a transformer')}, which diffusers reads"
        " only with its config; use its repo in diffusers' layout, with spec.modelType:"
        f" {ModelType.CONTROLNET.value}",
        _CONTROLNET_OF_TRANSFORMER,
    )
