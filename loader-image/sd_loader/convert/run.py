"""Converts a finished download into the folder that is published."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sd_api.choices import ModelType, Weights
from sd_api.reasons import Reason
from sd_loader.convert.conversion import NO_EMA, Conversion, refuse_impossible
from sd_loader.convert.expansion import expand_lycoris
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.file import plan_download
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.vae import VAE
from sd_loader.convert.write.verify import verify_folder
from sd_loader.convert.write.writer import write_folder
from sd_loader.diffusers_repo.single_component import SINGLE
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted, Fetched
from sd_loader.progress import Report


def convert(
    fetched: Fetched, source_dir: Path, conversion: Conversion, out: Path, report: Report
) -> Converted:
    """Convert the download in `source_dir` into the empty folder `out`."""
    refuse_impossible(conversion)
    companions = Companions(source_dir, fetched.original_config, fetched.extras)
    has_vae = any(VAE in extra.components for extra in companions.extras)
    if conversion.replacement_vae and not has_vae:
        # Without this check the model's own VAE would be published.
        raise LoaderError(
            Reason.LOADER_CRASHED, "the VAE of spec.vae is not downloaded; run fetch again"
        )
    with ExitStack() as stack:
        opened = OpenFiles(stack)
        if fetched.kind == "repo":
            return _convert_repo(fetched, companions, opened, conversion, out, report)
        path = source_dir / fetched.path
        return _convert_file(path, companions, opened, conversion, out, report)


def _convert_repo(
    fetched: Fetched,
    companions: Companions,
    opened: OpenFiles,
    conversion: Conversion,
    out: Path,
    report: Report,
) -> Converted:
    # Imported here: a load converts one kind of source, and starts faster without the others.
    from sd_loader.convert.plan.component import plan_component
    from sd_loader.convert.plan.embedding import plan_embedding_of_repo
    from sd_loader.convert.plan.repo import plan_repo
    from sd_loader.convert.write.folder import write_or_link

    path = companions.folder / fetched.path
    if conversion.model_type in SINGLE:
        plan = plan_component(path, conversion, opened)
    elif conversion.model_type is ModelType.EMBEDDINGS:
        plan = plan_embedding_of_repo(path, conversion, opened)
    elif conversion.weights is Weights.EMA:
        raise LoaderError(Reason.INVALID_SPEC, NO_EMA)
    else:
        plan = plan_repo(path, conversion, companions, opened)
    arrived = {companions.folder / name: file for name, file in fetched.files.items()}
    files = write_or_link(plan, opened.files, arrived, out, report)
    verify_folder(out, plan, conversion.verify, report)
    return plan.converted(files)


def _convert_file(
    path: Path,
    companions: Companions,
    opened: OpenFiles,
    conversion: Conversion,
    out: Path,
    report: Report,
) -> Converted:
    file = opened.open(path)
    expanded = expand_lycoris(file, conversion, path.parent, opened)
    plan = plan_download(expanded.file, conversion, companions, opened)
    plan = replace(plan, warnings=(*expanded.warnings, *plan.warnings))
    files = write_folder(out, plan.files, report, opened.files.values())
    verify_folder(out, plan, conversion.verify, report)
    return plan.converted(files)
