"""Texts to copy: the resource as YAML, and Python code that opens the model. Pure."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from sd_api.loader_env import STORE_MOUNT
from sd_api.names import GROUP
from sd_api.redaction import redact_url
from sd_api.spec import ModelType, Spec
from sd_operator.resources.model import Model

_URLS = (("url",), ("webhook",), ("originalConfig",), ("vae", "url"))
_DEFAULTS = Spec().model_dump(mode="json", by_alias=True, exclude_none=True)
_HIDDEN = "# Secret parts of URLs are left out. Add them before you apply this.\n"
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}
_PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}


def manifest_yaml(body: Mapping[str, Any]) -> str:
    """Return the YAML that a user would apply to create this model.

    It has no status, no defaults, and no metadata that the API server or the operator sets.
    """
    metadata = body["metadata"]
    kept = {"name": metadata["name"], "namespace": metadata["namespace"]}
    if labels := metadata.get("labels"):
        kept["labels"] = labels
    annotations = {
        name: value
        for name, value in (metadata.get("annotations") or {}).items()
        if name != _LAST_APPLIED and not name.startswith(f"{GROUP}/")
    }
    if annotations:
        kept["annotations"] = annotations
    spec = {
        name: copy.deepcopy(value)
        for name, value in (body.get("spec") or {}).items()
        if value != _DEFAULTS.get(name)
    }
    redacted = [_redact(spec, path) for path in _URLS]
    head = {"apiVersion": body.get("apiVersion"), "kind": body.get("kind")}
    text = to_yaml({**head, "metadata": kept, "spec": spec})
    return f"{_HIDDEN}{text}" if any(redacted) else text


def to_yaml(body: Mapping[str, Any]) -> str:
    """Return the body as YAML in block style, with its own key order and without line folding."""
    # PyYAML writes these line breaks unescaped but reads them back as spaces.
    is_readable = not re.search("[\x85\u2028\u2029]", json.dumps(body, ensure_ascii=False))
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=is_readable, width=10_000))


def snippet(model: Model) -> str | None:
    """Return Python code that opens the model with diffusers; None if nothing is published yet."""
    artifact = model.status.artifact
    if artifact is None or model.model_type is None:
        return None
    link = json.dumps(f"{STORE_MOUNT}/{artifact.path}")
    dtype = _DTYPES.get(artifact.precision or "")
    options = f", torch_dtype={dtype}" if dtype else ""
    base = artifact.base_model or ""
    pipeline = _PIPELINES.get(base, "DiffusionPipeline")
    match model.model_type:
        case ModelType.LORA:
            use = ["pipe.load_lora_weights(folder)"]
            body = _on_a_base(pipeline, base, use)
        case ModelType.EMBEDDINGS:
            body = _on_a_base(pipeline, base, _embedding(base))
        case ModelType.CONTROLNET | ModelType.VAE:
            kind = "controlnet" if model.model_type is ModelType.CONTROLNET else "vae"
            default = "ControlNetModel" if kind == "controlnet" else "AutoencoderKL"
            pipeline = _class(artifact.pipeline_class, default)
            body = [f"{kind} = {pipeline}.from_pretrained(folder{options})"]
        case _:
            pipeline = _class(artifact.pipeline_class, "DiffusionPipeline")
            body = [f"pipe = {pipeline}.from_pretrained(folder{options})", 'pipe.to("cuda")']
            body += ['image = pipe("a lighthouse at dusk").images[0]'] * _paints(pipeline)
    imports = ["import os", "", *(["import torch"] if "torch." in "".join(body) else [])]
    head = [*imports, f"from diffusers import {pipeline}", ""]
    comment = "# A reload changes where this link points, so resolve it once."
    return "\n".join([*head, comment, f"folder = os.path.realpath({link})", *body, ""])


def _on_a_base(pipeline: str, base: str, use: list[str]) -> list[str]:
    """Return code that applies `use` to a base model, whose path the user must fill in."""
    family = f"{base.upper()}-" if base else ""
    link = f"{STORE_MOUNT}/YOUR-{family}MODEL"
    return [
        f'pipe = {pipeline}.from_pretrained("{link}", torch_dtype=torch.float16)',
        'pipe.to("cuda")',
        *use,
    ]


def _embedding(base: str) -> list[str]:
    """Return code that loads an embedding; SDXL has a second file for its second encoder."""
    lines = ["pipe.load_textual_inversion(folder)  # its token is in token_identifier.txt"]
    if base.startswith("sdxl"):
        lines += [
            "pipe.load_textual_inversion(",
            '    folder, weight_name="learned_embeds_2.safetensors",',
            "    text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2,",
            ")",
        ]
    return lines


def _paints(pipeline: str) -> bool:
    """Return whether a pipeline needs only a prompt to make an image."""
    return pipeline in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def _class(name: str | None, default: str) -> str:
    """Return the class name, or the default if it is not an identifier.

    The name comes from the status: other text must not get into code that users copy.
    """
    return name if name and name.isidentifier() else default


def _redact(spec: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Remove the secret parts of one url of the spec; return whether it had any."""
    *parents, last = path
    for name in parents:
        inner = spec.get(name)
        if not isinstance(inner, dict):
            return False
        spec = inner
    url = spec.get(last)
    if not isinstance(url, str) or redact_url(url) == url:
        return False
    spec[last] = redact_url(url)
    return True
