"""Whether this loader image has torch, without importing it: that takes seconds."""

from __future__ import annotations

from importlib.util import find_spec

from sd_api.reasons import Reason
from sd_api.spec import Verify
from sd_loader.errors import LoaderError

_STACK = ("torch", "diffusers", "transformers")


def has_torch() -> bool:
    """Whether the libraries that run a model are installed."""
    return all(find_spec(name) is not None for name in _STACK)


def refuse_without_torch(verify: Verify) -> None:
    """Refuse to render in an image that cannot."""
    if verify.render and not has_torch():
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.verify.render needs torch, diffusers and transformers, which this loader image"
            " lacks: set it to false, or have the administrator name an image with them in"
            " loader.image",
        )
