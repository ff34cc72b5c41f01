"""Opens folders with diffusers, in limited memory."""

from __future__ import annotations

import gc
import json
import resource
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline

MORE = 2 << 30
"""Bytes of address space that opening may take."""


def open_all(folders: Iterable[Path]) -> list[str | None]:
    """Open folders; return the error of each, or None.

    A folder without model_index.json is a component, whose config names its class.
    """
    errors: list[str | None] = []
    gc.freeze()  # a collection then looks at the models alone, not at all imported libraries
    with warnings.catch_warnings(), _limited_memory():
        warnings.simplefilter("ignore")
        for folder in folders:
            try:
                _open(folder)
            except Exception as caught:  # noqa: BLE001 - the test reports it
                errors.append(f"{type(caught).__name__}: {str(caught)[:300]}")
            else:
                errors.append(None)
            gc.collect()
    gc.unfreeze()
    return errors


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let this process take MORE bytes of address space than it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _open(folder: Path) -> None:
    if (folder / "model_index.json").exists():
        DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        return
    config = next(folder.glob("*config.json"))
    kind = getattr(diffusers, json.loads(config.read_text())["_class_name"])
    kind.from_pretrained(folder, local_files_only=True)
