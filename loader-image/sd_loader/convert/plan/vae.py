"""Plans the folder of a VAE that came as a single file, alone or within a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType, Revision
from sd_loader.convert.detect.detect import UNET
from sd_loader.convert.detect.kinds import refuse_kinds, wrong_type
from sd_loader.convert.plan.small_files import check_heads
from sd_loader.convert.plan.vae_names import current_names
from sd_loader.convert.tables import architecture
from sd_loader.convert.tables.architecture import Component, fill_in
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.standalone import own_layout, under
from sd_loader.convert.write.files import (
    FolderPlan,
    Item,
    PlannedFile,
    component_files,
    json_file,
    published_dtype,
)
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

CLASS = "AutoencoderKL"
NAME = "vae"
CONFIG = "config.json"

_PREFIXES = ("first_stage_model.", "vae.", "")
_FIRST = "encoder.conv_in.weight"
_LATENTS = "decoder.conv_in.weight"
_DIFFUSERS = "encoder.down_blocks."
_SDXL_TEXT = "conditioner."
_METADATA = "modelspec.architecture"
_SDXL_METADATA = "stable-diffusion-xl"
_OTHERS = {
    r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.": "a tiny VAE (TAESD, AutoencoderTiny), which is"
    " not supported",
}


@dataclass(frozen=True)
class VaeFiles:
    """A VAE's files, and what the user should know of them."""

    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...]


def plan_vae(file: TensorFile, request: LoadRequest) -> FolderPlan:
    """Which files the VAE becomes. Reads no weights, writes nothing."""
    found = request.base_model or _family(file)
    base = found or BaseModelName.SD1
    vae = vae_files(file, base, request.revision)
    warnings = list(vae.warnings)
    if found is None:
        factor = vae_template(base)["scaling_factor"]
        warnings.append(
            f"the file does not say for which base model the VAE is: taken for {base.value}'s"
            f" (scaling_factor {factor}); for another set spec.baseModel"
        )
    return FolderPlan(
        files=vae.files,
        base_model=base.value,
        pipeline_class=CLASS,
        warnings=tuple(warnings),
    )


def vae_files(
    file: TensorFile, base: BaseModelName, revision: Revision | None, folder: str = ""
) -> VaeFiles:
    """The files of a VAE for this base model, in a folder of their own or alone."""
    refuse_kinds(file.tensors, _OTHERS)
    prefix = _prefix(file.tensors)
    tensors = current_names(file.tensors, prefix)
    table = next(part for part in _known(base).components if part.name == NAME)
    component = _placed(table, prefix, tensors)
    _refuse_other_latents(tensors.get(prefix + _LATENTS))
    dimensions: Dimensions = {}
    bound = bind(component, tensors, dimensions)
    extra = left_over(component, tensors)
    items = [
        Item(name, tensor, published_dtype(tensor.dtype, revision))
        for name, tensor in bound.items()
    ]
    config = fill_in(vae_template(base), dimensions)
    check_heads(f"{NAME}/{CONFIG}", config)
    start = f"{folder}/" if folder else ""
    return VaeFiles(
        files=(
            *component_files(folder, component.stem, items),
            json_file(f"{start}{CONFIG}", config),
        ),
        warnings=_warnings(extra),
    )


def vae_template(base: BaseModelName) -> dict[str, Any]:
    """The config of the base model's VAE, whose widths are still open."""
    return dict(_known(base).templates[f"{NAME}/{CONFIG}"])


def _known(base: BaseModelName) -> architecture.Architecture:
    is_sdxl = base in (BaseModelName.SDXL, BaseModelName.SDXL_REFINER)
    usual = BaseModelName.SDXL if is_sdxl else BaseModelName.SD1
    # The names are the same in all families; so is the config of SD 2's, but for the image size.
    name = base if base.value in architecture.ARCHITECTURES else usual
    return architecture.load(name.value)


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    for prefix in _PREFIXES:
        if prefix + _FIRST in tensors:
            return prefix
    raise wrong_type(tensors, ModelType.VAE, f"{_PREFIXES[0]}{_FIRST} or {_FIRST}")


def _placed(component: Component, prefix: str, tensors: Mapping[str, Tensor]) -> Component:
    """The component as this file names its tensors."""
    if any(name.startswith(prefix + _DIFFUSERS) for name in tensors):
        return own_layout(component, prefix)
    return under(component, prefix)


def _family(file: TensorFile) -> BaseModelName | None:
    """The base model, where the file tells: the keys of all VAEs are the same."""
    if file.metadata.get(_METADATA, "").startswith(_SDXL_METADATA):
        return BaseModelName.SDXL
    if any(name.startswith(_SDXL_TEXT) for name in file.tensors):
        return BaseModelName.SDXL
    if any(name.startswith(UNET) for name in file.tensors):
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
