"""Makes the small files of a checkpoint's pipeline: index, configs, scheduler, tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.choices import PredictionType
from sd_api.reasons import Reason
from sd_loader.convert.plan.config_rules import check_heads
from sd_loader.convert.plan.original import NO_ORIGINAL, OriginalConfig
from sd_loader.convert.plan.precision import torch_dtype
from sd_loader.convert.tables.architecture import UNET_CONFIG, Architecture, fill_in
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype

_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Choices:
    """Values that the shapes of a checkpoint's tensors do not show."""

    prediction_type: PredictionType = PredictionType.EPSILON
    zero_terminal_snr: bool = False
    """Whether the noise schedule ends without any signal."""

    upcast_attention: bool | None = None
    """None keeps the architecture's setting."""

    original: OriginalConfig = NO_ORIGINAL


def pipeline_class(architecture: Architecture) -> str:
    """Diffusers' class of the pipeline."""
    return str(architecture.templates[INDEX_NAME]["_class_name"])


def small_files(
    architecture: Architecture,
    dimensions: Dimensions,
    dtypes: Mapping[str, set[Dtype]],
    choices: Choices,
) -> list[SmallFile]:
    """All files except the weights.

    dtypes: the types of each component's tensors. Extra components are left out, because they have
    their own configs.
    """
    elsewhere = {f"{component.name}/{CONFIG_NAME}" for component in architecture.components} - {
        f"{name}/{CONFIG_NAME}" for name in dtypes
    }
    configs: dict[str, Any] = {
        path: fill_in(template, dimensions)
        for path, template in architecture.templates.items()
        if path not in elsewhere
    }
    configs[UNET_CONFIG] = _unet(configs[UNET_CONFIG], dimensions, choices)
    for path, config in configs.items():
        check_heads(path, config)
    for component, found in dtypes.items():
        if component.startswith("text_encoder"):
            configs[f"{component}/{CONFIG_NAME}"] |= torch_dtype(found)
    configs[_SCHEDULER] = _scheduler(configs[_SCHEDULER], choices)
    configs[INDEX_NAME]["scheduler"] = ["diffusers", configs[_SCHEDULER]["_class_name"]]
    files = [json_file(path, config) for path, config in configs.items()]
    for path in configs:
        folder, _, name = path.partition("/")
        if name == "tokenizer_config.json":
            files += vocabulary_files(folder)
    return files


def vocabulary_files(folder: str) -> list[SmallFile]:
    """The files of CLIP's vocabulary, in the given folder of a tokenizer."""
    return [SmallFile(f"{folder}/{file}", vocabulary_file(file)) for file in VOCABULARY_FILES]


def _unet(config: dict[str, Any], dimensions: Dimensions, choices: Choices) -> dict[str, Any]:
    original = choices.original
    for key, configured, found in (
        ("in_channels", original.in_channels, config["in_channels"]),
        ("model_channels", original.model_channels, dimensions["unet_0"]),
        ("context_dim", original.context_dim, config["cross_attention_dim"]),
    ):
        if configured not in (None, found):
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"spec.originalConfig says {key}: {configured}, but the checkpoint's is {found}",
            )
    config = dict(config)
    if original.image_size is not None:
        config["sample_size"] = original.image_size
    if original.heads is not None:
        config["attention_head_dim"] = original.heads
    elif original.head_channels is not None:
        config["attention_head_dim"] = [
            max(1, width // original.head_channels) for width in config["block_out_channels"]
        ]
    if choices.upcast_attention is not None:
        config["upcast_attention"] = choices.upcast_attention
    return config


def _scheduler(config: dict[str, Any], choices: Choices) -> dict[str, Any]:
    original = choices.original
    given = {
        "beta_start": original.beta_start,
        "beta_end": original.beta_end,
        "num_train_timesteps": original.timesteps,
        "prediction_type": choices.prediction_type.value,
    }
    config = {**config, **{key: value for key, value in given.items() if value is not None}}
    if not choices.zero_terminal_snr:
        return config
    if config["_class_name"] == "PNDMScheduler":  # which cannot rescale its betas
        config = {**config, "_class_name": "DDIMScheduler"}
    # Sampling must begin at the last step, which has no signal.
    return {**config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
