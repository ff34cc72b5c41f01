"""Plans the folder of a single file, by its model type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sd_api.choices import ModelType
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.checkpoint import family_of
from sd_loader.convert.detect.kinds import transformer_file
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.all_in_one import missing_of, plan_all_in_one
from sd_loader.convert.plan.checkpoint import plan_checkpoint
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.open_files import OpenFiles, refuse_pickle
from sd_loader.convert.plan.original import NO_ORIGINAL, OriginalConfig, read_original
from sd_loader.convert.plan.planned_extras import NO_EXTRAS, PlannedExtras
from sd_loader.convert.plan.scaled_fp8 import scaled
from sd_loader.convert.write.files import FolderPlan
from sd_loader.tensors import TensorFile

_UNSCALED = (ModelType.LORA, ModelType.EMBEDDINGS)
"""Model types whose files are published without applying scales: scaled weights are refused."""


def plan_file(
    file: TensorFile,
    conversion: Conversion,
    opened: OpenFiles,
    extras: PlannedExtras = NO_EXTRAS,
    original: OriginalConfig = NO_ORIGINAL,
    configs: Path | None = None,
) -> FolderPlan:
    """Plan the folder of an open file. Reads no weights and writes nothing.

    opened: keeps further files open. extras, original, configs: used for pipelines only.
    """
    if conversion.model_type not in _UNSCALED:
        file = scaled(file)
    refuse_quantized(file.tensors)
    # Imported here: a load plans one kind of model, and starts faster without the other modules.
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
            found = transformer_file(file.tensors)
            missing = None if found is None else missing_of(found, file.tensors)
            if found is not None and missing is not None:
                return plan_all_in_one(file, found, missing, conversion, configs, opened)
            return plan_checkpoint(file, conversion, extras, original)


def plan_download(
    file: TensorFile, conversion: Conversion, companions: Companions, opened: OpenFiles
) -> FolderPlan:
    """Plan the folder of an open file and of its companions.

    opened: keeps the files of extra components open.
    """
    # `opened` did not open a file that is converted while it downloads.
    refuse_pickle(file, safetensors_only=conversion.safetensors_only)
    if companions.skeleton is not None:
        from sd_loader.convert.plan.skeleton import plan_on_skeleton  # only with a skeleton

        file = scaled(file)
        found = transformer_file(file.tensors)
        if found is not None:
            return plan_on_skeleton(file, found, companions, conversion, opened)
    original = NO_ORIGINAL
    if companions.original_config is not None:
        original = read_original(companions.folder / companions.original_config)
    if not companions.extras:
        return plan_file(file, conversion, opened, original=original, configs=companions.configs)
    from sd_loader.convert.plan.extras import plan_extras  # only with extras

    base_model = family_of(file.tensors, conversion.base_model)
    extras = plan_extras(companions, base_model, conversion, opened)
    plan = plan_file(file, conversion, opened, extras, original)
    return replace(plan, warnings=(*plan.warnings, *extras.warnings))
