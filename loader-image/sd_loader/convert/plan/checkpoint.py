"""Plans the diffusers folder of a checkpoint in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sd_api.choices import BaseModelName, PredictionType, Weights
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.checkpoint import family_of, task_of
from sd_loader.convert.detect.kinds import input_channels
from sd_loader.convert.detect.variants import variant_of
from sd_loader.convert.plan.original import NO_ORIGINAL, OriginalConfig
from sd_loader.convert.plan.planned_extras import NO_EXTRAS, PlannedExtras
from sd_loader.convert.plan.precision import published_items
from sd_loader.convert.plan.prediction import decide_prediction
from sd_loader.convert.plan.small_files import Choices, pipeline_class, small_files
from sd_loader.convert.tables.architecture import UNET_CONFIG, Architecture, load_architecture
from sd_loader.convert.tables.bind import (
    averaged,
    bind,
    canonical_names,
    is_missing,
    left_out,
    left_over,
    require,
)
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.unet import fitting, unet_blocks, with_blocks
from sd_loader.convert.write.files import FolderPlan, PlannedFile, component_files
from sd_loader.tensors import Tensor, TensorFile

_SD2_V = "768-v"


def missing_components(
    tensors: Mapping[str, Tensor], base_model: BaseModelName | None = None
) -> tuple[str, ...]:
    """The names of the pipeline's components that the checkpoint does not hold."""
    known = load_architecture(family_of(tensors, base_model).value)
    named = canonical_names(tensors)
    return tuple(component.name for component in known.components if is_missing(component, named))


def plan_checkpoint(
    file: TensorFile,
    conversion: Conversion,
    extras: PlannedExtras = NO_EXTRAS,
    original: OriginalConfig = NO_ORIGINAL,
) -> FolderPlan:
    """Plan the folder of a checkpoint. Reads no weights and writes nothing."""
    base_model = family_of(file.tensors, conversion.base_model)
    task = task_of(file.tensors)
    prediction = decide_prediction(
        base_model, file.tensors, file.metadata, conversion, original, text_to_image=task is None
    )
    tensors = canonical_names(file.tensors)
    known = _architecture(base_model, task, prediction.type, tensors)
    if conversion.weights is Weights.EMA:
        tensors = averaged(tensors, known.unet)
    own = [component for component in known.components if component.name not in extras.components]
    require(own, tensors)

    dimensions: Dimensions = {}
    files: list[PlannedFile] = []
    dtypes = {}
    unused: list[str] = []
    for extra in extras.components.values():
        dimensions.update(extra.dimensions)
        files += extra.files
    for component in own:
        bound = bind(component, tensors, dimensions)
        unused += left_over(component, tensors)
        items = published_items(bound, conversion.precision)
        dtypes[component.name] = {item.dtype for item in items}
        files += component_files(component.name, component.stem, items)
    choices = Choices(
        prediction_type=prediction.type,
        zero_terminal_snr=prediction.zero_terminal_snr,
        upcast_attention=conversion.upcast_attention,
        original=original,
    )
    files += small_files(known, dimensions, dtypes, choices)
    class_name = pipeline_class(known)
    return FolderPlan(
        files=tuple(files),
        base_model=base_model.value,
        variant=variant_of(base_model, class_name, {"in_channels": input_channels(file.tensors)}),
        pipeline_class=class_name,
        prediction_type=prediction.type.value,
        warnings=_warnings(prediction.warning, unused),
    )


def _architecture(
    base_model: BaseModelName,
    task: str | None,
    prediction: PredictionType,
    tensors: Mapping[str, Tensor],
) -> Architecture:
    """Return the architecture in the file's variant. It has only the UNet blocks of the file."""
    known = load_architecture(base_model.value)
    is_v = prediction is PredictionType.V_PREDICTION
    if task is not None:
        known = known.varied(task)
    elif base_model is BaseModelName.SD2 and is_v:
        known = known.varied(_SD2_V)
    known = fitting(known, tensors)
    unet = known.unet
    blocks = unet_blocks(unet, tensors)
    cut = replace(unet, rows=blocks.rows(unet.rows))
    return replace(
        known,
        components=tuple(cut if component is unet else component for component in known.components),
        templates={
            **known.templates,
            UNET_CONFIG: with_blocks(known.templates[UNET_CONFIG], unet, blocks),
        },
    )


def _warnings(prediction: str | None, unused: list[str]) -> tuple[str, ...]:
    warnings = [prediction] if prediction is not None else []
    return (*warnings, *left_out(unused))
