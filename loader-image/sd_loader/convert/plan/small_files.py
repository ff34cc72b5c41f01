"""The small files of a pipeline's folder: index, configs, scheduler, tokenizers."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.reasons import Reason
from sd_api.spec import PredictionType
from sd_loader.convert.plan.original import NOTHING_SAID, OriginalConfig
from sd_loader.convert.tables.architecture import DATA, UNET_CONFIG, Architecture, fill_in
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
UNET = UNET_CONFIG

_VOCABULARY = ("vocab.json", "merges.txt")
_TORCH_DTYPES = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}


@dataclass(frozen=True)
class Choices:
    """What shapes do not say. upcast_attention: None leaves it as the architecture has it."""

    prediction_type: PredictionType = PredictionType.EPSILON
    zero_terminal_snr: bool = False
    upcast_attention: bool | None = None
    original: OriginalConfig = NOTHING_SAID


def pipeline_class(architecture: Architecture) -> str:
    """Diffusers' class for the whole."""
    return str(architecture.templates[INDEX]["_class_name"])


def small_files(
    architecture: Architecture,
    dimensions: Dimensions,
    dtypes: Mapping[str, set[Dtype]],
    choices: Choices,
) -> list[SmallFile]:
    """All files but the weights. dtypes: types of the tensors of each component."""
    # A component without tensors of its own is supplied from elsewhere, config and all.
    elsewhere = {f"{part.name}/config.json" for part in architecture.components} - {
        f"{name}/config.json" for name in dtypes
    }
    configs: dict[str, Any] = {
        path: fill_in(template, dimensions)
        for path, template in architecture.templates.items()
        if path not in elsewhere
    }
    configs[UNET] = _unet(configs[UNET], dimensions, choices)
    for path, config in configs.items():
        check_heads(path, config)
    for component, found in dtypes.items():
        # transformers takes it for the precision to load in; diffusers has no such entry.
        if component.startswith("text_encoder") and len(found) == 1:
            configs[f"{component}/config.json"]["torch_dtype"] = _TORCH_DTYPES[next(iter(found))]
    configs[SCHEDULER] = _scheduler(configs[SCHEDULER], choices)
    configs[INDEX]["scheduler"] = ["diffusers", configs[SCHEDULER]["_class_name"]]
    files = [json_file(path, config) for path, config in configs.items()]
    for path in configs:
        folder, _, name = path.partition("/")
        if name == "tokenizer_config.json":
            files += [SmallFile(f"{folder}/{name}", clip_vocabulary(name)) for name in _VOCABULARY]
    return files


def clip_vocabulary(name: str) -> bytes:
    """CLIP's vocab.json or merges.txt, as the repositories ship it."""
    return gzip.decompress((DATA / "clip" / f"{name}.gz").read_bytes())


def _unet(config: dict[str, Any], dimensions: Dimensions, choices: Choices) -> dict[str, Any]:
    original = choices.original
    for key, said, found in (
        ("in_channels", original.in_channels, config["in_channels"]),
        ("model_channels", original.model_channels, dimensions["unet_0"]),
        ("context_dim", original.context_dim, config["cross_attention_dim"]),
    ):
        if said not in (None, found):
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"spec.originalConfig says {key}: {said}, but the checkpoint's is {found}",
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
    said = {
        "beta_start": original.beta_start,
        "beta_end": original.beta_end,
        "num_train_timesteps": original.timesteps,
        "prediction_type": choices.prediction_type.value,
    }
    config = {**config, **{key: value for key, value in said.items() if value is not None}}
    if not choices.zero_terminal_snr:
        return config
    if config["_class_name"] == "PNDMScheduler":  # which cannot rescale its betas
        config = {**config, "_class_name": "DDIMScheduler"}
    # Sampling must begin at the very last step, the one without signal.
    return {**config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def check_heads(path: str, config: dict[str, Any]) -> None:
    """Widths must divide into heads and norm groups, which shapes do not say."""
    widths = config.get("block_out_channels", [])
    groups = config.get("norm_num_groups", 1)
    heads = config.get("attention_head_dim", 1)
    if isinstance(heads, int):
        heads = [heads] * len(widths)
    parts = [(width, groups) for width in widths] + list(zip(widths, heads, strict=True))
    if "hidden_size" in config:
        parts.append((config["hidden_size"], config["num_attention_heads"]))
    for width, count in parts:
        if width % count:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{path.partition('/')[0]}: a width of {width} does not divide into {count} parts,"
                " as the architecture needs",
            )
