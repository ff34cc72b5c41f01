"""Plans the LoRA of a model with a transformer, such as FLUX.1: its layers, family and names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import shown, unsupported_adapter
from sd_loader.convert.plan.lora_families import check_clip_l
from sd_loader.convert.plan.lora_keys import Half, Key, Layer, Style, layers_of
from sd_loader.convert.plan.lora_layers import (
    BLOCKS,
    WIDTH,
    LayerKind,
    layer_kinds,
    module_of,
    norm_names,
)
from sd_loader.convert.plan.lora_styles import STYLES, Alphas, LoraStyle, template_of
from sd_loader.convert.tables.architecture import Row
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.transformers import TRANSFORMER
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

_METADATA = {
    "modelspec.architecture": {
        "flux-1": "flux",
        "flux-2": "flux2",
        "chroma": "chroma",
        "stable-diffusion-3": "sd-3",
        "qwen-image": "qwen-image",
        "wan": "wan",
        "lumina-2": "lumina2",
    },
    "ss_base_model_version": {
        "flux1": "flux",
        "flux2": "flux2",
        "chroma": "chroma",
        "sd3": "sd-3",
        "qwen_image": "qwen-image",
        "zimage": "z-image",
        "z_image": "z-image",
        "wan": "wan",
        "lumina": "lumina2",
    },
}


_BLOCK = re.compile(
    r"(lora_unet_|lora_transformer_|diffusion_model\.|transformer\.)?"
    r"((double|single|joint|transformer|single_transformer)_blocks|blocks|layers"
    r"|(noise|context)_refiner)[._]\d",
    re.ASCII,
)
"""Matches the beginning of a name that belongs to a block of a transformer."""

_SAMPLE = 1000
"""Maximum number of names that are used to find the family and the style. A file may have more."""


@dataclass
class TransformerLayer:
    """A layer that the LoRA changes."""

    name: str
    """Its name in the file, without prefix and role."""

    template: str
    """The name with dots, and with `{}` for the number of its block."""

    number: int | None
    kind: LayerKind
    names: dict[Half, str] = field(default_factory=dict)
    """Names of its tensors in the file."""

    rows: tuple[Row, ...] = ()
    """The modules of diffusers that the layer consists of. Empty until its shape is checked."""

    def named(self, style: LoraStyle) -> Layer:
        """Return the layer as a `Layer` of `lora_keys`, like the layers of other LoRAs."""
        how = Style.PEFT if "lora_A.weight" in style.halves else Style.KOHYA
        keys = {half: Key(TRANSFORMER, self.name, half, how) for half in self.names}
        return Layer(TRANSFORMER, self.name, keys, self.names)

    @property
    def modules(self) -> Iterator[tuple[str, Row]]:
        """The names of the layer's modules in diffusers, with their rows in the table."""
        for row in self.rows:
            yield module_of(row, self.number), row


@dataclass(frozen=True)
class TransformerLora:
    """A LoRA whose layers are those of a family, in one style."""

    family: str
    style: LoraStyle
    layers: tuple[TransformerLayer, ...]
    clip: tuple[Layer, ...] = ()
    """The layers of CLIP-L that it changes as well."""

    norms: tuple[str, ...] = ()
    """Names of tensors that replace norms of queries and keys."""

    unusual_width: int | None = None
    """The width of the model, if no published model of the family is that wide."""


def transformer_lora(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None = None,
) -> tuple[TransformerLora, tuple[str, ...]] | None:
    """Return the LoRA and the families that it may be for. None if it is not for a transformer.

    base_model: the family that the user specifies. If the LoRA fits several families, base_model or
    else the metadata decides.
    """
    names = [*islice(filter(_BLOCK.match, tensors), _SAMPLE)]
    readings: list[TransformerLora] = []
    errors: list[tuple[int, LoaderError]] = []
    for family, styles in STYLES.items():
        is_stated = base_model is not None and base_model.value == family
        for style in styles:
            known = _known(names, family, style)
            if not known or (style.whole_model and not any(map(style.is_norm, tensors))):
                continue
            try:
                readings.append(_read(tensors, family, style, is_stated=is_stated))
            except LoaderError as error:
                errors.append((known, error))
    if readings:
        if _is_of_hunyuan_video(metadata) and base_model is None:
            raise unsupported_adapter("a LoRA of HunyuanVideo, as its metadata states", names[0])
        return _choose(readings, metadata, base_model)
    if errors:
        raise max(errors, key=lambda pair: pair[0])[1]
    return None


def _is_of_hunyuan_video(metadata: Mapping[str, str]) -> bool:
    """Return True if the metadata names HunyuanVideo, whose layers may have FLUX.1's names."""
    return any(metadata.get(key, "").lower().startswith("hunyuan") for key in _METADATA)


