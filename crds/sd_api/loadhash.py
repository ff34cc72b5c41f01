"""The load hash: when it changes, the model is loaded again."""

from __future__ import annotations

import hashlib
import json

from sd_api.spec import LoadFields, Spec


def load_hash(spec: Spec, metadata_name: str, reload: str | None) -> str:
    """16 hex digits over the load-affecting fields and the value of the reload annotation.

    Uses the effective url and model type, so spelling out a default does not trigger a reload.
    """
    fields = spec.model_dump(
        mode="json", by_alias=True, include=set(LoadFields.model_fields), exclude_defaults=True
    )
    fields["url"] = spec.effective_url(metadata_name)
    fields["modelType"] = spec.effective_model_type().value
    fields["reload"] = reload
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
