"""Makes the canonical folder of a diffusers repo that is one component: a ControlNet or a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType
from sd_loader.convert.plan.controlnet_check import checked_controlnet
from sd_loader.convert.plan.repo import component_tensors, files_of, write_plan
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_configs import component_config, read_small
from sd_loader.convert.plan.vae import vae_template
from sd_loader.convert.write.files import (
    DIFFUSERS_WEIGHTS,
    FolderPlan,
    Item,
    component_files,
    json_file,
    published_dtype,
)
from sd_loader.convert.write.weights import Weights
from sd_loader.diffusers_repo.component_files import choose_component
from sd_loader.diffusers_repo.index import CONFIG_NAME, SINGLE, Pipeline, parse_component
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from sd_loader.progress import Report
from sd_loader.tensors import Tensor


def convert_component(folder: Path, request: LoadRequest, out: Path, report: Report) -> Converted:
    """Convert a downloaded repo of one component into the empty folder `out`."""
    with ExitStack() as stack:
        weights = Weights(stack)
        plan = plan_component(folder, request, weights)
        return write_plan(plan, weights, request, out, report)


def plan_component(
    folder: Path, request: LoadRequest, weights: Weights, published: str = ""
) -> FolderPlan:
    """Which files the component becomes.

    published: the folder within a pipeline that it is for; empty where it is published alone.
    """
    component, class_name = SINGLE[request.model_type]
    names = files_of(folder)
    # Of a pipeline's repo only this folder was downloaded.
    inner = PurePosixPath("" if CONFIG_NAME in names else component)
    _config, *chosen = choose_component(
        names, inner, request.revision, safetensors_only=bool(request.from_safetensors)
    )
    tensors = component_tensors(
        component, class_name, weights.open_chosen(folder, folder / inner, chosen)
    )
    content = parse_component(read_small(folder / inner / CONFIG_NAME), request.model_type)
    pipeline = Pipeline("StableDiffusionPipeline", {component: class_name}, {})
    found = component_config(content, component, pipeline, request)
    config, base = _checked(found, tensors, request, pipeline)
    if request.base_model is not None and base not in (None, request.base_model):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"spec.baseModel is {request.base_model.value}, but the repo's {component} is of"
            f" {base.value}",
        )
    items = [
        Item(name, tensor, published_dtype(tensor.dtype, request.revision))
        for name, tensor in tensors.items()
    ]
    start = f"{published}/" if published else ""
    return FolderPlan(
        files=(
            *component_files(published, DIFFUSERS_WEIGHTS, items),
            json_file(f"{start}{CONFIG_NAME}", config),
        ),
        base_model=base.value if base else None,
        pipeline_class=class_name,
    )


def _checked(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    request: LoadRequest,
    pipeline: Pipeline,
) -> tuple[dict[str, Any], BaseModelName | None]:
    """The config, completed by what the tensors say, and the base model as far as it is told."""
    if request.model_type is ModelType.CONTROLNET:
        wanted = request.upcast_attention
        upcast = {} if wanted is None else {"upcast_attention": wanted}
        return checked_controlnet({**config, **upcast}, tensors)
    checked = checked_config("vae", pipeline, config, tensors, {})
    if checked.get("latent_channels", 4) != 4:
        return checked, None
    if checked.get("scaling_factor") == vae_template(BaseModelName.SDXL)["scaling_factor"]:
        # The refiner's is the same.
        is_refiner = request.base_model is BaseModelName.SDXL_REFINER
        return checked, BaseModelName.SDXL_REFINER if is_refiner else BaseModelName.SDXL
    # SD 2's is SD 1's.
    is_sd2 = request.base_model is BaseModelName.SD2
    return checked, BaseModelName.SD2 if is_sd2 else BaseModelName.SD1
