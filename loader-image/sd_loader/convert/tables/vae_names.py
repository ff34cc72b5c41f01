"""Names of the VAE's attention tensors: diffusers before 0.15 used other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_OLD = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_name(name: str) -> str:
    """The tensor's name as current versions of diffusers write it."""
    old = _OLD.fullmatch(name)
    return f"{old[1]}.{_NEW[old[2]]}.{old[3]}" if old else name


def current_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a file's tensors. Names under the prefix become those of current diffusers."""
    found: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        name = current_name(old) if old.startswith(prefix) else old
        if name in found:
            raise LoaderError(Reason.CONVERSION_FAILED, f"the VAE has two tensors {snippet(name)}")
        found[name] = tensor
    return found
