"""Takes the options of a conversion out of a LoadRequest."""

from __future__ import annotations

from sd_api.choices import PIPELINES, ModelType
from sd_api.load import LoadRequest
from sd_loader.convert.conversion import Conversion


def conversion_of(request: LoadRequest, found: ModelType | None = None) -> Conversion:
    """Return the options of the conversion that the request asks for.

    found: the type that the source shows. It is used if the request names no type. If both are
    None, the options are those of a checkpoint.
    """
    model_type = request.model_type or found
    verify = request.verify
    if request.render_if_pipeline and model_type in PIPELINES:
        verify = verify.model_copy(update={"render": True})
    return Conversion(
        model_type=model_type or ModelType.CUSTOM_CKPT,
        model_id=request.model_id,
        precision=request.revision,
        weights=request.weights,
        base_model=request.base_model,
        prediction_type=request.prediction_type,
        upcast_attention=request.upcast_attention,
        safetensors_only=bool(request.from_safetensors),
        original_config=request.original_config is not None,
        replaced=frozenset(request.replacements()),
        has_skeleton=request.components.from_ is not None,
        lora=request.lora,
        verify=verify,
    )
