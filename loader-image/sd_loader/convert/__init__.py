"""Makes a diffusers folder of what was downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType, Weights
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted, FileDigest
from sd_loader.progress import Report
from sd_loader.torchstack import refuse_without_torch

if TYPE_CHECKING:
    from sd_loader.convert.plan.beside import Beside
    from sd_loader.convert.write.files import FolderPlan
    from sd_loader.handover import Fetched
    from sd_loader.tensors import TensorFile

__all__ = [
    "Converted",
    "FileDigest",
    "configs_needed",
    "convert",
    "plan_file",
    "refuse_unavailable",
]

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
        from sd_loader.convert.plan.component import convert_component

        return convert_component(path, request, out, report)
    if fetched.kind == "repo":
        if request.weights is Weights.EMA:
            raise LoaderError(Reason.INVALID_SPEC, _NO_EMA)
        from sd_loader.convert.plan.repo import convert_repo

        if not fetched.parts:
            return convert_repo(path, request, out, report)
        from sd_loader.convert.plan.supplied import plan_parts

        return convert_repo(
            path,
            request,
            out,
            report,
            lambda base, weights: plan_parts(fetched.parts, source_dir, base, request, weights),
        )
    from sd_loader.convert.plan.single import convert_single

    return convert_single(fetched, source_dir, request, out, report)


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
    refuse_without_torch(request)


def configs_needed(file: TensorFile, request: LoadRequest) -> str | None:
    """The Hub repo whose configs a file cannot be converted without; mostly none.

    Such a file is one that only diffusers itself converts.
    """
    if request.model_type in (*_COMPONENTS, *_ADAPTERS):
        return None
    from sd_loader.convert.detect.detect import known_to_diffusers_only

    what = known_to_diffusers_only(file.tensors)
    if what is None:
        return None
    from sd_loader.convert.fallback import config_repo

    return config_repo(what, file.tensors)


def plan_file(file: TensorFile, request: LoadRequest, beside: Beside | None = None) -> FolderPlan:
    """Plan the folder of a single file, by the model type. Reads no weights, writes nothing."""
    match request.model_type:
        case ModelType.CONTROLNET:
            from sd_loader.convert.plan.controlnet import plan_controlnet

            return plan_controlnet(file, request)
        case ModelType.VAE:
            from sd_loader.convert.plan.vae import plan_vae

            return plan_vae(file, request)
        case ModelType.LORA:
            from sd_loader.convert.plan.lora import plan_lora

            return plan_lora(file, request)
        case ModelType.EMBEDDINGS:
            from sd_loader.convert.plan.embedding import plan_embedding

            return plan_embedding(file, request)
        case _:
            from sd_loader.convert.plan.checkpoint import plan_checkpoint

            return plan_checkpoint(file, request, beside)
