"""Models in most states that the gallery shows; the tests themselves write their status."""

from __future__ import annotations

import json
from typing import Any

from sd_api.reasons import Reason
from sd_operator.gateway.gallery.views import Card, card
from sd_operator.resources.model import Model
from tests.support.kube.cluster import Cluster

AT = "2026-01-02T03:04:05Z"
HASH = "0123456789abcdef"
JOB = "sketch-0123456789"

Json = dict[str, Any]


def artifact(uid: str, name: str, **fields: Any) -> Json:
    """Return a status.artifact; `fields` override its fields."""
    return {
        "path": name,
        "immutablePath": f".store/{uid}/{HASH}",
        "claimName": "models",
        "digest": "blake3:" + "ab" * 32,
        "sizeBytes": 2_100_000_000,
        "sharedBytes": 0,
        "size": "2.1 GB",
        "files": 14,
        "modelType": "custom_ckpt",
        "baseModel": "sd-1",
        "pipelineClass": "StableDiffusionPipeline",
        "precision": "fp16",
        "predictionType": "epsilon",
        "lastUpdateTime": AT,
        **fields,
    }


def card_of(body: Json) -> Card:
    """Return the card of a resource."""
    return card(Model.from_body(body))


def condition(kind: str, status: str, reason: str, message: str = "") -> Json:
    """Return a condition."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": AT,
    }


def ready(uid: str, name: str, **fields: Any) -> Json:
    """Return the status of a loaded model; `fields` override fields of its artifact."""
    return {
        "phase": "Ready",
        "reason": "Loaded",
        "modelId": name,
        "loadHash": HASH,
        "observedGeneration": 1,
        "artifact": artifact(uid, name, **fields),
        "source": {"url": "https://example.com/model.safetensors", "sizeBytes": 2_132_625_894},
        "conditions": [condition("Ready", "True", "Loaded", "2.1 GB in 14 files")],
    }


def loading(percent: int, phase: str = "Downloading") -> Json:
    """Return the status of a model that is being loaded."""
    return {
        "phase": phase,
        "reason": phase,
        "observedGeneration": 1,
        "conditions": [
            condition("Ready", "False", phase, f"Job {JOB} loads the model"),
            condition("Reconciling", "True", phase),
        ],
        "progress": {
            "stage": phase,
            "percent": percent,
            "etaSeconds": 42,
            "text": f"{percent}% of 2.1 GB, 54 MB/s, 42 s left",
        },
        "job": {"name": JOB, "attempt": 0},
    }


def failed(reason: Reason, message: str) -> Json:
    """Return the status of a stalled model; the messages end with the reason's remedy."""
    text = f"{message}. {reason.remedy.replace('<status.job.name>', JOB)}"
    return {
        "phase": "Failed",
        "reason": reason.value,
        "observedGeneration": 1,
        "conditions": [
            condition("Ready", "False", reason.value, text),
            condition("Stalled", "True", reason.value, text),
        ],
        "job": {"name": JOB, "attempt": 0},
    }


def make(cluster: Cluster, name: str, status: Json | None = None, **spec: Any) -> Json:
    """Create a model, with this status if there is one; return the resource."""
    body = cluster.model(name, **spec)
    return body if status is None else set_status(cluster, name, status)


def set_status(cluster: Cluster, name: str, status: Json) -> Json:
    """Set a model's status as the operator would; return the resource."""
    patch = json.dumps({"status": status})
    text = cluster.kubectl(
        "patch", "sdm", name, "--subresource=status", "--type=merge", "-p", patch, "-o=json"
    )
    body: Json = json.loads(text)
    return body


def make_all(cluster: Cluster) -> None:
    """Create a Ready model of each type except api_trained, and models in other states."""
    link = "https://example.com/model.safetensors"
    for name, model_type, base, fields in (
        ("majicmix-realistic", "custom_ckpt", "sd-1", {}),
        ("sdxl-base", "huggingface", "sdxl", {"pipelineClass": "StableDiffusionXLPipeline"}),
        ("film-grain", "lora", "sdxl", {"pipelineClass": None, "size": "144 MB"}),
        ("easy-negative", "embeddings", "sd-1", {"pipelineClass": None, "size": "25 kB"}),
        ("canny", "controlnet", "sd-1", {"pipelineClass": "ControlNetModel", "size": "723 MB"}),
        ("vae-ft-mse", "vae", "sd-1", {"pipelineClass": "AutoencoderKL", "size": "167 MB"}),
    ):
        url = (
            {"url": "stabilityai/stable-diffusion-xl-base-1.0"}
            if model_type == "huggingface"
            else {}
        )
        body = make(cluster, name, modelType=model_type, **({"url": link} | url))
        set_status(cluster, name, ready(body["metadata"]["uid"], name, baseModel=base, **fields))
    make(cluster, "dreamshaper", loading(42), url=link)
    make(cluster, "juggernaut-xl", loading(80, "Converting"), url=link)
    make(cluster, "waiting", {"phase": "Queued", "reason": "Queued"}, url=link)
    make(cluster, "brand-new", url=link)
    problem = "The host answers with a web page (text/html), not with a model"
    make(cluster, "wrong-link", failed(Reason.NOT_A_MODEL, problem), url=f"{link}?token=secret")