def _known(names: Sequence[str], family: str, style: LoraStyle) -> int:
    """How many of the names belong to layers of the family in this style."""
    kinds = _kinds_by_name(family, style)
    found = (style.read(name) for name in names)
    return sum(key is not None and _find(key[0], kinds, style) is not None for key in found)


def _kinds_by_name(family: str, style: LoraStyle) -> Mapping[str, tuple[str, LayerKind]]:
    """The family's layers by their names in the style, each with its name in dots."""
    return {
        name.replace(".", style.separator): (name, kind)
        for name, kind in layer_kinds(family, style.layout).items()
    }


def _find(
    layer: str, kinds: Mapping[str, tuple[str, LayerKind]], style: LoraStyle
) -> tuple[str, LayerKind, int | None] | None:
    if layer in kinds:
        return (*kinds[layer], None)
    template, number = template_of(layer, style.separator)
    return None if number is None or template not in kinds else (*kinds[template], number)


def _read(
    tensors: Mapping[str, Tensor], family: str, style: LoraStyle, *, is_stated: bool
) -> TransformerLora:
    """Read a LoRA of this family and style. Refuse one that does not fit.

    is_stated: whether the user names the family. The model may then have any width.
    """
    of_clip = {name: tensor for name, tensor in tensors.items() if style.is_of_clip(name)}
    norms = {name: tensor for name, tensor in tensors.items() if style.is_norm(name)}
    others = of_clip.keys() | norms.keys()
    own = {name: tensor for name, tensor in tensors.items() if name not in others}
    layers = _layers(own, family, style)
    for layer in layers:
        _check_whole(layer, style)
    width = _check_shapes(layers, tensors, family)
    is_unusual = width is not None and width not in BLOCKS[family]
    if is_unusual and not is_stated:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the layers are those of {family}, but they are {width} wide; its models are"
            f" {' or '.join(map(str, BLOCKS[family]))} wide: set spec.baseModel if the LoRA is for"
            " a model of another width",
        )
    if not is_unusual:
        _check_numbers(layers, width, family)
    if style.whole_blocks:
        _check_blocks(layers, family, style)
    if style.whole_model:
        _check_model(layers, norms, family, style)
    clip = _clip_layers(of_clip, family, style)
    unusual_width = width if is_unusual else None
    return TransformerLora(family, style, tuple(layers), clip, tuple(norms), unusual_width)


def _clip_layers(tensors: Mapping[str, Tensor], family: str, style: LoraStyle) -> tuple[Layer, ...]:
    layers = layers_of(tensors)
    check_clip_l(layers, tensors, f"CLIP-L, the text encoder of {family},")
    if style.alphas is Alphas.NEEDED:
        for layer in layers:
            if Half.ALPHA not in layer.names:
                _refuse_alphas("needs an alpha for each layer", style, layer.names[Half.DOWN])
    return tuple(layers)


def _layers(tensors: Mapping[str, Tensor], family: str, style: LoraStyle) -> list[TransformerLayer]:
    kinds = _kinds_by_name(family, style)
    layers: dict[str, TransformerLayer] = {}
    for name in tensors:
        key = style.read(name)
        found = None if key is None else _find(key[0], kinds, style)
        if key is None or found is None:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"the file has layers of {family} in {style.who} style, and others, such as"
                f" {shown(name)}: only the layers of its transformer are supported, in one style",
            )
        (layer, half), (template, kind, number) = key, found
        if not style.matches(template):
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"diffusers does not read {shown(name)} of {family} in {style.who} style",
            )
        entry = layers.setdefault(layer, TransformerLayer(layer, template, number, kind))
        entry.names[half] = name
    return list(layers.values())


def _check_whole(layer: TransformerLayer, style: LoraStyle) -> None:
    """Refuse a layer that lacks a tensor or has one that diffusers does not read."""
    seen = shown(next(iter(layer.names.values())))
    for half in (Half.DOWN, Half.UP):
        if half not in layer.names:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"a layer lacks its {half.value} (or lora_{half.name.lower()}): the file holds"
                f" {seen} alone",
            )
    has_alpha = Half.ALPHA in layer.names
    if has_alpha and style.alphas is Alphas.FORBIDDEN:
        _refuse_alphas("does not read alphas", style, seen)
    if not has_alpha and style.alphas is Alphas.NEEDED:
        _refuse_alphas("needs an alpha for each layer", style, seen)


def _refuse_alphas(problem: str, style: LoraStyle, seen: str) -> NoReturn:
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT, f"diffusers {problem} in {style.who} style (seen: {seen})"
    )


