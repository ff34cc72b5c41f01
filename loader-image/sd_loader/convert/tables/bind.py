"""Finds a component's tensors in a checkpoint and its dimensions in their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_loader.convert.tables.architecture import Component, Row, take
from sd_loader.convert.tables.dimensions import Dimensions, describe, matches
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor

_NAMES = {
    "controlnet": "ControlNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "unet": "UNet",
    "vae": "VAE",
}

# Early fine-tunes were saved by a transformers that left `text_model.` out.
_OLD_CLIP = "cond_stage_model.transformer."
_OLD_CLIP_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")

_EMA = "model_ema."


def canonical_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint under the names that the key tables use."""
    found: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        name = _canonical(old)
        if name in found:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"the checkpoint has two tensors {snippet(name)}: with and without text_model.",
            )
        found[name] = tensor
    return found


def _canonical(name: str) -> str:
    part = name.removeprefix(_OLD_CLIP)
    if part != name and part.startswith(_OLD_CLIP_PARTS):
        return f"{_OLD_CLIP}text_model.{part}"
    return name


def averaged(tensors: Mapping[str, Tensor], unet: Component) -> dict[str, Tensor]:
    """The checkpoint with the UNet's weights replaced by their moving averages (EMA)."""
    names = {row.source: _EMA + "".join(row.source.split(".")[1:]) for row in unet.rows}
    if not any(name in tensors for name in names.values()):
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.weights is ema, but the checkpoint has no EMA weights (model_ema.*)",
        )
    for name in names.values():
        if name not in tensors:
            raise LoaderError(Reason.CONVERSION_FAILED, f"an EMA weight is missing: {name}")
    return {**tensors, **{source: tensors[name] for source, name in names.items()}}


def is_missing(component: Component, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the checkpoint has nothing of a component."""
    return not any(name.startswith(component.prefix) for name in tensors)


def require(components: Iterable[Component], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that lacks whole components, naming all of them."""
    missing = [
        f"{_NAMES[part.name]} ({part.prefix}*)" for part in components if is_missing(part, tensors)
    ]
    if missing:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the checkpoint has no {' and no '.join(missing)}, which its pipeline needs; a VAE may"
            " be given by spec.vae, and parts of either kind by the administrator's setting"
            f" SD_OPERATOR_LOADER_DEFAULT_PARTS ({LoaderEnv.name_of('default_parts')} by hand)",
        )


def bind(
    component: Component, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> dict[str, Tensor]:
    """The component's tensors by their new names, in the order of its state_dict.

    Adds what shapes say to `dimensions`; a missing tensor, or a shape that contradicts what other
    shapes said, is an error.
    """
    rows = _existing_layers(component, tensors, dimensions)
    return {row.target: _bound(row, tensors, dimensions) for row in rows}


def left_over(component: Component, tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors under the component's prefix that have no place in it, such as a VAE's loss.

    One within the structure itself, for example of one layer more, is an error, since leaving it
    out would make another model of it.
    """
    prefix = component.prefix
    known = {row.source for row in component.rows} | component.unused
    structure = {_first_part(row.source, prefix) for row in component.rows}
    extra = [name for name in tensors if name.startswith(prefix) and name not in known]
    for name in extra:
        if _first_part(name, prefix) in structure:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"the {_NAMES[component.name]} has a tensor that its architecture does not have:"
                f" {snippet(name)}",
            )
    return extra


def _first_part(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).partition(".")[0]


def _existing_layers(
    component: Component, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> list[Row]:
    """The rows without those of layers that the text encoder does not have at all."""
    layers = {row.layer for row in component.rows if row.source in tensors} - {None}
    if any(row.layer is not None for row in component.rows):
        dimensions[f"{component.name}_layers"] = len(layers)
    return [row for row in component.rows if row.layer is None or row.layer < len(layers)]


def _bound(row: Row, tensors: Mapping[str, Tensor], dimensions: Dimensions) -> Tensor:
    source = tensors.get(row.source)
    if source is None:
        raise LoaderError(Reason.CONVERSION_FAILED, f"a tensor is missing: {row.source}")
    if not source.dtype.is_float:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{row.source} holds no floating-point numbers, but {source.dtype.label}",
        )
    taken = take(source, row.op)
    if taken is None or not matches(row.shape, taken.shape, dimensions):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{row.source} has the shape {list(source.shape)}; as {row.target} it should be"
            f" [{describe(row.shape, dimensions)}]",
        )
    return taken
