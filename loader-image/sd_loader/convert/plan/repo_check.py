"""Checks that the tensors of a repo's component fit its config, so that diffusers can open it.

If the structure is a known family's, the shape of every tensor is compared with the shapes of the
others, and the config is completed. In any case, each tensor that the config asks for must be
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.plan.config_rules import check_levels, check_opens, contradiction
from sd_loader.convert.tables.architecture import Row, fill_in, load_architecture
from sd_loader.convert.tables.dimensions import Dimensions, describe, matches
from sd_loader.convert.tables.unet import configured_blocks
from sd_loader.diffusers_repo.config_keys import allowed_config
from sd_loader.diffusers_repo.index import CONFIG_NAME, Pipeline
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

# The fields that make up a component's structure, with diffusers' defaults. If all have the usual
# values, the tensors have the usual names.
_STRUCTURE = {
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "conv_in_kernel": 3,
    "down_block_types": None,
    "dual_cross_attention": False,
    "layers_per_block": None,
    "mid_block_add_attention": True,
    "only_cross_attention": False,
    "up_block_types": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""The components whose class is the same in all pipelines."""
_CHANNELS = {"in_channels", "out_channels", "latent_channels"}


def checked_config(
    component: str,
    pipeline: Pipeline,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dimensions: Dimensions,
) -> dict[str, Any]:
    """Complete the config from the tensors. Refuse a contradiction.

    Adds the dimensions that the shapes show to `dimensions`, which the components of a pipeline
    share. Call it for the text encoders first: the shapes of the UNet depend on theirs.
    """
    class_name = _CLASSES.get(component) or pipeline.components[component]
    allowed_config(config, class_name, f"{component}/{CONFIG_NAME}")
    check_levels(component, config)
    shown = _shown(component, pipeline, config, tensors, dimensions)
    for key, value in shown.items():
        if key in config and config[key] != value:
            contradiction(component, key, config[key], f"{value}, as its tensors have it")
    checked = {**config, **shown}
    check_opens(component, class_name, checked, tensors)
    return checked


def _shown(
    component: str,
    pipeline: Pipeline,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dimensions: Dimensions,
) -> dict[str, Any]:
    """The fields of the config that the tensors determine. Empty if the structure is unknown.

    Refuses tensors that are missing or do not fit the structure.
    """
    rows: Iterable[Row]
    if component.startswith("text_encoder"):
        rows, template = _text_encoder(component, pipeline, tensors, dimensions)
    else:
        known = _known_structure(component, pipeline, config)
        if known is None:
            return {}
        rows, template = known
    _check_tensors(component, _adapted(rows, config), tensors, dimensions)
    filled = fill_in(template, dimensions)
    return {key: filled[key] for key, value in template.items() if _is_shown(key, value)}


def _known_structure(
    component: str, pipeline: Pipeline, config: Mapping[str, Any]
) -> tuple[Iterable[Row], dict[str, Any]] | None:
    """Rows and template of the structure that the config describes. None if it is unknown."""
    for family in ("sdxl", "sdxl-refiner") if pipeline.is_sdxl else ("sd-1",):
        for known in load_architecture(family).unets():
            template = known.templates[f"{component}/{CONFIG_NAME}"]
            if any(
                config.get(key, default) != template.get(key, default)
                for key, default in _STRUCTURE.items()
            ):
                continue
            table = known.component(component)
            if component != "unet":
                return table.rows, template
            blocks = configured_blocks(table, config)
            if blocks is not None:
                return blocks.rows(table.rows), template
    return None


def _text_encoder(
    component: str, pipeline: Pipeline, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> tuple[list[Row], dict[str, Any]]:
    """Rows and template of a CLIP text encoder. Only sizes differ between families."""
    known = load_architecture("sdxl")
    table = known.component("text_encoder_2")
    template = dict(known.templates[f"text_encoder_2/{CONFIG_NAME}"])
    rows = table.rows
    if pipeline.components[component] != "CLIPTextModelWithProjection":
        rows = tuple(row for row in rows if row.target != "text_projection.weight")
        del template["projection_dim"]
    found = {row.layer for row in rows if row.target in tensors} - {None}
    layers = max(1, len(found))
    dimensions[f"{component}_layers"] = layers

    def renamed(text: str) -> str:
        return text.replace(table.name, component)

    return (
        [
            Row(row.source, row.target, row.op, renamed(row.shape))
            for row in rows
            if row.layer is None or row.layer < layers
        ],
        {
            key: renamed(value) if isinstance(value, str) and value.startswith("$") else value
            for key, value in template.items()
        },
    )


def _adapted(rows: Iterable[Row], config: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows with the shapes that the config selects. The structure stays the same."""
    for row in rows:
        shape = row.shape
        if row.target.endswith((".proj_in.weight", ".proj_out.weight")):
            # A matrix, or a 1x1 convolution.
            width = " ".join(shape.split()[:2])
            shape = width if config.get("use_linear_projection") else f"{width} 1 1"
        yield Row(row.source, row.target, row.op, shape)


def _check_tensors(
    component: str, rows: Iterator[Row], tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> None:
    """Refuse tensors that are missing or do not fit: diffusers would use random numbers."""
    missing = []
    for row in rows:
        tensor = tensors.get(row.target)
        if tensor is None:
            if not _is_optional(row.target, tensors):
                missing.append(row.target)
        elif not matches(row.shape, tensor.shape, dimensions):
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{component}: {row.target} has the shape {list(tensor.shape)}; it should be"
                f" [{describe(row.shape, dimensions)}], as the other tensors are",
            )
    if missing:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{component} lacks {len(missing)} tensors, first {missing[0]}",
        )


def _is_optional(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if a tensor is the shortcut of a resnet that works without one.

    This is so if the resnet's input and output have the same width.
    """
    resnet, found, _ = name.partition(".conv_shortcut.")
    before, after = (tensors.get(f"{resnet}.{norm}.weight") for norm in ("norm1", "norm2"))
    return bool(found) and before is not None and after is not None and before.shape == after.shape


def _is_shown(key: str, template: object) -> bool:
    """Return True if the shapes of tensors determine the value of a config key.

    They do not determine the number of attention heads.
    """
    first = template[0] if isinstance(template, list) and template else template
    return key in _CHANNELS or (
        isinstance(first, str) and first.startswith("$") and "//" not in first
    )
