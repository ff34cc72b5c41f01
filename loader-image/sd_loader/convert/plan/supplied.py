"""Plans the parts of a pipeline that come from elsewhere than its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType
from sd_loader.convert.plan.beside import Supplied
from sd_loader.convert.plan.component import plan_component
from sd_loader.convert.plan.repo import Planned, component_tensors, files_of, model_files
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_configs import component_config, read_json, read_small
from sd_loader.convert.plan.vae import NAME, vae_files
from sd_loader.convert.tables import architecture
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.write.weights import Weights
from sd_loader.diffusers_repo.component_files import choose_files
from sd_loader.diffusers_repo.index import INDEX_NAME, parse_pipeline
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS

if TYPE_CHECKING:
    from sd_loader.handover import ExtraComponent

_SDXL = (BaseModelName.SDXL, BaseModelName.SDXL_REFINER)


def plan_parts(
    parts: Sequence[ExtraComponent],
    source_dir: Path,
    base: BaseModelName,
    request: LoadRequest,
    weights: Weights,
) -> Planned:
    """Plan the downloaded parts for a model of this base. Reads no weights, writes nothing."""
    planned: dict[str, Supplied] = {}
    warnings: list[str] = []
    for part in parts:
        path = source_dir / part.path
        for component in part.components:
            try:
                if component != NAME:
                    planned[component] = _text_encoder(component, path, base, request, weights)
                elif part.kind == "repo":
                    planned[component], said = _vae_of_repo(path, base, request, weights)
                    warnings += said
                else:
                    planned[component], said = _vae_of_file(path, base, request, weights)
                    warnings += said
            except LoaderError as error:
                raise LoaderError(
                    error.reason, f"{component} from elsewhere: {error.message}"
                ) from error
    return Planned(planned, tuple(warnings))


def _vae_of_file(
    path: Path, base: BaseModelName, request: LoadRequest, weights: Weights
) -> tuple[Supplied, Sequence[str]]:
    file = weights.open(path)
    if request.from_safetensors and file.format != SAFETENSORS:
        raise LoaderError(
            Reason.UNSAFE_MODEL, "spec.fromSafetensors asks for safetensors, but it is a pickle"
        )
    found = vae_files(file, base, request.revision, folder=NAME)
    return Supplied(found.files), found.warnings


def _vae_of_repo(
    folder: Path, base: BaseModelName, request: LoadRequest, weights: Weights
) -> tuple[Supplied, Sequence[str]]:
    asked = request.model_copy(update={"model_type": ModelType.VAE, "base_model": None})
    plan = plan_component(folder, asked, weights, published=NAME)
    found = BaseModelName(plan.base_model) if plan.base_model else None
    warnings = []
    if found is None or (found in _SDXL) != (base in _SDXL):
        warnings.append(
            f"the VAE is, by its scaling_factor, {'none' if found is None else f'one of {found}'};"
            f" the model is of {base}: its images may be wrong"
        )
    return Supplied(plan.files), warnings


def _text_encoder(
    component: str, folder: Path, base: BaseModelName, request: LoadRequest, weights: Weights
) -> Supplied:
    pipeline = parse_pipeline(read_small(folder / INDEX_NAME)).only([component])
    _library, expected = architecture.load(base.value).templates[INDEX_NAME][component]
    if pipeline.components[component] != expected:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"it is a {pipeline.components[component]}, and {base} needs a {expected}",
        )
    chosen = choose_files(
        files_of(folder),
        pipeline,
        request.revision,
        safetensors_only=bool(request.from_safetensors),
    )
    own = folder / component
    found = component_config(read_json(own / "config.json"), component, pipeline, request)
    tensors = component_tensors(component, expected, weights.open_chosen(folder, own, chosen))
    dimensions: Dimensions = {}
    config = checked_config(component, pipeline, found, tensors, dimensions)
    return Supplied(tuple(model_files(component, config, tensors, request)), dimensions)
