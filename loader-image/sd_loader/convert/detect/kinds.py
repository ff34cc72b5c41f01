"""What a file is that is not of the type asked for, said by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.convert.detect.detect import UNET, other_kind
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Tensor

_WHAT = {ModelType.CONTROLNET: "ControlNet", ModelType.VAE: "VAE"}
_EXAMPLES = 3


def refuse_kinds(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> None:
    """Refuse a file that has a tensor of one of these kinds: patterns of names, and what it is."""
    for pattern, what in kinds.items():
        if any(re.match(pattern, name) for name in tensors):
            raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {what}")


def wrong_type(tensors: Mapping[str, Tensor], sought: ModelType, mark: str) -> LoaderError:
    """Says what the file is instead, and the model type that takes it.

    mark: the tensor that was looked for in vain.
    """
    what = _WHAT[sought]
    if any(name.startswith(UNET) for name in tensors):
        return LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is a checkpoint without a {what} of its own: it needs spec.modelType:"
            f" {ModelType.CUSTOM_CKPT.value}",
        )
    found = other_kind(tensors, sought)
    if found is not None:
        return LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {found}")
    examples = ", ".join(snippet(name) for name in sorted(tensors)[:_EXAMPLES])
    return LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the file is no {what}: its {len(tensors)} tensors are named like {examples or 'none'},"
        f" none is {mark}",
    )
