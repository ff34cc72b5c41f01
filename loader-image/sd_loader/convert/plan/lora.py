"""Plans the folder of a LoRA: one file that diffusers' `load_lora_weights(folder)` reads.

Tensors keep their values, including alphas: diffusers' own way to save a LoRA would lose kohya's
scale. Tensors also keep their names if every version of the libraries reads these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sd_api.choices import BaseModelName, LoraFormat, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion, refuse_contradiction
from sd_loader.convert.detect.kinds import refuse_other_kinds
from sd_loader.convert.detect.lora_kinds import refuse_other_adapters, shown
from sd_loader.convert.plan.lora_families import FAMILIES, decide_family, modules
from sd_loader.convert.plan.lora_keys import (
    UNET,
    Half,
    Layer,
    Style,
    canonical_name,
    layers_of,
)
from sd_loader.convert.plan.lora_layers import layer_kinds
from sd_loader.convert.plan.lora_metadata import component_config, passed_on
from sd_loader.convert.plan.lora_peft import WEIGHTS_FILE, Change, peft_files
from sd_loader.convert.plan.lora_styles import Layout
from sd_loader.convert.plan.lora_transformers import TransformerLora, transformer_lora
from sd_loader.convert.plan.precision import published_dtype
from sd_loader.convert.tables.architecture import take
from sd_loader.convert.tables.transformers import TRANSFORMER
from sd_loader.convert.write.files import FolderPlan, Item, PlannedFile, weights_file
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS
from sd_loader.tensors import Tensor, TensorFile

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for first."""


def plan_lora(file: TensorFile, conversion: Conversion) -> FolderPlan:
    """Plan the files of a LoRA. Writes nothing, and reads no weights but the alphas for PEFT."""
    # First: the layers of PEFT's other adapters have the names of the model's own, which the next
    # check would report as a UNet without its pipeline.
    refuse_other_adapters(file.tensors, by_role=True)
    refuse_other_kinds(file.tensors, ModelType.LORA)
    # The numbers and strings in a pickle belong to the training program, not to the LoRA.
    metadata = file.metadata if file.format == SAFETENSORS else {}
    found = transformer_lora(file.tensors, metadata, conversion.base_model)
    if found is not None:
        return _plan_transformer(file, conversion, metadata, *found)
    layers = layers_of(file.tensors)
    _check_types(layers, file.tensors)
    base_model = decide_family(layers, file.tensors, metadata, conversion.base_model)
    _check_readable(layers)
    bare = any(key.bare for layer in layers for key in layer.keys.values())
    missing = UNET if bare else ""
    kept, warnings = passed_on(metadata, file.left_out, layers, file.tensors, missing=missing)
    if base_model is None:
        warnings += (
            f"the layers fit models of {' and '.join(FAMILIES)} equally; set spec.baseModel",
        )
    items = _items(layers, file.tensors, _published_names(layers), conversion)
    files: tuple[PlannedFile, ...] = (weights_file(LORA_FILE, [*items.values()], kept),)
    if conversion.lora.format is LoraFormat.PEFT:
        files += _peft(layers, items, file.tensors, kept, base_model)
        warnings += _left_to_diffusers(layers, "UNet")
    return FolderPlan(
        files=files,
        base_model=base_model,
        lora_rank=_rank(layers, file.tensors),
        warnings=warnings,
        scan=True,
    )


