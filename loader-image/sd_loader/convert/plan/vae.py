"""Plans the folder of a VAE that came as a single file, alone or within a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.choices import BaseModelName, ModelType, Revision
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion, refuse_contradiction
from sd_loader.convert.detect.kinds import (
    UNET_PREFIX,
    refuse_patterns,
    transformer_file,
    unsupported,
    wrong_type,
)
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.config_rules import check_heads
from sd_loader.convert.plan.precision import published_items
from sd_loader.convert.tables import encoders
from sd_loader.convert.tables.architecture import (
    Component,
    fill_in,
    load_architecture,
    load_templates,
)
from sd_loader.convert.tables.bind import bind, left_out, left_over
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.families import (
    LATENT_CHANNELS,
    SD_LATENT_CHANNELS,
    families_by_latent_channels,
)
from sd_loader.convert.tables.vae_names import current_names
from sd_loader.convert.write.files import FolderPlan, PlannedFile, component_files, json_file
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

CLASS = "AutoencoderKL"
"""The class of the VAEs that are read from single files."""
VAE = "vae"
"""Name of the component in a pipeline."""

_PREFIXES = ("first_stage_model.", "vae.", "")
_FIRST = "encoder.conv_in.weight"
_LATENTS = "decoder.conv_in.weight"
_DIFFUSERS = "encoder.down_blocks."
_SDXL_TEXT_ENCODERS = "conditioner."
_METADATA = "modelspec.architecture"
_STATED = {
    "stable-diffusion-xl": BaseModelName.SDXL,
    "stable-diffusion-3": BaseModelName.SD3,
    "stable-diffusion-v3": BaseModelName.SD3,
    "flux-1": BaseModelName.FLUX,
}
"""Families by the beginning of the metadata entry `_METADATA`."""

_FLUX2_CHANNELS = 32
_ASSUMED = {
    SD_LATENT_CHANNELS: BaseModelName.SD1,
    LATENT_CHANNELS[BaseModelName.FLUX]: BaseModelName.FLUX,
}
"""The family that is assumed if the file shows none, by the number of latent channels."""

_INSTEAD = "use its repo in diffusers' layout, with spec.modelType: vae"
_OF_OTHERS = (
    "a VAE of another family, such as Wan, Qwen-Image, LTX-Video or Sana, which is not supported as"
    f" a single file: {_INSTEAD}"
)
_OTHERS = {
    r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.": "a tiny VAE (TAESD, AutoencoderTiny), which is"
    " not supported",
    r"(vae\.)?(encoder|decoder)\.(downsamples|upsamples|conv_in\.conv|project_in)\.": _OF_OTHERS,
}


@dataclass(frozen=True)
class VaeFiles:
    """The planned folder of a VAE."""

    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...]
    """Warnings for the user about the VAE."""


def plan_vae(file: TensorFile, conversion: Conversion) -> FolderPlan:
    """Plan the folder of a VAE that is published alone. Reads no weights and writes nothing."""
    channels = _latent_channels(file.tensors)
    refuse_contradiction(
        conversion.base_model,
        families_by_latent_channels(channels),
        f"the file is {_described(channels)}",
    )
    family = conversion.base_model or _family(file, channels)
    base_model = family or _ASSUMED[channels]
    vae = vae_files(file, base_model, conversion.precision)
    warnings = list(vae.warnings)
    if family is None:
        factor = vae_template(base_model)["scaling_factor"]
        warnings.append(
            f"the file does not say for which base model the VAE is: taken for {base_model.value}'s"
            f" (scaling_factor {factor}); for another set spec.baseModel"
        )
    return FolderPlan(
        files=vae.files,
        base_model=base_model.value,
        pipeline_class=CLASS,
        warnings=tuple(warnings),
    )


def vae_files(
    file: TensorFile, base_model: BaseModelName, precision: Revision | None, folder: str = ""
) -> VaeFiles:
    """Plan the files of a VAE for this base model.

    folder: its folder in the pipeline. Empty if it is published alone.
    """
    refuse_quantized(file.tensors)
    channels = _latent_channels(file.tensors)
    if LATENT_CHANNELS[base_model] != channels:
        raise unsupported(f"{_described(channels)}, and not for {base_model}")
    prefix = vae_prefix(file.tensors)
    tensors = current_names(file.tensors, prefix)
    component = _placed(_table(base_model), prefix, tensors)
    dimensions: Dimensions = {}
    bound = bind(component, tensors, dimensions)
    extra = left_over(component, tensors)
    _refuse_convolutions(extra, prefix)
    items = published_items(bound, precision)
    config = fill_in(vae_template(base_model), dimensions)
    check_heads(f"{VAE}/{CONFIG_NAME}", config)
    start = f"{folder}/" if folder else ""
    return VaeFiles(
        files=(
            *component_files(folder, component.stem, items),
            json_file(f"{start}{CONFIG_NAME}", config),
        ),
        warnings=left_out(extra, "have no place in the VAE"),
    )


def vae_template(base_model: BaseModelName) -> dict[str, Any]:
    """The config of the base model's VAE, with `$expressions` instead of widths."""
    return dict(load_templates(base_model.value)[f"{VAE}/{CONFIG_NAME}"])


