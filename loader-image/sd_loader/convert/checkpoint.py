"""Plans the diffusers folder of a checkpoint in the original layout."""

from __future__ import annotations

from collections.abc import Mapping

from sd_api.load import LoadRequest
from sd_api.spec import PredictionType, Weights
from sd_loader.convert import architecture
from sd_loader.convert.bind import averaged, bind, canonical_names, left_over
from sd_loader.convert.detect import detect
from sd_loader.convert.dimensions import Dimensions
from sd_loader.convert.folder import Choices, pipeline_class, small_files
from sd_loader.convert.plan import (
    FolderPlan,
    Item,
    PlannedFile,
    component_files,
    published_dtype,
)
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile

# Empty tensors by which checkpoints say how they were trained.
_V_PREDICTION_MARK = "v_pred"
_ZERO_SNR_MARK = "ztsnr"
_METADATA_PREDICTION = "modelspec.prediction_type"


def plan_checkpoint(file: TensorFile, request: LoadRequest) -> FolderPlan:
    """Which files the checkpoint becomes. Reads no weights, writes nothing."""
    base_model = detect(file.tensors, request.base_model)
    known = architecture.load(base_model.value)
    tensors = canonical_names(file.tensors)
    if request.weights is Weights.EMA:
        unet = next(part for part in known.components if part.name == "unet")
        tensors = averaged(tensors, unet)

    dimensions: Dimensions = {}
    files: list[PlannedFile] = []
    dtypes = {}
    extra: list[str] = []
    for component in known.components:
        bound = bind(component, tensors, dimensions)
        extra += left_over(component, tensors)
        items = [
            Item(name, tensor, published_dtype(tensor.dtype, request.revision))
            for name, tensor in bound.items()
        ]
        dtypes[component.name] = {item.dtype for item in items}
        files += component_files(component.name, component.stem, items)
    choices = _choices(file.tensors, file.metadata, request)
    files += small_files(known, dimensions, dtypes, choices)
    return FolderPlan(
        files=tuple(files),
        base_model=base_model.value,
        pipeline_class=pipeline_class(known),
        prediction_type=choices.prediction_type.value,
        warnings=_warnings(extra),
    )


def _choices(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], request: LoadRequest
) -> Choices:
    marked = _V_PREDICTION_MARK in tensors or metadata.get(_METADATA_PREDICTION) in (
        "v",
        PredictionType.V_PREDICTION,
    )
    detected = PredictionType.V_PREDICTION if marked else PredictionType.EPSILON
    return Choices(
        prediction_type=request.prediction_type or detected,
        zero_terminal_snr=_ZERO_SNR_MARK in tensors,
        upcast_attention=request.upcast_attention,
    )


def _warnings(extra: list[str]) -> tuple[str, ...]:
    if not extra:
        return ()
    return (
        f"{len(extra)} tensors have no place in the pipeline and were left out,"
        f" first {snippet(extra[0])}",
    )
