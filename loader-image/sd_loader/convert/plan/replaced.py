"""Plans a component of a listed pipeline that comes from elsewhere than the pipeline's repo.

The pipeline's repo still decides the component's class. A single file gets the config of the
component in that repo, and must fit this config.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import transformer_file, unsupported
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.file_components import transformer_files, vae_files
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.repo_component import files_of
from sd_loader.convert.plan.repo_configs import read_json
from sd_loader.convert.plan.repo_model import PlannedModel, model_config, plan_model
from sd_loader.convert.plan.scaled_fp8 import scaled
from sd_loader.diffusers_repo.classes import Role, config_class, entry
from sd_loader.diffusers_repo.component_files import component_folder
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.diffusers_repo.listed import Component
from sd_loader.diffusers_repo.listed_files import STEMS, choose_model
from sd_loader.errors import LoaderError, prefixing
from sd_loader.snippet import json_snippet
from sd_loader.tensors import TensorFile

_WIDTHS = frozenset(
    {
        "caption_channels",
        "cap_feat_dim",
        "d_model",
        "hidden_size",
        "in_channels",
        "joint_attention_dim",
        "latent_channels",
        "out_channels",
        "pooled_projection_dim",
        "projection_dim",
        "text_dim",
        "text_hidden_dim",
        "z_dim",
    }
)
"""Keys whose values must be equal in the config of a component and in the config of the component
that it replaces, if both configs have the key."""


@dataclass(frozen=True)
class Given:
    """The downloaded source of a component: either a file or a folder."""

    file: TensorFile | None = None
    """An open file, which may also hold other components."""

    repo: Path | None = None
    """The folder of a repo."""

    is_main: bool = False
    """True for the model's own source (spec.url), False for those of spec.components."""


def given_by_spec(companions: Companions, opened: OpenFiles) -> dict[str, Given]:
    """The downloaded components of the spec, by name."""
    given = {}
    for extra in companions.extras:
        path = companions.folder / extra.path
        for name in extra.components:
            is_repo = extra.kind == "repo"
            given[name] = Given(repo=path) if is_repo else Given(file=opened.open(path))
    return given


def replaced_model(
    pipeline_repo: Path,
    name: str,
    component: Component,
    given: Given,
    conversion: Conversion,
    opened: OpenFiles,
) -> PlannedModel:
    """Plan a component from its given source. Refuse a class or sizes that the pipeline cannot use.

    pipeline_repo: the folder of the pipeline's repo, which has the component that is replaced.
    """
    path = f"{name}/{CONFIG_NAME}"
    raw = read_json(pipeline_repo / path)
    with nullcontext() if given.is_main else prefixing(f"{name} from elsewhere"):
        if given.repo is not None:
            return _of_repo(given.repo, name, component, raw, conversion, opened)
        assert given.file is not None  # noqa: S101 - one of the two is given
        config = model_config(component, raw, path, conversion.precision)
        return _of_file(given.file, name, component, config, conversion)


def _of_file(
    file: TensorFile,
    name: str,
    component: Component,
    config: dict[str, Any],
    conversion: Conversion,
) -> PlannedModel:
    file = scaled(file)
    refuse_quantized(file.tensors)
    if name == "vae":
        return vae_files(file, name, component, config, conversion.precision)
    if component.role is Role.ENCODER:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"a {component.class_name} is read from a repo only: name a repo of transformers or"
            " a pipeline's repo instead of a file",
        )
    found = transformer_file(file.tensors)
    if found is None or found.family.table is None:
        what = "not the transformer of a known family" if found is None else str(found)
        raise unsupported(f"{what}; the pipeline needs a {component.class_name}")
    return transformer_files(file, found, name, component, config, conversion.precision)


def _of_repo(
    repo: Path,
    name: str,
    component: Component,
    of_pipeline: Mapping[str, Any],
    conversion: Conversion,
    opened: OpenFiles,
) -> PlannedModel:
    files = files_of(repo)
    folder = component_folder(files, name)
    if folder is None:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT, f"the repo has neither {CONFIG_NAME} nor the folder {name}"
        )
    config = read_json(repo / folder / CONFIG_NAME)
    _check_class(component, config)
    _check_widths(config, of_pipeline)
    own = choose_model(
        files,
        folder,
        STEMS[component.role],
        conversion.precision,
        safetensors_only=conversion.safetensors_only,
    )
    return plan_model(repo, str(folder), name, component, own, conversion, opened)


def _check_class(component: Component, config: Mapping[str, Any]) -> None:
    """Refuse a component whose config is not that of the class that the pipeline needs."""
    key, expected = "_class_name", component.class_name
    if component.role is Role.ENCODER:
        key, expected = "model_type", entry(config_class(component.class_name))["model_type"]
    if config.get(key) != expected:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{CONFIG_NAME} has the {key} {json_snippet(config.get(key))}, and the pipeline needs"
            f" {expected} (a {component.class_name})",
        )


def _check_widths(config: Mapping[str, Any], of_pipeline: Mapping[str, Any]) -> None:
    differing = [
        f"{key} is {json_snippet(config[key])}, and the pipeline needs"
        f" {json_snippet(of_pipeline[key])}"
        for key in sorted(_WIDTHS & config.keys() & of_pipeline.keys())
        if config[key] != of_pipeline[key]
    ]
    if differing:
        raise LoaderError(Reason.CONVERSION_FAILED, "; ".join(differing))
