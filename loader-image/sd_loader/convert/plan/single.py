"""Plans and converts a single file, with what was downloaded beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_loader.convert import configs_needed, plan_file
from sd_loader.convert.plan.beside import Beside
from sd_loader.convert.plan.original import read_original
from sd_loader.convert.verify import verify_folder
from sd_loader.convert.write.files import FolderPlan
from sd_loader.convert.write.weights import Weights
from sd_loader.convert.write.writer import write_folder
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS
from sd_loader.handover import Converted
from sd_loader.progress import Report
from sd_loader.tensors import TensorFile

if TYPE_CHECKING:
    from sd_loader.handover import ExtraComponent, Fetched


def convert_single(
    fetched: Fetched, source_dir: Path, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Convert a downloaded file into the empty folder `out`."""
    with ExitStack() as stack:
        weights = Weights(stack)
        file = weights.open(source_dir / fetched.path)
        _refuse_pickle(file, request)
        if configs_needed(file, request) is not None:
            from sd_loader.convert.fallback import convert_by_diffusers

            return convert_by_diffusers(file, source_dir, request, out, report)
        plan = plan_single(
            file, request, source_dir, fetched.original_config, fetched.parts, weights
        )
        files = write_folder(out, plan.files, report, weights.files.values())
    verify_folder(out, plan, request.verify, report)
    return plan.converted(files)


def plan_single(
    file: TensorFile,
    request: LoadRequest,
    source_dir: Path,
    original_config: str | None,
    parts: Sequence[ExtraComponent],
    weights: Weights,
) -> FolderPlan:
    """Plan the folder of an open file. Reads no weights, writes nothing.

    original_config, parts: what lies beside it in the source folder; weights: where the parts' own
    files are opened.
    """
    _refuse_pickle(file, request)
    beside = Beside()
    if original_config is not None:
        beside = Beside(original=read_original(source_dir / original_config))
    if not parts:
        return plan_file(file, request, beside)
    # Imported here: most models have all of their parts.
    from sd_loader.convert.detect.detect import detect
    from sd_loader.convert.plan.supplied import plan_parts

    base = detect(file.tensors, request.base_model)
    planned = plan_parts(parts, source_dir, base, request, weights)
    plan = plan_file(file, request, replace(beside, parts=planned.parts))
    return replace(plan, warnings=(*plan.warnings, *planned.warnings))


def _refuse_pickle(file: TensorFile, request: LoadRequest) -> None:
    if request.from_safetensors and file.format != SAFETENSORS:
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            "spec.fromSafetensors asks for safetensors, but the file is a pickle",
        )
