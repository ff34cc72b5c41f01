"""Plans the pipeline of a transformer that came in a single file.

A repo of diffusers, the skeleton, gives all components that neither the file nor the spec gives. It
also decides what tensors cannot show: the pipeline's class and the transformer's config.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.convert.conversion import (
    Conversion,
    refuse_contradiction,
    refuse_without_effect,
)
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.replaced import Given, given_by_spec, replaced_model
from sd_loader.convert.plan.repo_configs import read_small
from sd_loader.convert.plan.repo_listed import plan_listed_repo
from sd_loader.convert.plan.scaled_fp8 import without_scales
from sd_loader.convert.plan.vae import CLASS as VAE_CLASS
from sd_loader.convert.plan.vae import VAE
from sd_loader.convert.tables.transformers import TRANSFORMER, load_transformer
from sd_loader.convert.write.files import FolderPlan
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.diffusers_repo.listed import AnyPipeline, ListedPipeline, read_pipeline, title
from sd_loader.errors import LoaderError
from sd_loader.tensors import TensorFile


def check_skeleton(
    pipeline: AnyPipeline, found: TransformerFile, conversion: Conversion
) -> ListedPipeline:
    """Return the repo's pipeline; the components that the file or the spec gives are `replaced`.

    Refuse a repo of another family than the file's, and a repo without one of these components.
    Also refuse options that have no effect on the file.
    """
    family = found.family.table or ""
    refuse_contradiction(conversion.base_model, [family], f"the file is {found}")
    refuse_without_effect(str(found), conversion, takes_components=True)
    if TRANSFORMER in conversion.replaced:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.components.{TRANSFORMER} does not apply: the file of spec.url is {found}",
        )
    wanted = load_transformer(family).class_name
    listed = pipeline if isinstance(pipeline, ListedPipeline) else None
    own = None if listed is None else listed.components.get(TRANSFORMER)
    if listed is not None and own is None and TRANSFORMER in listed.nulls:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"the repo is {listed.title} without the component {TRANSFORMER}, whose config the file"
            f" needs: name a diffusers repo of {found.name} that has it",
        )
    if listed is None or own is None or own.class_name != wanted:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"the repo is {title(pipeline.class_name)}, and the file is {found}: name a diffusers"
            f" repo of {found.name}, whose transformer is a {wanted}",
        )
    return listed.without({*_given_by(found, listed), *conversion.replaced})


def check_sizes(
    repo: Path,
    pipeline: ListedPipeline,
    file: TensorFile,
    found: TransformerFile,
    conversion: Conversion,
) -> None:
    """Refuse a repo whose configs contradict the file. Only the repo's small files are needed.

    file: its header is enough. pipeline: the result of `check_skeleton`.
    """
    header = replace(file, tensors=without_scales(file.tensors))
    with ExitStack() as stack:
        for name in set(_given_by(found, pipeline)) - conversion.replaced:
            given = Given(file=header, is_main=True)
            component = pipeline.components[name]
            replaced_model(repo, name, component, given, conversion, OpenFiles(stack))


def plan_on_skeleton(
    file: TensorFile,
    found: TransformerFile,
    companions: Companions,
    conversion: Conversion,
    opened: OpenFiles,
) -> FolderPlan:
    """Plan the folder of a file and its skeleton. Reads no weights and writes nothing."""
    repo = companions.folder / (companions.skeleton or "")
    pipeline = check_skeleton(read_pipeline(read_small(repo / INDEX_NAME)), found, conversion)
    by_file = {name: Given(file=file, is_main=True) for name in _given_by(found, pipeline)}
    given = {**by_file, **given_by_spec(companions, opened)}
    plan = plan_listed_repo(repo, pipeline, conversion, opened, given)
    return replace(plan, warnings=(*_warnings(found, by_file), *plan.warnings))


def _given_by(found: TransformerFile, pipeline: ListedPipeline) -> tuple[str, ...]:
    """The components of the pipeline that the file gives."""
    vae = pipeline.components.get(VAE)
    if found.has_vae and vae is not None and vae.class_name == VAE_CLASS:
        return (TRANSFORMER, VAE)
    return (TRANSFORMER,)


def _warnings(found: TransformerFile, given: Container[str]) -> tuple[str, ...]:
    """Return a warning that names the components of the file that are not used."""
    left_out = [found.family.encoders] if found.has_encoders else []
    left_out += ["VAE"] if found.has_vae and VAE not in given else []
    if not left_out:
        return ()
    return (f"not used from the file: {' and '.join(left_out)}; the repo gives them",)
