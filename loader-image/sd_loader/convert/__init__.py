"""Makes a diffusers folder of what was downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.reasons import Reason
from sd_api.spec import ModelType, Weights
from sd_loader.convert.conversion import Conversion
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
    fetched: Fetched, source_dir: Path, conversion: Conversion, out: Path, report: Report
) -> Converted:
    """Convert the download in `source_dir` into the empty folder `out`."""
    refuse_unavailable(conversion)
    if conversion.replacement_vae and not any("vae" in part.components for part in fetched.parts):
        # Rather than publish the model's own in its place.
        raise LoaderError(
            Reason.LOADER_CRASHED, "the VAE of spec.vae is not downloaded; run fetch again"
        )
    path = source_dir / fetched.path
    # Imported here: neither way needs the other's modules.
    if fetched.kind == "repo" and conversion.model_type in _COMPONENTS:
        from sd_loader.convert.plan.component import convert_component

        return convert_component(path, conversion, out, report)
    if fetched.kind == "repo":
        if conversion.weights is Weights.EMA:
            raise LoaderError(Reason.INVALID_SPEC, _NO_EMA)
        from sd_loader.convert.plan.repo import convert_repo

        if not fetched.parts:
            return convert_repo(path, conversion, out, report)
        from sd_loader.convert.plan.supplied import plan_parts

        return convert_repo(
            path,
            conversion,
            out,
            report,
            lambda base, weights: plan_parts(fetched.parts, source_dir, base, conversion, weights),
        )
    from sd_loader.convert.plan.single import convert_single

    return convert_single(fetched, source_dir, conversion, out, report)


def refuse_unavailable(conversion: Conversion) -> None:
    """Refuse what cannot be done, rather than publish something else; needs no download."""
    if conversion.weights is Weights.EMA and conversion.model_type in (
        ModelType.HUGGINGFACE,
        *_COMPONENTS,
        *_ADAPTERS,
    ):
        raise LoaderError(Reason.INVALID_SPEC, _NO_EMA)
    if conversion.original_config and conversion.model_type not in _FROM_CHECKPOINTS:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.originalConfig is for checkpoints: other models come with their configs",
        )
    if conversion.replacement_vae and conversion.model_type not in (
        *_FROM_CHECKPOINTS,
        ModelType.HUGGINGFACE,
    ):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.vae is for whole models; modelType {conversion.model_type.value} has none",
        )
    refuse_without_torch(conversion.verify)


def plan_file(file: TensorFile, conversion: Conversion, beside: Beside | None = None) -> FolderPlan:
    """Plan the folder of a single file, by the model type. Reads no weights, writes nothing."""
    match conversion.model_type:
        case ModelType.CONTROLNET:
            from sd_loader.convert.plan.controlnet import plan_controlnet

            return plan_controlnet(file, conversion)
        case ModelType.VAE:
            from sd_loader.convert.plan.vae import plan_vae

            return plan_vae(file, conversion)
        case ModelType.LORA:
            from sd_loader.convert.plan.lora import plan_lora

            return plan_lora(file, conversion)
        case ModelType.EMBEDDINGS:
            from sd_loader.convert.plan.embedding import plan_embedding

            return plan_embedding(file, conversion)
        case _:
            from sd_loader.convert.plan.checkpoint import plan_checkpoint

            return plan_checkpoint(file, conversion, beside)