def _plan_transformer(
    file: TensorFile,
    conversion: Conversion,
    metadata: Mapping[str, str],
    lora: TransformerLora,
    families: Sequence[str],
) -> FolderPlan:
    """Plan the files of a LoRA of a transformer. families: the families that it may be for."""
    names = " and ".join(families)
    refuse_contradiction(conversion.base_model, families, f"the file is a LoRA of {names}")
    of_transformer = [layer.named(lora.style) for layer in lora.layers]
    _check_halves(TRANSFORMER, of_transformer)
    _check_readable(lora.clip)
    layers = [*of_transformer, *lora.clip]
    _check_types(layers, file.tensors)
    missing = TRANSFORMER if lora.style.published_prefix else ""
    kept, warnings = passed_on(metadata, file.left_out, layers, file.tensors, missing=missing)
    if len(families) > 1:
        warnings += (f"the layers fit models of {names} equally; set spec.baseModel",)
    if lora.unusual_width is not None:
        warnings += (
            f"the layers are {lora.unusual_width} wide; no published model of {lora.family} is",
        )
    published = {name: lora.style.published(name) for name in file.tensors}
    items = _items(layers, file.tensors, published, conversion)
    for name in lora.norms:
        norm = file.tensors[name]
        items[name] = Item(name, norm, published_dtype(norm.dtype, conversion.precision))
    files: tuple[PlannedFile, ...] = (weights_file(LORA_FILE, [*items.values()], kept),)
    if conversion.lora.format is LoraFormat.PEFT:
        if lora.norms:
            raise LoaderError(
                Reason.INVALID_SPEC,
                "spec.lora.format is peft, and the LoRA also replaces norms of queries and keys,"
                " which an adapter of PEFT cannot have; leave spec.lora.format out",
            )
        stated = component_config(kept, TRANSFORMER)
        modules_of_family = layer_kinds(lora.family, Layout.DIFFUSERS)
        files += peft_files(_changes(lora, items, file.tensors), stated, modules_of_family)
        warnings += _left_to_diffusers(layers, "transformer")
    return FolderPlan(
        files=files,
        base_model=lora.family if len(families) == 1 else None,
        lora_rank=_rank(layers, file.tensors),
        warnings=warnings,
        scan=True,
    )


def _rank(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> int | None:
    """Return the largest rank of the layers. None if there are no layers."""
    return max((tensors[layer.names[Half.DOWN]].shape[0] for layer in layers), default=None)


def _changes(
    lora: TransformerLora, items: Mapping[str, Item], tensors: Mapping[str, Tensor]
) -> list[Change]:
    """Return the LoRA's change of each module of diffusers.

    One layer of the LoRA may consist of the rows of several modules.
    """
    changes = []
    for layer in lora.layers:
        alpha = layer.names.get(Half.ALPHA, "")
        columns = tensors[layer.names[Half.DOWN]].shape[1]
        for module, row in layer.modules:
            own: dict[Half, Item] = {}
            for half, name in layer.names.items():
                part = tensors[name] if half is Half.DOWN else take(tensors[name], row.op, columns)
                if half is not Half.ALPHA and part is not None:
                    own[half] = replace(items[name], source=part)
            changes.append(Change(module, own, tensors.get(alpha), alpha))
    return changes


def _items(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    published: Mapping[str, str],
    conversion: Conversion,
) -> dict[str, Item]:
    """Return the planned tensors, by their names in the source file.

    published: the new names of the tensors that are renamed, by their old names. Any other tensor
    gets its canonical name.
    """
    items = {}
    for layer in layers:
        for half, name in layer.names.items():
            tensor = tensors[name]
            dtype = tensor.dtype
            # An alpha is a scale: half precision would change it.
            if conversion.precision is not None and half is not Half.ALPHA:
                dtype = published_dtype(dtype, conversion.precision)
            items[name] = Item(published.get(name, canonical_name(name)), tensor, dtype)
    return items


def _peft(
    layers: Sequence[Layer],
    items: Mapping[str, Item],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    base_model: BaseModelName | None,
) -> tuple[PlannedFile, ...]:
    """Plan the PEFT adapter of the UNet's layers."""
    families = FAMILIES if base_model is None else (base_model,)
    unet = [layer for layer in layers if layer.component == UNET]
    table = next(
        table
        for table in map(modules, families)
        if all((UNET, layer.name) in table for layer in unet)
    )
    if not unet:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.lora.format: peft publishes the layers of the UNet, and the file has none; leave"
            " it out",
        )
    changes = [
        Change(
            module=table[UNET, layer.name].name,
            tensors={
                half: items[name] for half, name in layer.names.items() if half is not Half.ALPHA
            },
            alpha=tensors.get(layer.names.get(Half.ALPHA, "")),
            alpha_name=layer.names.get(Half.ALPHA, ""),
        )
        for layer in unet
    ]
    stated = component_config(metadata, UNET)
    names = {module.name for (component, _), module in table.items() if component == UNET}
    return peft_files(changes, stated, names)


