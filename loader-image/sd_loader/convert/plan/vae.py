"""Plans the folder of a VAE that came as a single file, alone or within a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.choices import BaseModelName, ModelType, Revision
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import UNET_PREFIX, refuse_patterns, wrong_type
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.config_rules import check_heads
from sd_loader.convert.plan.precision import published_items
from sd_loader.convert.tables.architecture import (
    ARCHITECTURES,
    Architecture,
    Component,
    fill_in,
    load_architecture,
)
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.families import SDXL_FAMILIES
from sd_loader.convert.tables.vae_names import current_names
from sd_loader.convert.write.files import FolderPlan, PlannedFile, component_files, json_file
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

_CLASS = "AutoencoderKL"
VAE = "vae"
"""Name of the component in a pipeline."""

_PREFIXES = ("first_stage_model.", "vae.", "")
_FIRST = "encoder.conv_in.weight"
_LATENTS = "decoder.conv_in.weight"
_DIFFUSERS = "encoder.down_blocks."
_SDXL_TEXT_ENCODERS = "conditioner."
_METADATA = "modelspec.architecture"
_SDXL_METADATA = "stable-diffusion-xl"
_OTHERS = {
    r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.": "a tiny VAE (TAESD, AutoencoderTiny), which is"
    " not supported",
}


@dataclass(frozen=True)
class VaeFiles:
    """The planned folder of a VAE."""

    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...]
    """Warnings for the user about them."""


def plan_vae(file: TensorFile, conversion: Conversion) -> FolderPlan:
    """Plan the folder of a VAE. Reads no weights and writes nothing."""
    family = conversion.base_model or _family(file)
    base_model = family or BaseModelName.SD1
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
        pipeline_class=_CLASS,
        warnings=tuple(warnings),
    )


def vae_files(
    file: TensorFile, base_model: BaseModelName, precision: Revision | None, folder: str = ""
) -> VaeFiles:
    """Plan the files of a VAE for this base model.

    folder: its folder in the pipeline. Empty if it is published alone.
    """
    refuse_quantized(file.tensors)
    refuse_patterns(file.tensors, _OTHERS)
    prefix = _prefix(file.tensors)
    tensors = current_names(file.tensors, prefix)
    table = _architecture(base_model).component(VAE)
    component = _placed(table, prefix, tensors)
    _refuse_other_latents(tensors.get(prefix + _LATENTS))
    dimensions: Dimensions = {}
    bound = bind(component, tensors, dimensions)
    extra = left_over(component, tensors)
    items = published_items(bound, precision)
    config = fill_in(vae_template(base_model), dimensions)
    check_heads(f"{VAE}/{CONFIG_NAME}", config)
    start = f"{folder}/" if folder else ""
    return VaeFiles(
        files=(
            *component_files(folder, component.stem, items),
            json_file(f"{start}{CONFIG_NAME}", config),
        ),
        warnings=_warnings(extra),
    )


def vae_template(base_model: BaseModelName) -> dict[str, Any]:
    """The config of the base model's VAE, with its widths still open."""
    return dict(_architecture(base_model).templates[f"{VAE}/{CONFIG_NAME}"])


def _architecture(base_model: BaseModelName) -> Architecture:
    usual = BaseModelName.SDXL if base_model in SDXL_FAMILIES else BaseModelName.SD1
    # All families name the VAE's tensors alike.
    name = base_model if base_model.value in ARCHITECTURES else usual
    return load_architecture(name.value)


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    for prefix in _PREFIXES:
        if prefix + _FIRST in tensors:
            return prefix
    raise wrong_type(tensors, ModelType.VAE, f"{_PREFIXES[0]}{_FIRST} or {_FIRST}")


def _placed(component: Component, prefix: str, tensors: Mapping[str, Tensor]) -> Component:
    """The component with the names of this file."""
    if any(name.startswith(prefix + _DIFFUSERS) for name in tensors):
        return component.in_diffusers_layout(prefix)
    return component.under(prefix)


def _family(file: TensorFile) -> BaseModelName | None:
    """The base model, if the file shows one. A VAE's own tensors are alike in all families."""
    if file.metadata.get(_METADATA, "").startswith(_SDXL_METADATA):
        return BaseModelName.SDXL
    if any(name.startswith(_SDXL_TEXT_ENCODERS) for name in file.tensors):
        return BaseModelName.SDXL
    if any(name.startswith(UNET_PREFIX) for name in file.tensors):
        return BaseModelName.SD1
    return None


def _refuse_other_latents(first: Tensor | None) -> None:
    channels = first.shape[1] if first is not None and len(first.shape) == 4 else None
    if channels not in (None, 4):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is a VAE of {channels} latent channels, such as Flux's or Stable Diffusion"
            " 3's; as a single file only those of 4 are supported",
        )


def _warnings(extra: list[str]) -> tuple[str, ...]:
    if not extra:
        return ()
    return (
        f"{len(extra)} tensors have no place in the VAE and were left out,"
        f" first {snippet(extra[0])}",
    )
