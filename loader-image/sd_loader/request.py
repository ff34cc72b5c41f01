"""Takes the options of a conversion out of a LoadRequest."""

from __future__ import annotations

from sd_api.load import LoadRequest
from sd_loader.convert.conversion import Conversion


def conversion_of(request: LoadRequest) -> Conversion:
    """Return the options of the conversion that the request asks for."""
    return Conversion(
        model_type=request.model_type,
        model_id=request.model_id,
        precision=request.revision,
        weights=request.weights,
        base_model=request.base_model,
        prediction_type=request.prediction_type,
        upcast_attention=request.upcast_attention,
        safetensors_only=bool(request.from_safetensors),
        original_config=request.original_config is not None,
        replacement_vae=request.vae is not None,
        lora=request.lora,
        verify=request.verify,
    )
