"""Makes a diffusers folder of what was downloaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType, Weights
from sd_loader.convert.result import Converted, FileDigest
from sd_loader.errors import LoaderError
from sd_loader.progress import Report

if TYPE_CHECKING:
    from sd_loader.convert.beside import Beside
    from sd_loader.convert.plan import FolderPlan
    from sd_loader.source import Fetched
    from sd_loader.tensors import TensorFile

__all__ = ["Converted", "FileDigest", "convert", "plan_file", "refuse_unavailable"]

_COMPONENTS = (ModelType.CONTROLNET, ModelType.VAE)
_ADAPTERS = (ModelType.LORA, ModelType.EMBEDDINGS)
_NO_EMA = (
    "spec.weights: ema is for checkpoints (modelType custom_ckpt): a diffusers folder or component"
    " has one set of weights"
)
_FROM_CHECKPOINTS = (ModelType.CUSTOM_CKPT, ModelType.API_TRAINED)


def convert(
    fetched: Fetched, source_dir: Path, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Convert the download in `source_dir` into the empty folder `out`."""
    refuse_unavailable(request)
    if request.vae is not None and not any("vae" in part.components for part in fetched.parts):
        # Rather than publish the model's own in its place.
        raise LoaderError(
            Reason.LOADER_CRASHED, "the VAE of spec.vae is not downloaded; run fetch again"
        )
    path = source_dir / fetched.path
    # Imported here: neither way needs the other's modules.
    if fetched.kind == "repo" and request.model_type in _COMPONENTS:
        from sd_loader.convert.component import convert_component

        return convert_component(path, request, out, report)
    if fetched.kind == "repo":
        if request.weights is Weights.EMA:
            raise LoaderError(Reason.INVALID_SPEC, _NO_EMA)
        from sd_loader.convert.repo import convert_repo

        if not fetched.parts:
            return convert_repo(path, request, out, report)
        from sd_loader.convert.supplied import plan_parts

        return convert_repo(
            path,
            request,
            out,
            report,
            lambda base, weights: plan_parts(fetched.parts, source_dir, base, request, weights),
        )
    from sd_loader.convert.beside import Beside
    from sd_loader.convert.original import read_original

    beside = Beside()
    if fetched.original_config is not None:
        beside = Beside(original=read_original(source_dir / fetched.original_config))
    if not fetched.parts:
        return _convert_file(path, request, out, report, beside)
    return _convert_with_parts(fetched, source_dir, request, out, report, beside)


def _convert_with_parts(
    fetched: Fetched,
    source_dir: Path,
    request: LoadRequest,
    out: Path,
    report: Report,
    beside: Beside,
) -> Converted:
    """Convert a checkpoint some of whose parts come from elsewhere."""
    from sd_loader.convert.detect import detect
    from sd_loader.convert.repo import Weights
    from sd_loader.convert.supplied import plan_parts
    from sd_loader.formats import open_tensor_file

    path = source_dir / fetched.path
    with ExitStack() as stack:
        with open_tensor_file(path) as file:
            base = detect(file.tensors, request.base_model)
        planned = plan_parts(fetched.parts, source_dir, base, request, Weights(stack))
        beside = replace(beside, parts=planned.parts)
        converted = _convert_file(path, request, out, report, beside)
        return replace(converted, warnings=(*converted.warnings, *planned.warnings))


def refuse_unavailable(request: LoadRequest) -> None:
    """Refuse what cannot be done, rather than publish something else; needs no download."""
    if request.weights is Weights.EMA and request.model_type in (
        ModelType.HUGGINGFACE,
        *_COMPONENTS,
        *_ADAPTERS,
    ):
        raise LoaderError(Reason.INVALID_SPEC, _NO_EMA)
    if request.original_config and request.model_type not in _FROM_CHECKPOINTS:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.originalConfig is for checkpoints: other models come with their configs",
        )
    if request.vae and request.model_type not in (*_FROM_CHECKPOINTS, ModelType.HUGGINGFACE):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.vae is for whole models; modelType {request.model_type.value} has none",
        )
    asked_for = {
        "verify.render": request.verify.render,
    }
    for field, value in asked_for.items():
        if value:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.{field} is not supported by this version of the loader"
            )


def plan_file(file: TensorFile, request: LoadRequest, beside: Beside | None = None) -> FolderPlan:
    """Plan the folder of a single file, by the model type. Reads no weights, writes nothing."""
    match request.model_type:
        case ModelType.CONTROLNET:
            from sd_loader.convert.controlnet import plan_controlnet

            return plan_controlnet(file, request)
        case ModelType.VAE:
            from sd_loader.convert.vae import plan_vae

            return plan_vae(file, request)
        case ModelType.LORA:
            from sd_loader.convert.lora import plan_lora

            return plan_lora(file, request)
        case ModelType.EMBEDDINGS:
            from sd_loader.convert.embedding import plan_embedding

            return plan_embedding(file, request)
        case _:
            from sd_loader.convert.checkpoint import plan_checkpoint

            return plan_checkpoint(file, request, beside)


def _convert_file(
    path: Path, request: LoadRequest, out: Path, report: Report, beside: Beside
) -> Converted:
    from sd_loader.convert.writer import write_folder
    from sd_loader.formats import SAFETENSORS, open_tensor_file
    from sd_loader.verify import verify_folder

    with open_tensor_file(path) as file:
        if request.from_safetensors and file.format != SAFETENSORS:
            raise LoaderError(
                Reason.UNSAFE_MODEL,
                "spec.fromSafetensors asks for safetensors, but the file is a pickle",
            )
        plan = plan_file(file, request, beside)
        files = write_folder(out, plan.files, report, [file])
    verify_folder(out, plan, request.verify, report)
    return Converted.of(plan, files)
