"""Opens folders with diffusers, in limited memory. A line of standard input is a folder.

It writes a line of JSON for each: its error, or null. A folder without model_index.json is a
component, whose config names its class. The script imports nothing of the project.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import warnings
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline

MORE = 2 << 30
"""Bytes of address space that opening may take."""


def main() -> None:
    """Open all folders."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE, used + MORE))
    for line in sys.stdin:
        error = None
        try:
            _open(Path(line.strip()))
        except Exception as caught:  # noqa: BLE001 - the test reports it
            error = f"{type(caught).__name__}: {str(caught)[:300]}"
        gc.collect()
        sys.stdout.write(json.dumps(error) + "\n")
        sys.stdout.flush()


def _open(folder: Path) -> None:
    if (folder / "model_index.json").exists():
        DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        return
    config = next(folder.glob("*config.json"))
    kind = getattr(diffusers, json.loads(config.read_text())["_class_name"])
    kind.from_pretrained(folder, local_files_only=True)


if __name__ == "__main__":
    main()
