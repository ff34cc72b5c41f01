"""Plans components of a listed pipeline from single files, by their key tables.

The pipeline's repo gives their configs. A file that contradicts its config is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd_api.choices import Revision
from sd_api.reasons import Reason
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.plan.config_rules import check_opens
from sd_loader.convert.plan.precision import dtype_in, published_dtype
from sd_loader.convert.plan.repo_model import PlannedModel
from sd_loader.convert.plan.vae import CLASS, vae_prefix
from sd_loader.convert.tables import encoders
from sd_loader.convert.tables.bind import bind, left_out, left_over
from sd_loader.convert.tables.transformer_widths import differences, unknown_value
from sd_loader.convert.tables.transformers import load_transformer
from sd_loader.convert.tables.vae_names import current_names
from sd_loader.convert.write.files import Item, component_files, json_file
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.diffusers_repo.listed import Component
from sd_loader.diffusers_repo.listed_files import STEMS
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet
from sd_loader.tensors import Dtype, Source, TensorFile

_IN_DIFFUSERS_LAYOUT = "encoder.down_blocks."
_OTHERS = ("text_encoders.", *encoders.VAE_PREFIXES)
"""Prefixes of the other components that a file may have."""


def transformer_files(
    file: TensorFile,
    found: TransformerFile,
    name: str,
    component: Component,
    config: dict[str, Any],
    precision: Revision | None,
) -> PlannedModel:
    """Plan the transformer of a file. Reads no weights.

    name: its folder in the pipeline, which may have two transformers. config: the published config.
    """
    family = found.family.table or ""
    original = load_transformer(family)
    if original.class_name != component.class_name:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"the file is {found}, a {original.class_name}, and the pipeline's {name} is a"
            f" {component.class_name}",
        )
    unknown = unknown_value(family, config)
    if unknown is not None:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{name}/{CONFIG_NAME} of the repo has {unknown} {json_snippet(config[unknown])},"
            f" which no published {found.family.name} has: a model with it loads only as a repo",
        )
    published = original.in_diffusers_layout()
    table = published if found.is_in_diffusers_layout else original
    tensors = {key: tensor for key, tensor in file.tensors.items() if not key.startswith(_OTHERS)}
    rows = table.component(tensors, found.prefix)
    dimensions: dict[str, int] = {}
    bound = bind(rows, tensors, dimensions)
    unused = left_over(rows, tensors)
    dimensions |= published.layers(bound)
    _refuse_differences(family, found, name, config, dimensions, bound)
    return _planned(name, component, config, bound, precision, unused)


def _refuse_differences(
    family: str,
    found: TransformerFile,
    name: str,
    config: Mapping[str, Any],
    dimensions: Mapping[str, int],
    names: Iterable[str],
) -> None:
    contradictions = [
        f"{it.key} is {it.config}, but {it.file} in the file"
        for it in differences(family, config, dimensions, names)
    ]
    if contradictions:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the file is the transformer of another variant of {found.name} than"
            f" {name}/{CONFIG_NAME} of the repo describes ({'; '.join(contradictions)}); name the"
            " repo of this variant in spec.components.from",
        )


def vae_files(
    file: TensorFile,
    name: str,
    component: Component,
    config: dict[str, Any],
    precision: Revision | None,
) -> PlannedModel:
    """Plan the VAE of a file. Reads no weights. name, config: see `transformer_files`."""
    if component.class_name != CLASS:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the pipeline's VAE is a {component.class_name}, which is read from a repo only: name"
            " a repo that has it instead of a file",
        )
    prefix = vae_prefix(file.tensors)
    tensors = current_names(file.tensors, prefix)
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    unused: list[str] = []
    if any(key.startswith(prefix + _IN_DIFFUSERS_LAYOUT) for key in own):
        bound: dict[str, Source] = {key.removeprefix(prefix): it for key, it in own.items()}
    else:
        rows = encoders.vae(prefix, quantizing=any("quant_conv" in key for key in own))
        bound = bind(rows, own, {})
        unused = left_over(rows, own)
    check_opens(name, CLASS, config, bound)
    return _planned(name, component, config, bound, precision, unused)


def _planned(
    name: str,
    component: Component,
    config: dict[str, Any],
    bound: Mapping[str, Source],
    precision: Revision | None,
    unused: list[str],
) -> PlannedModel:
    items = [
        Item(key, source, _dtype(component, key, source, precision))
        for key, source in bound.items()
    ]
    weights = component_files(name, STEMS[Role.MODEL], items)
    files = [*weights, json_file(f"{name}/{CONFIG_NAME}", config)]
    return PlannedModel(files, config, (), frozenset(), left_out(unused))


def _dtype(component: Component, name: str, source: Source, precision: Revision | None) -> Dtype:
    # Unlike repos, files may have types that no pipeline computes in.
    own = published_dtype(source.dtype, None)
    return dtype_in(component.class_name, name, own, precision)
