"""Checks whole configs: their keys must agree, and the file must have the tensors they need.

diffusers or transformers could not open a model whose config fails a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.convert.tables import config_shapes, controlnet_shapes
from sd_loader.diffusers_repo.config_keys import defaults
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet
from sd_loader.tensors import Source

_PER_LEVEL = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "cross_attention_dim",
    "layers_per_block",
    "num_attention_heads",
    "only_cross_attention",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
)
_PER_CHANNEL = ("latents_mean", "latents_std")
_PARTNERS = (
    ("addition_embed_type", ("text_time",), "addition_time_embed_dim"),
    ("addition_embed_type", ("text_time",), "projection_class_embeddings_input_dim"),
    (
        "class_embed_type",
        ("projection", "simple_projection"),
        "projection_class_embeddings_input_dim",
    ),
    ("encoder_hid_dim_type", ("text_proj",), "encoder_hid_dim"),
)
"""A key, some of its values, and the key that must be set if the first has such a value."""

_ONE_OF = ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas")
_SHAPES = {**config_shapes.CLASSES, **controlnet_shapes.CLASSES}
_TO_ZERO = ("dpmsolver++", "sde-dpmsolver++")
"""The values of algorithm_type that allow final_sigmas_type: zero."""


def contradiction(component: str, key: str, value: object, expected: str) -> NoReturn:
    """Refuse the value of a key in a config. The message states the expected value."""
    raise LoaderError(
        Reason.CONVERSION_FAILED,
        f"{component}/{CONFIG_NAME}: {key} is {json_snippet(value)}; it should be {expected}",
    )


def check_heads(path: str, config: Mapping[str, Any]) -> None:
    """Refuse widths that are not multiples of the numbers of attention heads and norm groups."""
    widths = config.get("block_out_channels", [])
    groups = config.get("norm_num_groups", 1)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 1)
    if isinstance(heads, int):
        heads = [heads] * len(widths)
    divisions = [(width, groups) for width in widths] + list(zip(widths, heads, strict=True))
    if "hidden_size" in config:
        divisions.append((config["hidden_size"], config["num_attention_heads"]))
    for width, count in divisions:
        if width % count:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{path.partition('/')[0]}: a width of {width} does not divide into {count} parts,"
                " as the architecture needs",
            )


def check_levels(component: str, config: Mapping[str, Any]) -> None:
    """Refuse a config whose lists for the levels have different lengths."""
    lists = {key: config[key] for key in _PER_LEVEL if isinstance(config.get(key), list)}
    for key, value in lists.items():
        levels = len(next(iter(lists.values())))
        if len(value) != levels:
            contradiction(component, key, value, f"a list of {levels} items, one for each level")


def is_checked(class_name: str) -> bool:
    """Return whether `check_opens` knows the tensors that a class makes from its config."""
    return class_name in _SHAPES


def check_opens(
    component: str, class_name: str, config: Mapping[str, Any], tensors: Mapping[str, Source]
) -> None:
    """Refuse a config from which its class cannot be made, or which the tensors do not fit.

    Tensors are checked only for the classes of `is_checked`. config: as it is published; an absent
    key has its default.
    """
    complete = {**defaults(class_name), **config}
    check_levels(component, complete)
    check_heads(f"{component}/{CONFIG_NAME}", complete)
    for key, values, partner in _PARTNERS:
        if complete.get(key) in values and complete.get(partner) is None:
            contradiction(component, partner, None, f"a number, as {key} is {complete[key]}")
    depths = complete.get("transformer_layers_per_block")
    reverse = complete.get("reverse_transformer_layers_per_block")
    if reverse is None and isinstance(depths, list) and any(isinstance(it, list) for it in depths):
        contradiction(
            component,
            "reverse_transformer_layers_per_block",
            None,
            "a list, as transformer_layers_per_block has a list in it",
        )
    for key in _PER_CHANNEL:
        items, channels = complete.get(key), complete.get("latent_channels")
        if items is not None and len(items) != channels:
            contradiction(
                component, key, items, f"a list of {channels} items, one for each channel"
            )
    expected = _SHAPES.get(class_name)
    if expected is not None:
        try:
            for name, shape in expected(complete):
                _check_tensor(component, name, shape, tensors.get(name))
        except config_shapes.ShortListError as error:
            contradiction(
                component, error.key, complete[error.key], "a list with one item for each layer"
            )


def _check_tensor(component: str, name: str, shape: tuple[int, ...], tensor: Source | None) -> None:
    if tensor is None:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{component} lacks the tensor {name}, which its {CONFIG_NAME} asks for",
        )
    if tensor.shape != shape:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{component}: {name} has the shape {list(tensor.shape)}; it should be {list(shape)},"
            f" as its {CONFIG_NAME} says",
        )


def check_scheduler(class_name: str, config: Mapping[str, Any], path: str) -> None:
    """Refuse a config from which the scheduler's class cannot be made."""
    complete = {**defaults(class_name), **config}
    own = defaults(class_name).keys()
    used = [key for key in _ONE_OF if key in own and complete[key]]
    betas, steps = complete.get("trained_betas"), complete.get("num_train_timesteps")
    problem = None
    if len(used) > 1:
        problem = f"{' and '.join(used)} are true; only one of them can be"
    elif (
        {"algorithm_type", "final_sigmas_type"} <= own
        and complete["algorithm_type"] not in _TO_ZERO
        and complete["final_sigmas_type"] == "zero"
    ):
        problem = (
            f"algorithm_type is {complete['algorithm_type']}; it needs final_sigmas_type: sigma_min"
        )
    elif "shift_terminal" in own and complete["shift_terminal"] and not complete["use_flow_sigmas"]:
        problem = "shift_terminal is set; it needs use_flow_sigmas: true"
    elif betas is not None and len(betas) != steps:
        problem = f"trained_betas has {len(betas)} items; it should have {steps}, one for each step"
    if problem is not None:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{path}: {problem}")
