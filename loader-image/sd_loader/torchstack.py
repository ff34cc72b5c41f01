"""torch, diffusers and transformers: whether this image has them, and how to use them quietly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

_STACK = ("torch", "diffusers", "transformers")


def has_torch() -> bool:
    """Whether the libraries that run a model are installed. Does not import them (slow)."""
    return all(find_spec(name) is not None for name in _STACK)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' own logs, progress bars and warnings. Compute no gradients."""
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield
