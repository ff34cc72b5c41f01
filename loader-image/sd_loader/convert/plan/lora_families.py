"""Detects the family of a LoRA from the names and shapes of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import refuse_other_adapters, shown
from sd_loader.convert.plan.lora_keys import (
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    Half,
    Layer,
    Style,
    layers_of,
)
from sd_loader.convert.tables.architecture import Component, load_architecture
from sd_loader.convert.tables.dimensions import Dimensions, describe, is_known, matches
from sd_loader.convert.tables.families import (
    FAMILY_BY_CONTEXT_WIDTH,
    PUBLISHED_SIZES,
    families_by_text_width,
)
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor

FAMILIES = (BaseModelName.SD1, BaseModelName.SD2, BaseModelName.SDXL)
_COMPONENT_NAMES = {
    UNET: "UNet",
    TEXT_ENCODER: "text encoder",
    TEXT_ENCODER_2: "second text encoder",
}

_LEVELS = {"unet_0": 1, "unet_1": 2, "unet_2": 4}

_TEXT_MODULES = {
    "self_attn.q_proj": "{0} {0}",
    "self_attn.k_proj": "{0} {0}",
    "self_attn.v_proj": "{0} {0}",
    "self_attn.out_proj": "{0} {0}",
    "mlp.fc1": "{0}_mlp {0}",
    "mlp.fc2": "{0} {0}_mlp",
}

_METADATA = {
    "modelspec.architecture": (
        ("stable-diffusion-v1", BaseModelName.SD1),
        ("stable-diffusion-v2", BaseModelName.SD2),
        ("stable-diffusion-xl-v1-base", BaseModelName.SDXL),
    ),
    "ss_base_model_version": (
        ("sd_v1", BaseModelName.SD1),
        ("sd_v2", BaseModelName.SD2),
        ("sdxl_base", BaseModelName.SDXL),
    ),
}


@dataclass(frozen=True, slots=True)
class Module:
    """A layer of a family's model."""

    name: str
    shape: str
    """Pattern of its weight's shape, in the language of `dimensions`."""


@cache
def modules(family: BaseModelName) -> Mapping[tuple[str, str], Module]:
    """A family's layers by component and name, both in diffusers' and in kohya's style."""
    # SD 2 is SD 1 with other widths and with transformers that project by matrices.
    known = load_architecture("sdxl" if family is BaseModelName.SDXL else "sd-1")
    found: dict[tuple[str, str], Module] = {}
    unet = known.unet
    for source, module in _unet_modules(unet, family):
        found[UNET, module.name] = module
        # diffusers does not understand kohya's name of add_embedding.
        if not module.name.startswith("add_embedding."):
            found[UNET, module.name.replace(".", "_")] = module
        if family is BaseModelName.SDXL:
            found[UNET, source.replace(".", "_")] = module
    sizes = PUBLISHED_SIZES[family]
    layers = {TEXT_ENCODER: sizes["text_encoder_layers"]}
    if family is BaseModelName.SDXL:
        layers[TEXT_ENCODER_2] = sizes["text_encoder_2_layers"]
        projection = Module("text_projection", f"{TEXT_ENCODER_2}_projection {TEXT_ENCODER_2}")
        found[TEXT_ENCODER_2, "text_projection"] = projection
    for component, count in layers.items():
        for number in range(count):
            for name, shape in _TEXT_MODULES.items():
                path = f"text_model.encoder.layers.{number}.{name}"
                module = Module(path, shape.format(component))
                found[component, path] = found[component, path.replace(".", "_")] = module
    return found


def _unet_modules(unet: Component, family: BaseModelName) -> list[tuple[str, Module]]:
    found = []
    for row in unet.rows:
        name = row.target.removesuffix(".weight")
        if name == row.target or len(row.shape.split()) < 2:
            continue
        shape = row.shape
        if family is BaseModelName.SD2 and name.endswith((".proj_in", ".proj_out")):
            shape = shape.removesuffix(" 1 1")
        source = row.source.removeprefix(unet.prefix).removesuffix(".weight")
        found.append((source, Module(name, shape)))
    return found


