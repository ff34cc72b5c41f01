"""The text that `sd-loader load` prints at its end: the published model, and code that opens it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sd_api.humanize import files, size
from sd_api.opening import python_code
from sd_api.wire import Artifact
from sd_api.wording import message_at_shell


def summary(model_id: str, artifact: Artifact, message: str, store: Path) -> str:
    """Return the text for a published artifact. message: the warnings of the load."""
    code = python_code(artifact.model_type, artifact, str((store / model_id).absolute()))
    warning = f"warning: {message_at_shell(message)}\n" if message else ""
    return f"{warning}loaded {_described(artifact)}\n\n{textwrap.indent(code, '    ')}"


def _described(artifact: Artifact) -> str:
    facts = (artifact.model_type, artifact.base_model, artifact.pipeline_class, artifact.precision)
    shared = artifact.shared_bytes
    saved = f" ({size(shared)} of it shared with other models)" if shared else ""
    amount = f"{files(artifact.files)}, {size(artifact.size_bytes)}{saved}"
    return ", ".join((*filter(None, facts), amount))
