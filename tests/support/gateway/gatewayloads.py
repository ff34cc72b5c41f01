"""Loads models through a gateway, and sets their status in place of the operator."""

from __future__ import annotations

import json
import secrets
from typing import Any

from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster

STARTED = {"message": "model load started", "status": "success"}
HOSTED = {
    "webhook": "https://stablediffusionapi.com",
    "revision": "fp32",
    "upcast_attention": "no",
}
CIVITAI = "https://civitai.com/api/download/models/94640"
CANNY = {"url": "lllyasviel/control_v11p_sd15_canny", "model_type": "controlnet"}
VENDOR_EXAMPLES = {
    "checkpoint": {
        "url": CIVITAI,
        "model_id": "majicmix-realistic",
        "model_type": "custom_ckpt",
        "from_safetensors": "yes",
        **HOSTED,
    },
    "ckpt": {"url": CIVITAI, "model_id": "nckpt-model", "model_type": "custom_ckpt", **HOSTED},
    "repo": {
        "url": "wavymulder/Analog-Diffusion",
        "model_id": "analog-diffusion",
        "model_type": "huggingface",
        "from_safetensors": "no",
        **HOSTED,
    },
    "repo alone": {
        "url": "wavymulder/Analog-Diffusion",
        "model_id": "analog-diffusion",
        "model_type": "huggingface",
        **HOSTED,
    },
    "canny": {"model_id": "canny", **CANNY, **HOSTED},
    "hed": {"model_id": "hed", **CANNY, **HOSTED},
}
"""Request bodies from the documentation of the service that the gateway replaces; no keys."""


def a_name() -> str:
    """Return a model id that no other test uses."""
    return f"m-{secrets.token_hex(4)}"


def load(gateway: Gateway, model_id: str, **fields: object) -> dict[str, Any]:
    """Load a model and return the response; `fields` override the request's fields."""
    request = {"url": CIVITAI, "model_type": "custom_ckpt", "model_id": model_id, **fields}
    status, response = gateway.call("load_model", **request)
    assert (status, response) == (200, STARTED)
    return response


def put_status(cluster: Cluster, name: str, **status: Any) -> None:
    """Set a model's status as the operator would; by default the model is Ready."""
    moment = "2023-01-25T11:52:22Z"
    conditions = status.pop("conditions", {"Ready": "True"})
    status["conditions"] = [
        {"type": kind, "status": value, "reason": "X", "message": "", "lastTransitionTime": moment}
        for kind, value in conditions.items()
    ]
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "sdm", name, "--subresource=status", "--type=merge", "-p", patch)
