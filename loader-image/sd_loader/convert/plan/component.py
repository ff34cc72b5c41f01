"""Plans the canonical folder of a diffusers repo that is one component: a ControlNet or a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.component_listed import plan_listed_component
from sd_loader.convert.plan.controlnet_check import checked_controlnet
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import published_items
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_component import component_tensors, files_of
from sd_loader.convert.plan.repo_configs import component_config, read_small
from sd_loader.convert.plan.vae import vae_template
from sd_loader.convert.tables.architecture import DIFFUSERS_WEIGHTS
from sd_loader.convert.tables.families import SD_LATENT_CHANNELS, families_by_latent_channels
from sd_loader.convert.write.files import FolderPlan, component_files, json_file
from sd_loader.diffusers_repo.index import CONFIG_NAME, Pipeline
from sd_loader.diffusers_repo.listed_files import choose_single
from sd_loader.diffusers_repo.single_component import SINGLE, parse_component
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor


def plan_component(
    repo: Path, conversion: Conversion, opened: OpenFiles, folder: str = ""
) -> FolderPlan:
    """Plan the folder of a downloaded component. Reads no weights and writes nothing.

    folder: the component's folder in the pipeline. Empty if the component is published alone.
    """
    component, class_name = SINGLE[conversion.model_type]
    names = files_of(repo)
    # If the repo is a whole pipeline's, only this folder of it was downloaded.
    inner = PurePosixPath("" if CONFIG_NAME in names else component)
    found = parse_component(read_small(repo / inner / CONFIG_NAME), conversion.model_type)
    _config, *chosen = choose_single(
        names, inner, found, conversion.precision, safetensors_only=conversion.safetensors_only
    )
    if found.other_family is not None:
        return plan_listed_component(repo, str(inner), found, chosen, conversion, opened)
    tensors = component_tensors(
        component, class_name, opened.open_chosen(repo, repo / inner, chosen)
    )
    pipeline = Pipeline("StableDiffusionPipeline", {component: class_name}, {})
    own = component_config(found.config, component, pipeline, conversion)
    config, family = _checked(own, tensors, conversion, pipeline)
    if conversion.base_model is not None and family not in (None, conversion.base_model):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"spec.baseModel is {conversion.base_model.value}, but the repo's {component} is of"
            f" {family.value}",
        )
    start = f"{folder}/" if folder else ""
    return FolderPlan(
        files=(
            *component_files(
                folder, DIFFUSERS_WEIGHTS, published_items(tensors, conversion.precision)
            ),
            json_file(f"{start}{CONFIG_NAME}", config),
        ),
        base_model=family.value if family else None,
        pipeline_class=class_name,
    )


def _checked(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    conversion: Conversion,
    pipeline: Pipeline,
) -> tuple[dict[str, Any], BaseModelName | None]:
    """Return the config, completed from the tensors, and the family (None if it is unknown)."""
    if conversion.model_type is ModelType.CONTROLNET:
        wanted = conversion.upcast_attention
        upcast = {} if wanted is None else {"upcast_attention": wanted}
        return checked_controlnet({**config, **upcast}, tensors)
    checked = checked_config("vae", pipeline, config, tensors, {})
    channels = checked.get("latent_channels", SD_LATENT_CHANNELS)
    factor = checked.get("scaling_factor")
    if channels != SD_LATENT_CHANNELS:
        like = families_by_latent_channels(channels)
        fitting = (family for family in like if vae_template(family)["scaling_factor"] == factor)
        return checked, next(fitting, None)
    if factor == vae_template(BaseModelName.SDXL)["scaling_factor"]:
        # The refiner has the same VAE.
        is_refiner = conversion.base_model is BaseModelName.SDXL_REFINER
        return checked, BaseModelName.SDXL_REFINER if is_refiner else BaseModelName.SDXL
    # SD 2 has the VAE of SD 1.
    is_sd2 = conversion.base_model is BaseModelName.SD2
    return checked, BaseModelName.SD2 if is_sd2 else BaseModelName.SD1