def _check_shapes(
    layers: Sequence[TransformerLayer], tensors: Mapping[str, Tensor], family: str
) -> int | None:
    """Refuse layers of shapes that the family does not have. Return the width, if one shows it."""
    dimensions: Dimensions = {}
    # Layers of several modules come last: their shapes name more sizes.
    for layer in sorted(layers, key=lambda layer: max(map(len, layer.kind.variants))):
        down, up = (tensors[layer.names[half]].shape for half in (Half.DOWN, Half.UP))
        halves = f"{shown(layer.names[Half.DOWN])} {list(down)} and its other half {list(up)}"
        rank = down[0] if down else 0
        agree = len(down) == len(up) and len(up) > 1 and rank > 0 and up[1] == rank
        if not agree or any(size != 1 for size in up[2:]):
            raise LoaderError(
                Reason.CONVERSION_FAILED, f"{halves} do not form a matrix of low rank"
            )
        shape = (up[0], *down[1:])
        rows = layer.kind.fits(Tensor(-1, Dtype.F32, shape, 0), dimensions)
        if rows is None:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{halves} change a layer of {list(shape)}, which {layer.template} of {family} is"
                " not",
            )
        layer.rows = rows
        for half in (Half.BIAS, Half.MAGNITUDE):
            name = layer.names.get(half)
            if name is not None and tensors[name].count != up[0]:
                raise LoaderError(
                    Reason.CONVERSION_FAILED,
                    f"{shown(name)} has the shape {list(tensors[name].shape)} for a layer of"
                    f" {up[0]} outputs",
                )
    return dimensions.get(WIDTH)


def _check_numbers(layers: Sequence[TransformerLayer], width: int | None, family: str) -> None:
    """Refuse a block whose number is too high for every published model of this width."""
    published = BLOCKS[family]
    counts = [published[width]] if width is not None else list(published.values())
    for layer in layers:
        limit = max(count.get(layer.kind.stack, 1 << 20) for count in counts)
        if layer.number is not None and layer.number >= limit:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{shown(layer.names[Half.DOWN])} belongs to block {layer.number}, but {family} of"
                f" this width has {limit} {layer.kind.stack}",
            )


def _check_blocks(layers: Sequence[TransformerLayer], family: str, style: LoraStyle) -> None:
    """Refuse a file unless its blocks are the first ones and have all of their layers.

    Only the stacks that the LoRA changes count.
    """
    own: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for layer in layers:
        if layer.number is not None:
            own[layer.kind.stack][layer.number].add(layer.template)
    kinds = layer_kinds(family, style.layout)
    for stack, blocks in own.items():
        every = set().union(*blocks.values())
        needed = every | {
            name for name, kind in kinds.items() if kind.stack == stack and not kind.is_optional
        }
        for number in range(len(blocks)):
            missing = sorted(needed - blocks.get(number, set()))
            if missing:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"the file lacks {missing[0].replace('{}', str(number), 1)}: in {style.who}"
                    f" style, diffusers reads a LoRA of {family} only if the first blocks have all"
                    " of their layers",
                )


def _check_model(
    layers: Sequence[TransformerLayer],
    norms: Mapping[str, Tensor],
    family: str,
    style: LoraStyle,
) -> None:
    """Refuse a file that lacks a layer or norm of the model, or has other norms."""
    has_optional = any(layer.kind.is_optional for layer in layers)
    norms_of_family = norm_names(family)
    needed = dict(norms_of_family)
    for name, kind in layer_kinds(family, style.layout).items():
        if has_optional or not kind.is_optional:
            needed[name] = kind.stack
    found = {layer.name for layer in layers} | norms.keys()
    [blocks] = BLOCKS[family].values()
    for template, stack in needed.items():
        for number in range(blocks.get(stack, 1)):
            name = template.replace("{}", str(number), 1)
            if name not in found:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"the file lacks {name}: in {style.who} style, diffusers reads a LoRA of"
                    f" {family} only if it has all layers and norms of the model",
                )
    for name, tensor in norms.items():
        template, _ = template_of(name, style.separator)
        is_vector = len(tensor.shape) == 1 and tensor.dtype.is_float
        if template not in norms_of_family or not is_vector:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{shown(name)} {list(tensor.shape)} is not a norm of {family}",
            )


def _choose(
    readings: Sequence[TransformerLora],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None,
) -> tuple[TransformerLora, tuple[str, ...]]:
    families = tuple(dict.fromkeys(reading.family for reading in readings))
    stated = (
        {base_model.value}
        if base_model in families
        else {
            family
            for key, beginnings in _METADATA.items()
            for beginning, family in beginnings.items()
            if metadata.get(key, "").lower().startswith(beginning)
        }
    )
    likely = tuple(family for family in families if family in stated) or families
    return next(reading for reading in readings if reading.family == likely[0]), likely
