"""Plans the canonical folder of a diffusers repo, whichever program saved the repo.

Weights become safetensors under their canonical names, in the requested precision. Configs are
parsed and written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.variants import variant_of
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.extras import plan_extras
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.replaced import given_by_spec
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_component import (
    component_tensors,
    files_of,
    model_files,
    without_skipped_layers,
)
from sd_loader.convert.plan.repo_configs import (
    SCHEDULER_CONFIG,
    bundled_templates,
    component_config,
    pipeline_index,
    prediction_type,
    read_json,
    read_small,
    scheduler_config,
)
from sd_loader.convert.plan.repo_listed import plan_listed_repo
from sd_loader.convert.plan.repo_tokenizer import tokenizer_files
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.families import family_of_width
from sd_loader.convert.write.files import FolderPlan, PlannedFile, json_file
from sd_loader.diffusers_repo.component_files import choose_files, require_pipeline
from sd_loader.diffusers_repo.index import (
    CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS,
    Pipeline,
)
from sd_loader.diffusers_repo.listed import ListedPipeline, read_pipeline
from sd_loader.errors import LoaderError

_SDXL_LEVELS = 3


def plan_repo(
    repo: Path, conversion: Conversion, companions: Companions, opened: OpenFiles
) -> FolderPlan:
    """Plan the folder of a downloaded pipeline. Reads no weights and writes nothing."""
    names = files_of(repo)
    require_pipeline(list(names))
    pipeline = read_pipeline(read_small(repo / INDEX_NAME))
    if isinstance(pipeline, ListedPipeline):
        given = given_by_spec(companions, opened)
        return plan_listed_repo(repo, pipeline, conversion, opened, given)
    family = BaseModelName.SDXL if pipeline.is_sdxl else BaseModelName.SD1
    extras = plan_extras(companions, family, conversion, opened)
    chosen = choose_files(
        names,
        pipeline.without(extras.components),
        conversion.precision,
        safetensors_only=conversion.safetensors_only,
    )
    origin, pipeline = pipeline.origin, pipeline.canonical()
    templates = bundled_templates(pipeline)
    files: list[PlannedFile] = [
        file for component in extras.components.values() for file in component.files
    ]
    dimensions: Dimensions = {}
    configs: dict[str, dict[str, Any]] = {}
    for component in sorted(pipeline.components):
        if component in WEIGHTS and component not in extras.components:
            folder = repo / origin(component)
            config = component_config(
                read_json(folder / CONFIG_NAME, rewritten=True), component, pipeline, conversion
            )
            tensors = without_skipped_layers(
                component_tensors(
                    component,
                    pipeline.components[component],
                    opened.open_chosen(repo, folder, chosen),
                ),
                config,
            )
            checked = checked_config(component, pipeline, config, tensors, dimensions)
            configs[component] = checked
            files += model_files(component, checked, tensors, conversion.precision)
    for component in pipeline.components:
        if component.startswith("tokenizer"):
            files += tokenizer_files(repo / origin(component), component, templates, dimensions)
    scheduler = scheduler_config(
        # diffusers writes and reads the lower limit of DPM solvers as -Infinity.
        read_json(repo / SCHEDULER_CONFIG, infinite=True, rewritten=True),
        pipeline,
        conversion,
    )
    files.append(json_file(SCHEDULER_CONFIG, scheduler, infinite=True))
    files.append(json_file(INDEX_NAME, pipeline_index(pipeline, templates)))
    base_model = _base_model(pipeline, configs["unet"], conversion)
    return FolderPlan(
        files=tuple(files),
        base_model=base_model.value,
        variant=variant_of(base_model, pipeline.class_name, configs["unet"]),
        pipeline_class=pipeline.class_name,
        prediction_type=prediction_type(scheduler),
        warnings=extras.warnings,
    )


def _base_model(
    pipeline: Pipeline, unet: Mapping[str, Any], conversion: Conversion
) -> BaseModelName:
    family = family_of_unet(pipeline, unet)
    if conversion.base_model not in (None, family):
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"spec.baseModel is {conversion.base_model.value}, but the repo's UNet is of"
            f" {family.value}",
        )
    return family


def family_of_unet(pipeline: Pipeline, unet: Mapping[str, Any]) -> BaseModelName:
    """The family of a pipeline, by the config of its UNet."""
    known = family_of_width(unet.get("cross_attention_dim"))
    if known is not None:
        return known
    if pipeline.is_sdxl:
        is_refiner = len(unet.get("block_out_channels", [])) > _SDXL_LEVELS
        return BaseModelName.SDXL_REFINER if is_refiner else BaseModelName.SDXL
    return BaseModelName.SD2 if unet.get("use_linear_projection") else BaseModelName.SD1
