"""The values among which the spec lets a user choose.

They stand apart from the spec because the help of `sd-loader` names them, and pydantic takes longer
to import than the help takes to print.
"""

from __future__ import annotations

from enum import StrEnum


class ModelType(StrEnum):
    """The kind of model. The values are those of the hosted API that the gateway replaces."""

    HUGGINGFACE = "huggingface"
    API_TRAINED = "api_trained"
    CUSTOM_CKPT = "custom_ckpt"
    LORA = "lora"
    EMBEDDINGS = "embeddings"
    CONTROLNET = "controlnet"
    VAE = "vae"


PIPELINES = frozenset({ModelType.HUGGINGFACE, ModelType.API_TRAINED, ModelType.CUSTOM_CKPT})
"""Types of whole models. A model of another type is an adapter or a VAE."""
UNKNOWN_TYPE = "unknown"
"""Shown as the type of a model if its spec has no type and no load has read its source."""


def contradiction(given: ModelType | None, found: str | None) -> str | None:
    """Return why a source of the found type cannot be loaded as the given type. None if it can.

    Two types of whole models do not contradict each other: a repo may hold a single checkpoint.
    """
    fits = given == found or {given, found} <= PIPELINES
    if given is None or found is None or fits:
        return None
    return (
        f"spec.modelType is {given.value}, but the source is of type {found}: set it to {found}, or"
        " remove it"
    )


class Revision(StrEnum):
    """Precision of the published weights; the API that the gateway replaces calls it revision."""

    FP16 = "fp16"
    FP32 = "fp32"
    BF16 = "bf16"


class Weights(StrEnum):
    """Which weights to publish if a checkpoint has both sets."""

    STANDARD = "standard"
    EMA = "ema"


class BaseModelName(StrEnum):
    """The families of models. The values are InvokeAI's, where InvokeAI has the family.

    `sd_api.taxonomy` has their titles and variants, and reads the names that people write.
    """

    SD1 = "sd-1"
    SD2 = "sd-2"
    SDXL = "sdxl"
    SDXL_REFINER = "sdxl-refiner"
    SD3 = "sd-3"
    FLUX = "flux"
    FLUX2 = "flux2"
    FLUX3 = "flux3"
    CHROMA = "chroma"
    QWEN_IMAGE = "qwen-image"
    Z_IMAGE = "z-image"
    WAN = "wan"
    LUMINA2 = "lumina2"
    AURAFLOW = "auraflow"
    COGVIDEOX = "cogvideox"
    COGVIEW4 = "cogview4"
    ERNIE_IMAGE = "ernie-image"
    HIDREAM = "hidream"
    HUNYUAN_VIDEO = "hunyuan-video"
    IDEOGRAM4 = "ideogram-4"
    KREA2 = "krea-2"
    LTX = "ltx"
    LTX2 = "ltx2"
    MOCHI = "mochi"
    PIXART = "pixart"
    SANA = "sana"


class ArtifactFormat(StrEnum):
    """How a published folder is opened. The values are InvokeAI's, where InvokeAI has the format.

    A newer loader may report other values.
    """

    DIFFUSERS = "diffusers"
    """`from_pretrained` opens the folder, or `load_lora_weights` if it is a LoRA."""

    PEFT = "peft"
    """A LoRA that diffusers and PEFT open."""

    EMBEDDING_FOLDER = "embedding_folder"
    """An embedding, which `load_textual_inversion` opens."""


class ComponentName(StrEnum):
    """The components of a pipeline that can be replaced. The names are those of diffusers."""

    TRANSFORMER = "transformer"
    TRANSFORMER_2 = "transformer_2"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"
    TEXT_ENCODER_2 = "text_encoder_2"
    TEXT_ENCODER_3 = "text_encoder_3"
    TEXT_ENCODER_4 = "text_encoder_4"


class LoraFormat(StrEnum):
    """The formats in which a LoRA is published."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"


class PredictionType(StrEnum):
    """What the UNet predicts. The values are those of diffusers."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class DeletionPolicy(StrEnum):
    """What happens to the published files when the resource is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"


class VerifyDigest(StrEnum):
    """When a load compares a file with the SHA-256 that the source states."""

    ALWAYS = "always"
    WHEN_WHOLE = "whenWhole"


class Pictures(StrEnum):
    """Which pictures of the source a load may keep, by the rating that the source gives them."""

    SAFE = "safe"
    ALL = "all"
    NONE = "none"