def _table(base_model: BaseModelName) -> Component:
    # Only the VAEs of SD 1, 2 and XL have a convolution before and after the latents.
    if LATENT_CHANNELS[base_model] == SD_LATENT_CHANNELS:
        return load_architecture(base_model.value).component(VAE)
    return encoders.vae("")


def _described(channels: int) -> str:
    """Describe a VAE with this number of latent channels, for messages."""
    families = " and ".join(families_by_latent_channels(channels))
    return f"a VAE of {channels} latent channels, as {families} have it"


def _latent_channels(tensors: Mapping[str, Tensor]) -> int:
    """The number of latent channels. Refuse a VAE of an unsupported family."""
    refuse_patterns(tensors, _OTHERS)
    first = tensors.get(vae_prefix(tensors) + _LATENTS)
    if first is not None and len(first.shape) == 5:
        raise unsupported(_OF_OTHERS)
    # Without a 2D convolution any number will do: `bind` then refuses the file.
    is_2d = first is not None and len(first.shape) == 4
    channels = first.shape[1] if first is not None and is_2d else SD_LATENT_CHANNELS
    if channels not in _ASSUMED:
        raise unsupported(
            f"a VAE of {channels} latent channels, such as FLUX.2's: {_INSTEAD}"
            if channels == _FLUX2_CHANNELS
            else f"a VAE of {channels} latent channels, which no supported family has"
        )
    return channels


def _refuse_convolutions(extra: list[str], prefix: str) -> None:
    """Refuse a convolution that the family does not have: the latents would be different."""
    for name in extra:
        if name.startswith((f"{prefix}quant_conv.", f"{prefix}post_quant_conv.")):
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"the VAE has a tensor that its architecture does not have: {snippet(name)}",
            )


def vae_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix of the names of a VAE's tensors in a file. Refuse a file without a VAE."""
    for prefix in _PREFIXES:
        if prefix + _FIRST in tensors:
            return prefix
    raise wrong_type(tensors, ModelType.VAE, f"{_PREFIXES[0]}{_FIRST} or {_FIRST}")


def _placed(component: Component, prefix: str, tensors: Mapping[str, Tensor]) -> Component:
    """Return the component with this file's prefix and layout of the names."""
    if any(name.startswith(prefix + _DIFFUSERS) for name in tensors):
        return component.in_diffusers_layout(prefix)
    return component.under(prefix)


def _family(file: TensorFile, channels: int) -> BaseModelName | None:
    """Return the base model. None if the file does not show it: some families' VAEs are equal."""
    stated = file.metadata.get(_METADATA, "")
    for beginning, family in _STATED.items():
        if stated.startswith(beginning) and LATENT_CHANNELS[family] == channels:
            return family
    if channels != SD_LATENT_CHANNELS:
        transformer = transformer_file(file.tensors)
        table = None if transformer is None else transformer.family.table
        return next(
            (family for family in families_by_latent_channels(channels) if family == table), None
        )
    if any(name.startswith(_SDXL_TEXT_ENCODERS) for name in file.tensors):
        return BaseModelName.SDXL
    if any(name.startswith(UNET_PREFIX) for name in file.tensors):
        return BaseModelName.SD1
    return None
