"""Binds a component's key table to the tensors of a file, and learns dimensions from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_loader.convert.tables.architecture import Component, Row, take
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.convert.tables.dimensions import Dimensions, describe, matches
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Source, Tensor

_NAMES = {
    "controlnet": "ControlNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "text_encoder_3": "third text encoder",
    "transformer": "transformer",
    "unet": "UNet",
    "vae": "VAE",
}

# The text encoder of SD 1 and the first one of SDXL have transformers' names in a checkpoint.
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_EMA = "model_ema."


def canonical_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names that the key tables use."""
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
    for encoder in _CLIP:
        if name.startswith(encoder):
            return encoder + with_prefix(name.removeprefix(encoder))
    return name


def averaged(tensors: Mapping[str, Tensor], unet: Component) -> dict[str, Tensor]:
    """The checkpoint's tensors, with the UNet's replaced by their moving averages (EMA)."""
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
    """Whether the checkpoint has no tensor of a component."""
    return not any(name.startswith(component.prefix) for name in tensors)


def require(components: Iterable[Component], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that lacks whole components. The message names all of them."""
    missing = [
        f"{_NAMES[part.name]} ({part.prefix}*)" for part in components if is_missing(part, tensors)
    ]
    if missing:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the checkpoint has no {' and no '.join(missing)}, which its pipeline needs; give a"
            " VAE in spec.vae, or have the administrator set a repo that gives the VAE and the text"
            " encoders in SD_OPERATOR_LOADER_DEFAULT_PARTS"
            f" ({LoaderEnv.name_of('default_parts')} by hand)",
        )


def bind(
    component: Component, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> dict[str, Source]:
    """The component's tensors by their published names, in the order of its state_dict.

    Adds the dimensions that the shapes show to `dimensions`. Refuses a missing tensor, a tensor of
    integers, and a shape that contradicts a known dimension. A text encoder may lack its last
    layers.
    """
    rows = _existing_layers(component, tensors, dimensions)
    return {row.target: _bound(row, tensors, dimensions) for row in rows}


def left_over(component: Component, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that the component does not use, such as a VAE's loss.

    Only names under the component's prefix count. Refuse a tensor of the structure itself, such as
    one of an additional layer: without this tensor, the model would work differently.
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


def left_out(names: Sequence[str], why: str = "have no place in the pipeline") -> tuple[str, ...]:
    """Return a warning that these tensors are not published. Empty if no names are given."""
    if not names:
        return ()
    return (f"{len(names)} tensors {why} and were left out, first {snippet(names[0])}",)


def not_of(component: Component, names: Iterable[str]) -> list[str]:
    """Return the names of tensors that the component neither has nor ignores."""
    own = {row.source for row in component.rows} | component.unused
    return [name for name in names if name not in own]


def _first_part(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).partition(".")[0]


def _existing_layers(
    component: Component, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> list[Row]:
    """Return the rows without those of missing layers. Add the number of layers to `dimensions`."""
    layers = {row.layer for row in component.rows if row.source in tensors} - {None}
    if any(row.layer is not None for row in component.rows):
        dimensions[f"{component.name}_layers"] = len(layers)
    return [row for row in component.rows if row.layer is None or row.layer < len(layers)]


def _bound(row: Row, tensors: Mapping[str, Tensor], dimensions: Dimensions) -> Source:
    source = tensors.get(row.source)
    if source is None:
        raise LoaderError(Reason.CONVERSION_FAILED, f"a tensor is missing: {row.source}")
    if not source.dtype.is_float:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{row.source} should hold floating-point numbers, but its type is"
            f" {source.dtype.label}",
        )
    taken = take(source, row.op)
    if taken is None or not matches(row.shape, taken.shape, dimensions):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{row.source} has the shape {list(source.shape)}; as {row.target} it should be"
            f" [{describe(row.shape, dimensions)}]",
        )
    return taken
