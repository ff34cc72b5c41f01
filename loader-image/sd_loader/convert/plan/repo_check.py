"""Whether a repo's component is what its config says: a contradictory folder would not open.

Where the structure is a known one, every tensor's shape is compared with the others and with the
config. Of other structures, the config must at least be of the right kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_fields import check_fields, contradiction
from sd_loader.convert.plan.small_files import check_heads
from sd_loader.convert.tables import architecture
from sd_loader.convert.tables.architecture import Row, fill_in
from sd_loader.convert.tables.dimensions import Dimensions, describe, matches
from sd_loader.convert.tables.unet import blocks_said
from sd_loader.diffusers_repo.index import Pipeline
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

# What a component's structure is made of, with diffusers' defaults; where all of it is as usual,
# so are the names of the tensors.
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
_CHANNELS = {"in_channels", "out_channels", "latent_channels"}


def checked_config(
    component: str,
    pipeline: Pipeline,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dimensions: Dimensions,
) -> dict[str, Any]:
    """The config, completed by what the tensors say; a contradiction is an error.

    Adds what shapes say to `dimensions`, which all components share: text encoders come first.
    """
    check_fields(component, config)
    rows: Iterable[Row]
    if component.startswith("text_encoder"):
        rows, template = _text_encoder(component, pipeline, tensors, dimensions)
    else:
        known = _known_structure(component, pipeline, config)
        if known is None:
            return dict(config)
        rows, template = known
    _check_tensors(component, _adapted(rows, config), tensors, dimensions)
    filled = fill_in(template, dimensions)
    told = {key: filled[key] for key, value in template.items() if _told(key, value)}
    for key, value in told.items():
        if key in config and config[key] != value:
            contradiction(component, key, config[key], f"{value}, as its tensors have it")
    check_heads(f"{component}/config.json", {**filled, **config})
    return {**config, **told}


def _known_structure(
    component: str, pipeline: Pipeline, config: Mapping[str, Any]
) -> tuple[Iterable[Row], dict[str, Any]] | None:
    """Rows and template of the family and variant whose structure the config describes."""
    for family in ("sdxl", "sdxl-refiner") if pipeline.is_sdxl else ("sd1",):
        for known in architecture.load(family).unets():
            template = known.templates[f"{component}/config.json"]
            if any(
                config.get(key, default) != template.get(key, default)
                for key, default in _STRUCTURE.items()
            ):
                continue
            part = known.component(component)
            if component != "unet":
                return part.rows, template
            blocks = blocks_said(part, config)
            if blocks is not None:
                return blocks.rows(part.rows), template
    return None


def _text_encoder(
    component: str, pipeline: Pipeline, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> tuple[list[Row], dict[str, Any]]:
    """Rows and template of a CLIP text encoder: the same in every family, but for the layers."""
    known = architecture.load("sdxl")
    part = next(one for one in known.components if one.name == "text_encoder_2")
    template = dict(known.templates["text_encoder_2/config.json"])
    rows = part.rows
    if pipeline.components[component] != "CLIPTextModelWithProjection":
        rows = tuple(row for row in rows if row.target != "text_projection.weight")
        del template["projection_dim"]
    found = {row.layer for row in rows if row.target in tensors} - {None}
    layers = max(1, len(found))
    dimensions[f"{component}_layers"] = layers

    def renamed(text: str) -> str:
        return text.replace(part.name, component)

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
    """The rows with the shapes that a config may choose without another structure."""
    for row in rows:
        shape = row.shape
        if row.target.endswith((".proj_in.weight", ".proj_out.weight")):
            # A matrix, or a convolution of one pixel.
            width = " ".join(shape.split()[:2])
            shape = width if config.get("use_linear_projection") else f"{width} 1 1"
        yield Row(row.source, row.target, row.op, shape)


def _check_tensors(
    component: str, rows: Iterator[Row], tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> None:
    """Refuse what does not fit, and what is missing: diffusers fills gaps with random numbers."""
    missing = []
    for row in rows:
        tensor = tensors.get(row.target)
        if tensor is None:
            if not _is_needless(row.target, tensors):
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


def _is_needless(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is the shortcut of a resnet that changes no width, which has none."""
    resnet, found, _ = name.partition(".conv_shortcut.")
    before, after = (tensors.get(f"{resnet}.{norm}.weight") for norm in ("norm1", "norm2"))
    return bool(found) and before is not None and after is not None and before.shape == after.shape


def _told(key: str, template: object) -> bool:
    """Whether shapes tell a field; they do not tell the number of heads, which is a guess."""
    first = template[0] if isinstance(template, list) and template else template
    return key in _CHANNELS or (
        isinstance(first, str) and first.startswith("$") and "//" not in first
    )