def decide_family(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None,
) -> BaseModelName | None:
    """Return the family. None if the layers fit several families equally.

    Refuse layers that fit no family, or that do not fit base_model: the family that the user
    specifies.
    """
    errors: dict[BaseModelName | None, LoaderError] = {}
    fitting = []
    for family in FAMILIES:
        try:
            check(layers, tensors, family)
        except LoaderError as error:
            errors[family] = error
        else:
            fitting.append(family)
    if not fitting:
        refuse_other_adapters(tensors)
        raise errors.get(base_model) or errors[_nearest(layers, tensors)]
    if base_model is None:
        return _distinguish(fitting, layers, metadata)
    if base_model not in fitting:
        others = " or ".join(fitting)
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {base_model.value}, but the file is a LoRA of {others}",
        )
    return base_model


def fitting_family(
    candidates: Mapping[BaseModelName, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None,
) -> BaseModelName | None:
    """Return the family that the tensors fit, or the most similar one. None if several fit equally.

    candidates: the families, each with the tensors that the file would have in that family.
    """
    fitting = []
    layers: list[Layer] = []
    for family, tensors in candidates.items():
        layers = layers_of(tensors)
        with suppress(LoaderError):
            check(layers, tensors, family)
            fitting.append(family)
    if base_model in (fitting or candidates):
        return base_model
    return _distinguish(fitting, layers, metadata) if fitting else _nearest(layers, tensors)


def _nearest(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> BaseModelName:
    """Return the family that has the most of these layers, so that the error is about this one."""

    def likeness(family: BaseModelName) -> tuple[int, bool]:
        table = modules(family)
        known = sum((layer.component, layer.name) in table for layer in layers)
        return known, family in _by_widths(layers, tensors, family)

    return max(FAMILIES, key=likeness)


def _distinguish(
    fitting: list[BaseModelName], layers: Sequence[Layer], metadata: Mapping[str, str]
) -> BaseModelName | None:
    if len(fitting) == 1:
        return fitting[0]
    stated = {
        family
        for key, beginnings in _METADATA.items()
        for beginning, family in beginnings
        if metadata.get(key, "").startswith(beginning)
    }
    likely = [family for family in fitting if family in stated]
    if not likely and any(name.startswith("lora_te1_") for name in _names(layers)):
        likely = [family for family in fitting if family is BaseModelName.SDXL]
    if not likely and any(name.startswith("lora_te_") for name in _names(layers)):
        likely = [family for family in fitting if family is not BaseModelName.SDXL]
    return likely[0] if len(likely) == 1 else None


def _names(layers: Sequence[Layer]) -> list[str]:
    return [layer.names[Half.DOWN] for layer in layers]


def check(layers: Sequence[Layer], tensors: Mapping[str, Tensor], family: BaseModelName) -> None:
    """Refuse layers that the family lacks, and shapes that contradict the family or one another."""
    table = modules(family)
    dimensions: Dimensions = {}
    found: list[tuple[Layer, Module]] = []
    for layer in layers:
        module = table.get((layer.component, layer.name))
        if module is None:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"the {_COMPONENT_NAMES[layer.component]} of {family.value} has no layer for"
                f" {shown(layer.names[Half.DOWN])}",
            )
        found.append((layer, module))
    _check_naming(found, family)
    # Sums come last: their terms are learned from other layers, if at all.
    for layer, module in sorted(found, key=lambda pair: "+" in pair[1].shape):
        _check_shapes(layer, module, tensors, dimensions, family.value)
    _check_levels(dimensions, family)
    widths = _by_widths(layers, tensors, family)
    if family not in widths:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the layers are those of {family.value}, but their widths are of"
            f" {' or '.join(sorted(widths)) or 'no one family'}",
        )


