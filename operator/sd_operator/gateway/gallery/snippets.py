"""Texts to copy: the resource as YAML, and Python code and commands that open the model. Pure."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sd_api.choices import ComponentName
from sd_api.loader_env import STORE_MOUNT
from sd_api.names import GROUP
from sd_api.opening import python_code
from sd_api.redaction import redact_url
from sd_api.spec import Spec
from sd_operator.resources.model import Model

_URLS = (
    ("url",),
    ("webhook",),
    ("originalConfig",),
    ("vae", "url"),
    ("components", "from"),
    *(("components", name, "url") for name in ComponentName),
)
"""The fields of the spec with a url, whose secret parts the YAML leaves out."""
DEFAULTS = Spec().model_dump(mode="json", by_alias=True, exclude_none=True)
"""The fields of the spec that have a default other than null."""
_HIDDEN = "# Secret parts of URLs are left out. Add them before you apply this.\n"
_SERVED = frozenset({"flux", "flux2", "qwen-image", "wan", "z-image"})
_SERVERS: tuple[tuple[str, str, frozenset[str] | None], ...] = (
    ("diffusers: examples/serving/server.py", "python3 server.py {}", None),
    ("SGLang Diffusion", "sglang serve --model-type diffusion --model-path {}", _SERVED),
    ("vLLM-Omni", "vllm serve {} --omni", _SERVED | {"sd-3"}),
)
"""Name, command and families of each server of docs/serving.md; None stands for all families."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


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
        if value != DEFAULTS.get(name)
    }
    redacted = [_redact(spec, path) for path in _URLS]
    head = {"apiVersion": body.get("apiVersion"), "kind": body.get("kind")}
    text = to_yaml({**head, "metadata": kept, "spec": spec})
    return f"{_HIDDEN}{text}" if any(redacted) else text


def to_yaml(body: Mapping[str, Any]) -> str:
    """Return the body as YAML in block style, with its own key order and without line folding."""
    # PyYAML writes these line breaks unescaped but reads them back as spaces, so escape them.
    is_readable = not re.search("[\x85\u2028\u2029]", json.dumps(body, ensure_ascii=False))
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=is_readable, width=10_000))


def snippet(model: Model) -> str | None:
    """Return Python code that opens the model with diffusers.

    None if nothing is published yet, or if its files are missing.
    """
    artifact = model.status.artifact
    if artifact is None or artifact.missing_time is not None:
        return None
    return python_code(model.type_with(artifact), artifact, f"{STORE_MOUNT}/{artifact.path}")


@dataclass(frozen=True)
class InferenceServer:
    """An inference server, and the command that opens the model with it."""

    name: str
    command: str


def servers(model: Model) -> tuple[InferenceServer, ...]:
    """Return the inference servers that can open a pipeline.

    Empty if nothing is published yet, or if its files are missing. In the commands, the shell
    resolves the model's link, because a reload moves it while the server still reads files.
    """
    artifact = model.status.artifact
    if artifact is None or artifact.missing_time is not None:
        return ()
    link = shlex.quote(f"{STORE_MOUNT}/{artifact.path}")
    return tuple(
        InferenceServer(name, command.format(f'"$(realpath {link})"'))
        for name, command, families in _SERVERS
        if families is None or artifact.base_model in families
    )


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
