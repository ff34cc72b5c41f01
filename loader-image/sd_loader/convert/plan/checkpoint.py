"""Plans the diffusers folder of a checkpoint in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sd_api.load import LoadRequest
from sd_api.spec import BaseModelName, PredictionType, Weights
from sd_loader.convert.detect.detect import detect, task_of
from sd_loader.convert.plan.beside import Beside
from sd_loader.convert.plan.prediction import decide
from sd_loader.convert.plan.small_files import UNET, Choices, pipeline_class, small_files
from sd_loader.convert.tables import architecture
from sd_loader.convert.tables.architecture import Architecture
from sd_loader.convert.tables.bind import (
    averaged,
    bind,
    canonical_names,
    is_missing,
    left_over,
    require,
)
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.unet import blocks_of, fitting, with_blocks
from sd_loader.convert.write.files import (
    FolderPlan,
    Item,
    PlannedFile,
    component_files,
    published_dtype,
)
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

_SD2_V = "768-v"


def missing_parts(
    tensors: Mapping[str, Tensor], base_model: BaseModelName | None = None
) -> tuple[str, ...]:
    """The pipeline's components that the checkpoint does not hold, by their folders' names."""
    known = architecture.load(detect(tensors, base_model).value)
    named = canonical_names(tensors)
    return tuple(part.name for part in known.components if is_missing(part, named))


def plan_checkpoint(
    file: TensorFile, request: LoadRequest, beside: Beside | None = None
) -> FolderPlan:
    """Which files the checkpoint becomes. Reads no weights, writes nothing."""
    beside = beside or Beside()
    base_model = detect(file.tensors, request.base_model)
    task = task_of(file.tensors)
    prediction = decide(
        base_model,
        file.tensors,
        file.metadata,
        request,
        beside.original,
        text_to_image=task is None,
    )
    tensors = canonical_names(file.tensors)
    known = _known(base_model, task, prediction.type, tensors)
    if request.weights is Weights.EMA:
        tensors = averaged(tensors, known.unet)
    parts = [part for part in known.components if part.name not in beside.parts]
    require(parts, tensors)

    dimensions: Dimensions = {}
    files: list[PlannedFile] = []
    dtypes = {}
    extra: list[str] = []
    for supplied in beside.parts.values():
        dimensions.update(supplied.dimensions)
        files += supplied.files
    for component in parts:
        bound = bind(component, tensors, dimensions)
        extra += left_over(component, tensors)
        items = [
            Item(name, tensor, published_dtype(tensor.dtype, request.revision))
            for name, tensor in bound.items()
        ]
        dtypes[component.name] = {item.dtype for item in items}
        files += component_files(component.name, component.stem, items)
    choices = Choices(
        prediction_type=prediction.type,
        zero_terminal_snr=prediction.zero_terminal_snr,
        upcast_attention=request.upcast_attention,
        original=beside.original,
    )
    files += small_files(known, dimensions, dtypes, choices)
    return FolderPlan(
        files=tuple(files),
        base_model=base_model.value,
        pipeline_class=pipeline_class(known),
        prediction_type=prediction.type.value,
        warnings=_warnings(prediction.said, extra),
    )


def _known(
    base_model: BaseModelName,
    task: str | None,
    prediction: PredictionType,
    tensors: Mapping[str, Tensor],
) -> Architecture:
    """The architecture in the variant that the file is of, its UNet cut to the blocks it has."""
    known = architecture.load(base_model.value)
    is_v = prediction is PredictionType.V_PREDICTION
    if task is not None:
        known = known.varied(task)
    elif base_model is BaseModelName.SD2 and is_v:
        known = known.varied(_SD2_V)
    known = fitting(known, tensors)
    unet = known.unet
    blocks = blocks_of(unet, tensors)
    cut = replace(unet, rows=blocks.rows(unet.rows))
    return replace(
        known,
        components=tuple(cut if part is unet else part for part in known.components),
        templates={**known.templates, UNET: with_blocks(known.templates[UNET], unet, blocks)},
    )


def _warnings(said: str | None, extra: list[str]) -> tuple[str, ...]:
    warnings = [said] if said is not None else []
    if extra:
        warnings.append(
            f"{len(extra)} tensors have no place in the pipeline and were left out,"
            f" first {snippet(extra[0])}"
        )
    return tuple(warnings)