def check_clip_l(layers: Sequence[Layer], tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse layers that CLIP-L lacks, and shapes that contradict it.

    name: how messages name CLIP-L.
    """
    table = modules(BaseModelName.SD1)  # its text encoder is CLIP-L
    dimensions = dict(PUBLISHED_SIZES[BaseModelName.SD1])
    for layer in layers:
        module = table.get((layer.component, layer.name))
        if module is None or layer.component != TEXT_ENCODER:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{name} has no layer for {shown(layer.names[Half.DOWN])}",
            )
        _check_shapes(layer, module, tensors, dimensions, name)


def _check_levels(dimensions: Dimensions, family: BaseModelName) -> None:
    """Refuse levels whose widths are not in the ratio 1 : 2 : 4, which all families have."""
    found = {level: dimensions[level] for level in _LEVELS if level in dimensions}
    if len({width / _LEVELS[level] for level, width in found.items()}) > 1:
        widths = ", ".join(str(width) for width in found.values())
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the levels of the UNet that the layers belong to are {widths} wide, which is not"
            f" 1 : 2 : 4 as in {family.value}",
        )


def _check_naming(found: Sequence[tuple[Layer, Module]], family: BaseModelName) -> None:
    """Refuse a file with both of kohya's names for SDXL's layers: diffusers reads only one."""
    original: list[Layer] = []
    diffusers: list[Layer] = []
    for layer, module in found:
        if layer.component == UNET and Style.KOHYA in layer.styles:
            same = layer.name == module.name.replace(".", "_")
            (diffusers if same else original).append(layer)
    if original and diffusers:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file names layers of {family.value} in two ways:"
            f" {shown(original[0].names[Half.DOWN])} and {shown(diffusers[0].names[Half.DOWN])}",
        )


def _check_shapes(
    layer: Layer,
    module: Module,
    tensors: Mapping[str, Tensor],
    dimensions: Dimensions,
    model: str,
) -> None:
    """Refuse shapes that contradict the module. model: how messages name the model."""
    down = tensors[layer.names[Half.DOWN]].shape
    up = tensors[layer.names[Half.UP]].shape
    halves = f"{shown(layer.names[Half.DOWN])} {list(down)} and its other half {list(up)}"
    rank = down[0] if down else 0
    ranks_agree = len(down) == len(up) and len(up) in (2, 4) and rank > 0 and up[1] == rank
    if not ranks_agree or any(size != 1 for size in up[2:]):
        raise LoaderError(Reason.CONVERSION_FAILED, f"{halves} do not form a matrix of low rank")
    if not _fits(module.shape, (up[0], *down[1:]), dimensions):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"{halves} change a layer of shape {[up[0], *down[1:]]}, but in {model} the layer"
            f" {module.name} is [{describe(module.shape, dimensions)}]",
        )
    for half in (Half.BIAS, Half.MAGNITUDE):
        name = layer.names.get(half)
        if name is not None and tensors[name].count != up[0]:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{shown(name)} has the shape {list(tensors[name].shape)} for a layer of"
                f" {up[0]} outputs",
            )


def _fits(pattern: str, shape: tuple[int, ...], dimensions: Dimensions) -> bool:
    """Like `matches`, but the first value of a sum with an unknown term is accepted and kept."""
    expected = pattern.split()
    if len(expected) != len(shape):
        return False
    for expression, size in zip(expected, shape, strict=True):
        if "+" in expression and not is_known(expression, dimensions):
            if size == 0 or dimensions.setdefault(expression, size) != size:
                return False
        elif not matches(expression, (size,), dimensions):
            return False
    return True


def _by_widths(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], family: BaseModelName
) -> set[BaseModelName]:
    """Return the families that have these layers' widths. Widths of no family are ignored."""
    table = modules(family)
    found = {*FAMILIES, BaseModelName.SDXL_REFINER}
    for layer in layers:
        module = table.get((layer.component, layer.name))
        shape = tensors[layer.names[Half.DOWN]].shape
        if module is None or len(shape) < 2:
            continue
        if layer.component == TEXT_ENCODER and "self_attn" in module.name:
            found &= families_by_text_width(shape[1]) or found
        elif module.name.endswith((".attn2.to_k", ".attn2.to_v")):
            context = FAMILY_BY_CONTEXT_WIDTH.get(shape[1])
            found &= {context} if context else found
    return found
