"""Plans the folder of a repo that is a ControlNet or VAE of another family than SD 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sd_loader.convert.conversion import Conversion, refuse_contradiction
from sd_loader.convert.plan.config_rules import check_opens, is_checked
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.quantized_repo import precision_of
from sd_loader.convert.plan.repo_listed import CHECKED_NAMES
from sd_loader.convert.plan.repo_model import PlannedModel, plan_model
from sd_loader.convert.write.files import FolderPlan, PlannedFile
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.config_keys import allowed_config
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.diffusers_repo.single_component import SingleComponent


def plan_listed_component(
    repo: Path,
    folder: str,
    component: SingleComponent,
    own: list[RepoFile],
    conversion: Conversion,
    opened: OpenFiles,
) -> FolderPlan:
    """Plan the folder of a downloaded component. Reads no weights and writes nothing.

    folder: the component's folder in the repo. own: the chosen files in that folder.
    """
    name = component.name
    refuse_contradiction(
        conversion.base_model,
        () if component.other_family is None else (component.other_family,),
        f"the repo is a {component.class_name}, a {name} of {component.other_family}",
    )
    model = plan_model(repo, folder, name, component.listed, own, conversion, opened)
    is_quantized = bool(model.formats)
    has_shapes = is_checked(component.class_name) and not is_quantized
    if has_shapes:
        _check(component, model)
    return FolderPlan(
        files=tuple(_at_the_root(name, model.files)),
        base_model=component.other_family,
        pipeline_class=component.class_name,
        quantized=precision_of(model.formats) if is_quantized else None,
        checked=None if has_shapes else CHECKED_NAMES,
    )


def _check(component: SingleComponent, model: PlannedModel) -> None:
    """Refuse tensors that are missing or do not fit the config."""
    path = f"{component.name}/{CONFIG_NAME}"
    # This check limits the values more strictly than `plan_model` did.
    allowed_config(model.config, component.class_name, path)
    tensors = {name: tensor for file in model.weights for name, tensor in file.tensors.items()}
    check_opens(component.name, component.class_name, model.config, tensors)


def _at_the_root(name: str, files: Iterable[PlannedFile]) -> Iterable[PlannedFile]:
    return (replace(file, path=file.path.removeprefix(f"{name}/")) for file in files)
