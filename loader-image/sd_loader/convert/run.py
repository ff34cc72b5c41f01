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
    companions = Companions(source_dir, fetched.original_config, fetched.extras, fetched.skeleton)
    missing = conversion.replaced.difference(*(extra.components for extra in companions.extras))
    if missing:
        # Without this check the model's own components would be published.
        raise LoaderError(
            Reason.LOADER_CRASHED,
            f"these components of the spec are not downloaded: {', '.join(sorted(missing))}; run"
            " fetch again",
        )
    with ExitStack() as stack:
        opened = OpenFiles(stack, safetensors_only=conversion.safetensors_only)
        if fetched.kind == "repo":
            return _convert_repo(fetched, companions, opened, conversion, out, report)
        return _convert_file(fetched, companions, opened, conversion, out, report)


def _convert_repo(
    fetched: Fetched,
    companions: Companions,
    opened: OpenFiles,
    conversion: Conversion,
    out: Path,
    report: Report,
) -> Converted:
    # Imported here: a load converts one kind of source, and starts faster without the modules for
    # the other kinds.
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
    files = write_or_link(plan, opened.files, fetched.arrived_in(companions.folder), out, report)
    verify_folder(out, plan, conversion.verify, report)
    return plan.converted(files)


def _convert_file(
    fetched: Fetched,
    companions: Companions,
    opened: OpenFiles,
    conversion: Conversion,
    out: Path,
    report: Report,
) -> Converted:
    path = companions.folder / fetched.path
    file = opened.open(path)
    expanded = expand_lycoris(file, conversion, path.parent, opened)
    plan = plan_download(expanded.file, conversion, companions, opened)
    plan = replace(plan, warnings=(*expanded.warnings, *plan.warnings))
    if fetched.skeleton is None:
        files = write_folder(out, plan.files, report, opened.files.values())
    else:
        from sd_loader.convert.write.folder import write_or_link  # only with a skeleton

        arrived = fetched.arrived_in(companions.folder)
        files = write_or_link(plan, opened.files, arrived, out, report)
    verify_folder(out, plan, conversion.verify, report)
    return plan.converted(files)
