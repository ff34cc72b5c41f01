"""Plans the folder of a LoRA: one file that diffusers' `load_lora_weights(folder)` takes.

Tensors pass through as they are, alphas among them, since diffusers' own way to save them would
lose kohya's scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.convert.detect.detect import refuse_other_kinds
from sd_loader.convert.plan.lora_families import FAMILIES, decide
from sd_loader.convert.plan.lora_keys import UNET, Half, Layer, Style, layers_of, shown
from sd_loader.convert.plan.lora_metadata import passed_on
from sd_loader.convert.write.files import FolderPlan, Item, published_dtype, weights_file
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS
from sd_loader.tensors import Tensor, TensorFile

WEIGHTS = "pytorch_lora_weights.safetensors"
"""What diffusers looks for first."""


def plan_lora(file: TensorFile, request: LoadRequest) -> FolderPlan:
    """The one file the LoRA becomes. Reads no weights, writes nothing."""
    refuse_other_kinds(file.tensors, ModelType.LORA)
    layers = layers_of(file.tensors)
    _check_types(layers, file.tensors)
    # A pickle's numbers and strings are of the training program, not about the LoRA.
    metadata = file.metadata if file.format == SAFETENSORS else {}
    base_model = decide(layers, file.tensors, metadata, request.base_model)
    _check_readable(layers)
    bare = any(key.bare for layer in layers for key in layer.keys.values())
    kept, warnings = passed_on(metadata, layers, file.tensors, bare=bare)
    if base_model is None:
        warnings += (
            f"the layers fit {' and '.join(FAMILIES)} models alike; spec.baseModel says which",
        )
    items = _items(layers, file.tensors, request)
    return FolderPlan(
        files=(weights_file(WEIGHTS, items, kept),),
        base_model=base_model,
        warnings=warnings,
        scan=True,
    )


def _items(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], request: LoadRequest
) -> list[Item]:
    published = _published_names(layers)
    items = []
    for layer in layers:
        for half, name in layer.names.items():
            tensor = tensors[name]
            dtype = tensor.dtype
            # A scale is no weight: in half precision another one would come of it.
            if request.revision is not None and half is not Half.ALPHA:
                dtype = published_dtype(dtype, request.revision)
            items.append(Item(published.get(name, name), tensor, dtype))
    return items


def _published_names(layers: Sequence[Layer]) -> dict[str, str]:
    """New names, in PEFT's style, where diffusers would pass the UNet's own over.

    It loads nothing, with a warning only, of a UNet whose layers are not named `unet.…`; and
    of names in two styles, which its own training programs write, those of one.
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
                    f"{shown(name)} holds no floating-point numbers, but {tensor.dtype.label}",
                )


def _check_readable(layers: Sequence[Layer]) -> None:
    """Refuse what diffusers would open with an error, or only in part."""
    for component in sorted({layer.component for layer in layers}):
        part = [layer for layer in layers if layer.component == component]
        for half in (Half.BIAS, Half.MAGNITUDE):
            having = [layer for layer in part if half in layer.keys]
            if having and len(having) < len(part):
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"some layers of the {component} have a {half.value} and others none, which"
                    " diffusers does not read",
                )
        if component != UNET and not _is_readable_text_encoder(part):
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"diffusers does not read these layers of the {component} without others that"
                f" belong to them (seen: {shown(part[0].names[Half.DOWN])})",
            )


def _is_readable_text_encoder(layers: Sequence[Layer]) -> bool:
    """Diffusers tells the style of all names by a few: those of the output projections first."""
    styles = {style for layer in layers for style in layer.styles}
    attention = [layer.name for layer in layers if "self_attn" in layer.name]
    if not attention:
        # The other layers' names in kohya's and diffusers' style are read by themselves.
        return Style.PEFT not in styles and any("mlp" in layer.name for layer in layers)
    if styles in ({Style.PEFT}, {Style.DIFFUSERS}):
        return True
    return Style.PEFT not in styles and any(name.endswith("out_proj") for name in attention)
