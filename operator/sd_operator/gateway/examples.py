"""The OpenAPI description of each endpoint: schemas, example requests and example responses."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel

from sd_api.names import MODEL_ID_PATTERN
from sd_api.status import Phase
from sd_operator.gateway.vendor import SCHEDULERS

Json = dict[str, Any]

_CIVITAI = {
    "key": "",
    "url": "https://civitai.com/api/download/models/94640",
    "model_id": "majicmix-realistic",
    "model_type": "custom_ckpt",
    "from_safetensors": "yes",
    "webhook": "https://stablediffusionapi.com",
    "revision": "fp32",
    "upcast_attention": "no",
}
_HUB = _CIVITAI | {
    "url": "wavymulder/Analog-Diffusion",
    "model_id": "analog-diffusion",
    "model_type": "huggingface",
    "from_safetensors": "no",
}
_CONTROLNET = {
    key: value
    for key, value in (
        _HUB
        | {
            "url": "lllyasviel/control_v11p_sd15_canny",
            "model_id": "canny",
            "model_type": "controlnet",
        }
    ).items()
    if key != "from_safetensors"
}
_STARTED = {"message": "model load started", "status": "success"}
_ONE = {"key": "", "model_id": "majicmix-realistic"}
_KEY = {"key": ""}

REQUESTS: dict[str, dict[str, Json]] = {
    "load_model": {"link": _CIVITAI, "Hub repo": _HUB, "ControlNet": _CONTROLNET},
    "load_model_v2": {
        "LoRA": {
            "key": "",
            "url": "https://civitai.com/api/download/models/62833",
            "model_id": "add-detail",
            "model_category": "lora",
            "model_format": "safetensors",
            "revision": "fp16",
        },
    },
    "load_vae": {
        "Hub repo": {
            "key": "",
            "vae_id": "sd-vae-ft-mse",
            "vae_url": "stabilityai/sd-vae-ft-mse",
            "vae_type": "diffusers",
        },
    },
    "verify_model": {"model": _ONE},
    "get_all_models": {"all": _KEY},
    "delete_model": {"model": _ONE},
    "sync_models": {"all": {"key": "", "sync_key": ""}},
    "schedulers_list": {"all": _KEY},
    "clear_cache": {"all": _KEY},
    "system_details": {"all": _KEY},
}
RESPONSES: dict[str, Json] = {
    "load_model": _STARTED,
    "load_model_v2": _STARTED,
    "load_vae": {"status": "success", "message": "VAE load started"},
    "verify_model": {"status": "success", "message": "Model exists on server"},
    "get_all_models": {
        "models": [{"load_data": "01/25/2023 11:52:22", "model_id": "hf-model"}],
        "status": "success",
    },
    "status": {"status": "success", "message": "Model exists on server"},
    "delete_model": {"status": "success", "message": "Model deleted on server"},
    "sync_models": {
        "status": "success",
        "message": "1 Models synced successfully",
        "model_list": ["hf-model"],
    },
    "schedulers_list": {"schedulers": list(SCHEDULERS)},
    "clear_cache": {"status": "success", "message": "Cache cleared successfully"},
    "system_details": {"model_count": 0, "queue_time": 0, "status": "ok"},
}
_ERRORS = {
    400: ("The request is invalid; the message names the field.", "model_id is required"),
    401: ("The key is missing or wrong.", "Invalid API key"),
    404: ("The model does not exist or is not ready.", "Model does not exist on server"),
    409: (
        "The model is being changed or deleted.",
        "Model x is being deleted; try again when it is gone",
    ),
    413: ("The body is too large.", "The body may have at most 65536 bytes"),
    429: ("Too many calls; retry_after is in seconds.", "Too many calls; try again later"),
    503: (
        "The cluster's API server is unavailable or rejected the request.",
        "The Kubernetes API server does not answer; try again in a moment",
    ),
}
_LOADING: Json = {
    "status": "error",
    "message": "Model is not on server: Downloading 40 %: 2.0 of 5.0 GB",
    "phase": Phase.DOWNLOADING.value,
    "percent": 40,
    "eta": 75,
}
_REPORT_PROGRESS = ("verify_model", "status")
_ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["status", "message"],
    "properties": {
        "status": {"const": "error"},
        "message": {"type": "string"},
        "retry_after": {"type": "integer"},
    },
}
_NOT_READY_SCHEMA: Json = _ERROR_SCHEMA | {
    "properties": _ERROR_SCHEMA["properties"]
    | {
        "phase": {"enum": [phase.value for phase in Phase]},
        "percent": {"type": ["integer", "null"]},
        "eta": {"type": ["integer", "null"], "description": "Seconds until the load ends."},
    }
}
MODEL_ID: Json = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "maxLength": 63, "pattern": MODEL_ID_PATTERN},
    "description": "Id under which the model is published.",
    "example": _ONE["model_id"],
}
"""The parameter of the endpoint status."""


def request(name: str, kind: type[BaseModel]) -> Json:
    """Return the OpenAPI requestBody of an endpoint; `kind` describes the fields of the body."""
    examples = {title: {"value": value} for title, value in REQUESTS[name].items()}
    content = {"application/json": {"schema": kind.model_json_schema(), "examples": examples}}
    return {"requestBody": {"content": content, "required": True}}


def responses(name: str, without: Collection[int] = ()) -> dict[int | str, Json]:
    """Return the OpenAPI responses of an endpoint by status code, except those in `without`."""
    described: dict[int | str, Json] = {
        200: {
            "description": "Success.",
            "content": {"application/json": {"example": RESPONSES[name]}},
        }
    }
    for status, (description, message) in _ERRORS.items():
        if status in without:
            continue
        schema = _ERROR_SCHEMA
        example: Json = {"status": "error", "message": message}
        if status == 404 and name in _REPORT_PROGRESS:
            schema, example = _NOT_READY_SCHEMA, _LOADING
        if status in (429, 503):
            example["retry_after"] = 5
        content = {"application/json": {"schema": schema, "example": example}}
        described[status] = {"description": description, "content": content}
    return described
