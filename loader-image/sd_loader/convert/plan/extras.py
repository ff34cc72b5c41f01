"""Plans the components of a pipeline that do not come from its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.component import plan_component
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.planned_extras import PlannedComponent, PlannedExtras
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_component import (
    component_tensors,
    files_of,
    model_files,
    without_skipped_layers,
)
from sd_loader.convert.plan.repo_configs import component_config, read_json, read_small
from sd_loader.convert.plan.vae import VAE, vae_files
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.families import LATENT_CHANNELS, SDXL_FAMILIES
from sd_loader.diffusers_repo.component_files import choose_files
from sd_loader.diffusers_repo.index import (
    CONFIG_NAME,
    INDEX_NAME,
    parse_pipeline,
    refuse_replaced,
)
from sd_loader.errors import LoaderError


def plan_extras(
    companions: Companions, base_model: BaseModelName, conversion: Conversion, opened: OpenFiles
) -> PlannedExtras:
    """Plan the downloaded extra components for a pipeline of this base model."""
    refuse_replaced(conversion.replaced)
    components: dict[str, PlannedComponent] = {}
    warnings: list[str] = []
    for extra in companions.extras:
        path = companions.folder / extra.path
        for component in extra.components:
            try:
                if component != VAE:
                    components[component] = _text_encoder(
                        component, path, base_model, conversion, opened
                    )
                    continue
                plan_vae = _vae_of_repo if extra.kind == "repo" else _vae_of_file
                components[component], found = plan_vae(path, base_model, conversion, opened)
                warnings += found
            except LoaderError as error:
                raise LoaderError(
                    error.reason, f"{component} from elsewhere: {error.message}"
                ) from error
    return PlannedExtras(components, tuple(warnings))


def _vae_of_file(
    path: Path, base_model: BaseModelName, conversion: Conversion, opened: OpenFiles
) -> tuple[PlannedComponent, Sequence[str]]:
    file = opened.open(path)
    vae = vae_files(file, base_model, conversion.precision, folder=VAE)
    return PlannedComponent(vae.files), vae.warnings


def _vae_of_repo(
    repo: Path, base_model: BaseModelName, conversion: Conversion, opened: OpenFiles
) -> tuple[PlannedComponent, Sequence[str]]:
    of_vae = replace(conversion, model_type=ModelType.VAE, base_model=None)
    plan = plan_component(repo, of_vae, opened, folder=VAE)
    families = {family.value: family for family in LATENT_CHANNELS}
    family = families.get(plan.base_model or "")
    if family is None or LATENT_CHANNELS[family] != LATENT_CHANNELS[base_model]:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"it is a VAE of {plan.base_model or 'another family'}, whose latents do not have the"
            f" {LATENT_CHANNELS[base_model]} channels of {base_model}",
        )
    warnings = []
    if (family in SDXL_FAMILIES) != (base_model in SDXL_FAMILIES):
        warnings.append(
            f"the VAE is, by its scaling_factor, one of {family}; the model is of {base_model}:"
            " its images may be wrong"
        )
    return PlannedComponent(plan.files), warnings


def _text_encoder(
    component: str,
    repo: Path,
    base_model: BaseModelName,
    conversion: Conversion,
    opened: OpenFiles,
) -> PlannedComponent:
    pipeline = parse_pipeline(read_small(repo / INDEX_NAME)).only([component])
    _library, expected = load_architecture(base_model.value).templates[INDEX_NAME][component]
    if pipeline.components[component] != expected:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"it is a {pipeline.components[component]}, and {base_model} needs a {expected}",
        )
    chosen = choose_files(
        files_of(repo),
        pipeline,
        conversion.precision,
        safetensors_only=conversion.safetensors_only,
    )
    folder = repo / component
    raw = read_json(folder / CONFIG_NAME, rewritten=True)
    config = component_config(raw, component, pipeline, conversion)
    tensors = without_skipped_layers(
        component_tensors(component, expected, opened.open_chosen(repo, folder, chosen)), config
    )
    dimensions: Dimensions = {}
    checked = checked_config(component, pipeline, config, tensors, dimensions)
    files = model_files(component, checked, tensors, conversion.precision)
    return PlannedComponent(tuple(files), dimensions)