def _left_to_diffusers(layers: Sequence[Layer], name: str) -> tuple[str, ...]:
    """Return a warning if the LoRA has layers that are not in the PEFT adapter.

    name: the name of the model whose layers the adapter has.
    """
    others = sorted({layer.component for layer in layers} - {UNET, TRANSFORMER})
    if not others:
        return ()
    # The names of a text encoder's modules depend on the version of transformers.
    return (
        f"{WEIGHTS_FILE} has the layers of the {name} only; those of {' and '.join(others)} are in"
        f" {LORA_FILE}",
    )


def _published_names(layers: Sequence[Layer]) -> dict[str, str]:
    """Return new names, in PEFT's style, for UNet layers that diffusers would skip.

    diffusers skips a UNet whose layers are not named `unet.…`, with only a warning. If the names
    have two styles, as diffusers' own training programs write them, it reads one style only.
    """
    unet = [layer for layer in layers if layer.component == UNET]
    styles = {style for layer in unet for style in layer.styles}
    bare = any(key.bare for layer in unet for key in layer.keys.values())
    if not bare and (Style.PEFT not in styles or len(styles) == 1):
        return {}
    return {
        name: f"{UNET}.{layer.name}.{half.value}"
        for layer in unet
        for half, name in layer.names.items()
    }


def _check_types(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> None:
    for layer in layers:
        for half, name in layer.names.items():
            tensor = tensors[name]
            if half is Half.ALPHA and tensor.count != 1:
                raise LoaderError(
                    Reason.CONVERSION_FAILED,
                    f"{shown(name)} should be one number and has the shape {list(tensor.shape)}",
                )
            if half is not Half.ALPHA and not tensor.dtype.is_float:
                raise LoaderError(
                    Reason.CONVERSION_FAILED,
                    f"{shown(name)} should hold floating-point numbers, but its type is"
                    f" {tensor.dtype.label}",
                )


def _check_readable(layers: Sequence[Layer]) -> None:
    """Refuse a LoRA that diffusers would read only in part, or not at all."""
    for component in sorted({layer.component for layer in layers}):
        own = [layer for layer in layers if layer.component == component]
        _check_halves(component, own)
        if component != UNET and not _is_readable_text_encoder(own):
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"diffusers does not read these layers of the {component} without others that"
                f" belong to them (seen: {shown(own[0].names[Half.DOWN])})",
            )


def _check_halves(component: str, layers: Sequence[Layer]) -> None:
    for half in (Half.BIAS, Half.MAGNITUDE):
        having = [layer for layer in layers if half in layer.keys]
        if having and len(having) < len(layers):
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"some layers of the {component} have a {half.value} and others none, which"
                " diffusers does not read",
            )


def _is_readable_text_encoder(layers: Sequence[Layer]) -> bool:
    """Return True if diffusers recognises the style of a text encoder's layers.

    diffusers checks a few names only, output projections first.
    """
    styles = {style for layer in layers for style in layer.styles}
    attention = [layer.name for layer in layers if "self_attn" in layer.name]
    if not attention:
        # Without attention layers, diffusers reads the mlp layers, except by PEFT's names.
        return Style.PEFT not in styles and any("mlp" in layer.name for layer in layers)
    if styles in ({Style.PEFT}, {Style.DIFFUSERS}):
        return True
    return Style.PEFT not in styles and any(name.endswith("out_proj") for name in attention)
