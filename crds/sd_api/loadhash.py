"""When a model must be loaded again: the digest of everything that decides what is loaded."""

from __future__ import annotations

import hashlib
import json

from sd_api.spec import Spec

LOAD_FIELDS = (
    "url",
    "git_revision",
    "revision",
    "sha256",
    "weights",
    "base_model",
    "prediction_type",
    "original_config",
    "vae",
    "upcast_attention",
    "verify",
    "from_safetensors",
)


def load_hash(spec: Spec, metadata_name: str, reload: str | None) -> str:
    """16 hex digits over the load-affecting fields and the value of the reload annotation.

    The effective url and model type count, so that writing a default out loads nothing again.
    """
    # Without defaults: a field that a later version adds must not load every model again.
    fields = spec.model_dump(
        mode="json", by_alias=True, include=set(LOAD_FIELDS), exclude_defaults=True
    )
    fields["url"] = spec.effective_url(metadata_name)
    fields["modelType"] = spec.effective_model_type().value
    fields["reload"] = reload
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
