"""Make the loader's key tables for ControlNets; `make_tables` makes those for checkpoints.

Diffusers does not read SDXL ControlNets in an original layout, so their table has the names of
diffusers' layout on both sides.

    python -m tools.make_controlnet_tables     writes …/convert/tables/data/controlnet-*/table.json
"""

from __future__ import annotations

import json

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from devkit.controlnet_layouts import SD1, SD2, controlnet_shapes
from tools import make_tables
from tools.make_tables import DATA, PRIMES, ROOT, Symbol, Table, fill_in, render

PREFIX = "control_model."
ORIGINALS = {"controlnet-sd-1": SD1, "controlnet-sd-2": SD2, "controlnet-sdxl": None}
NAMES = (
    *(f"unet_{level}" for level in range(3)),
    *(f"hint_{level}" for level in range(4)),
    "inputs",
    "hint_inputs",
    "context",
    "added",
)


def make_table(name: str) -> Table:
    """Return the table of one family."""
    dimensions = {dimension: 64 * prime for dimension, prime in zip(NAMES, PRIMES, strict=False)}
    config = fill_in(json.loads((DATA / name / "folder/config.json").read_text()), dimensions)
    with torch.device("meta"):
        model = ControlNetModel.from_config(config).state_dict()
    prefix, symbols = "", {key: Symbol(key, tuple(model[key].shape)) for key in model}
    original = ORIGINALS[name]
    unused: list[str] = []
    if original is not None:
        prefix = PREFIX
        checkpoint = {
            key: Symbol(key, shape) for key, shape in controlnet_shapes(original, "").items()
        }
        symbols = convert_controlnet_checkpoint(dict(checkpoint), config)
        unused = sorted(checkpoint.keys() - {symbols[key].key for key in model})
    rows = [
        [
            symbols[key].key,
            key,
            symbols[key].op,
            " ".join(make_tables.expression(size, dimensions) for size in tensor.shape),
        ]
        for key, tensor in model.items()
    ]
    return {"controlnet": {"prefix": prefix, "rows": rows, "unused": unused}}


def main() -> None:
    """Write all tables."""
    for name in ORIGINALS:
        path = DATA / name / "table.json"
        path.write_text(render(make_table(name)))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
