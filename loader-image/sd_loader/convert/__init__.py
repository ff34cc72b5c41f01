"""Makes a diffusers folder of what was downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType, Weights
from sd_loader.convert.result import Converted, FileDigest
from sd_loader.errors import LoaderError
from sd_loader.progress import Report
from sd_loader.torchstack import refuse_without_torch

if TYPE_CHECKING:
    from sd_loader.convert.plan import FolderPlan
    from sd_loader.source import Fetched
    from sd_loader.tensors import TensorFile

__all__ = [
    "Converted",
    "FileDigest",
    "configs_needed",
    "convert",
    "plan_file",
    "refuse_unavailable",
]

_MODEL_TYPES = (ModelType.CUSTOM_CKPT, ModelType.HUGGINGFACE)
_CHECKPOINTS = (ModelType.CUSTOM_CKPT, ModelType.API_TRAINED)


def convert(
    fetched: Fetched, source_dir: Path, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Convert the download in `source_dir` into the empty folder `out`."""
    refuse_unavailable(request)
    path = source_dir / fetched.path
    # Imported here: neither way needs the other's modules.
    if fetched.kind == "repo":
        from sd_loader.convert.repo import convert_repo

        return convert_repo(path, request, out, report)
    return _convert_file(path, request, out, report)


def refuse_unavailable(request: LoadRequest) -> None:
    """Refuse what cannot be done, rather than publish something else; needs no download."""
    if request.model_type not in _MODEL_TYPES:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"model type {request.model_type.value} is not supported by this version of the loader",
        )
    refuse_without_torch(request)
    if request.weights is Weights.EMA and request.model_type is ModelType.HUGGINGFACE:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.weights: ema is for checkpoints: a repo has one set of weights",
        )
    asked_for = {
        "vae": request.vae,
        "originalConfig": request.original_config,
    }
    for field, value in asked_for.items():
        if value:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.{field} is not supported by this version of the loader"
            )


def plan_file(file: TensorFile, request: LoadRequest) -> FolderPlan:
    """Plan the folder of a single file, by the model type. Reads no weights, writes nothing."""
    from sd_loader.convert.checkpoint import plan_checkpoint

    return plan_checkpoint(file, request)


def configs_needed(fetched: Fetched, source_dir: Path, request: LoadRequest) -> str | None:
    """The Hub repo whose configs this download cannot be converted without; mostly none."""
    from sd_loader.formats import open_tensor_file

    if fetched.kind != "file":
        return None
    try:
        file = open_tensor_file(source_dir / fetched.path)
    except LoaderError:
        return None  # the conversion will say so
    with file:
        other = _other(file, request)
        if other is None:
            return None
        from sd_loader.convert.fallback import config_repo

        return config_repo(other, file.tensors)


def _other(file: TensorFile, request: LoadRequest) -> str | None:
    """What a checkpoint is that only diffusers itself converts; None for all others."""
    if request.model_type not in _CHECKPOINTS:
        return None
    from sd_loader.convert.detect import known_to_diffusers_only

    return known_to_diffusers_only(file.tensors)


def _convert_file(path: Path, request: LoadRequest, out: Path, report: Report) -> Converted:
    from sd_loader.convert.writer import write_folder
    from sd_loader.formats import SAFETENSORS, open_tensor_file
    from sd_loader.verify import verify_folder

    with open_tensor_file(path) as file:
        if request.from_safetensors and file.format != SAFETENSORS:
            raise LoaderError(
                Reason.UNSAFE_MODEL,
                "spec.fromSafetensors asks for safetensors, but the file is a pickle",
            )
        other = _other(file, request)
        if other is not None:
            from sd_loader.convert.fallback import convert_by_diffusers

            return convert_by_diffusers(file, other, path.parent, request, out, report)
        plan = plan_file(file, request)
        files = write_folder(out, plan.files, report)
    verify_folder(out, plan, request.verify, report)
    return Converted(
        files=files,
        base_model=plan.base_model,
        pipeline_class=plan.pipeline_class,
        precision=plan.precision,
        prediction_type=plan.prediction_type,
        warnings=plan.warnings,
    )
