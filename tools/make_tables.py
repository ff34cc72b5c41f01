"""Make the loader's key tables from diffusers' own converters.

The converters run on symbols: a symbol records only which tensor of the checkpoint it comes from
and which operation was applied to it. The models are built on the meta device from the loader's
config templates. All their dimensions differ, so a size in a shape identifies its dimension.
`tests/loader/convert/test_tables.py` makes the tables again and compares them.

    python -m tools.make_tables      writes loader-image/sd_loader/convert/tables/data/**/table.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from devkit.ldm_layouts import (
    REFINER,
    SD2,
    SD15,
    SDXL,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from sd_loader.convert.tables.architecture import DATA, UNET_CONFIG, fill_in

ROOT = Path(__file__).resolve().parent.parent

Shape = tuple[int, ...]
Table = dict[str, dict[str, Any]]

# The primes, their sums and their small multiples all differ; otherwise `expression` raises an
# error. Dimensions are 64 times a prime, because heads have 64 channels and norms have 32 groups.
PRIMES = (101, 233, 389, 557, 761, 997, 1201, 1523, 1801, 2111, 2503, 2909, 3301, 3709, 4111, 4517)
LARGEST_CONSTANT = 16
TIME_IDS = (6 * 256, 5 * 256)
"""SDXL embeds six numbers in addition to the text, its refiner five."""


@dataclass(frozen=True)
class Symbol:
    """A tensor of the checkpoint, or a part of one."""

    key: str
    shape: Shape
    op: str = ""

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def T(self) -> Symbol:  # noqa: N802 - torch's name
        """The transposed matrix."""
        return self._with("transpose", self.shape[::-1])

    def __getitem__(self, index: slice | tuple[slice | int, ...]) -> Symbol:
        """Return a third of the rows (for text encoders), or a 1x1 convolution as a matrix."""
        parts = index if isinstance(index, tuple) else (index,)
        whole = slice(None)
        if parts[:2] == (whole, whole) and parts[2:] and set(parts[2:]) == {0}:
            if self.shape[2:] != (1,) * len(parts[2:]):
                raise ValueError(f"{self.key}: {self.shape} is not a 1x1 convolution")
            return self._with("matrix", self.shape[:2])
        if isinstance(parts[0], slice) and all(part == whole for part in parts[1:]):
            start, stop, step = parts[0].indices(self.shape[0])
            third, rest = divmod(start, stop - start)
            if step == 1 and rest == 0 and (stop - start) * 3 == self.shape[0]:
                return self._with(f"third {third}", (stop - start, *self.shape[1:]))
        raise ValueError(
            f"{self.key}: the loader has no operation for index {index} of shape {self.shape}"
        )

    def contiguous(self) -> Symbol:
        """Return the symbol itself, because the numbers stay the same."""
        return self

    def clone(self) -> Symbol:
        """Return the symbol itself, because the numbers stay the same."""
        return self

    def detach(self) -> Symbol:
        """Return the symbol itself, because the numbers stay the same."""
        return self

    def _with(self, op: str, shape: Shape) -> Symbol:
        if self.op:
            raise ValueError(f"{self.key}: {op} after {self.op}")
        return replace(self, op=op, shape=shape)


@dataclass(frozen=True)
class Recipe:
    """The input for the table of one architecture."""

    shapes: Mapping[str, Shape]
    """The checkpoint's tensors and their shapes."""
    prefixes: dict[str, str]
    """The components and the prefixes of their tensors in the checkpoint."""
    layers: dict[str, int] = field(default_factory=dict)
    """The number of layers of each text encoder, by its name in the config templates."""
    parent: str | None = None
    """The architecture of which this one is a variant; a variant patches its parent's configs."""


CLIP = {"text_encoder_layers": 12}
UNET = {"unet": "model.diffusion_model."}
REST = UNET | {"vae": "first_stage_model."}
SD1_PREFIXES = {"text_encoder": "cond_stage_model.transformer."} | REST
SDXL_PREFIXES = {
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
} | REST


def _distilled(parent: str, shapes: Mapping[str, Shape]) -> Recipe:
    """Return the recipe of a distilled UNet; text encoders and VAE are the parent's."""
    return Recipe(shapes, UNET, parent=parent)


RECIPES = {
    "sd-1": Recipe(sd15_shapes(SD15), SD1_PREFIXES, CLIP),
    "sd-1/variants/one-layer": _distilled(
        "sd-1", sd15_shapes(replace(SD15, architecture="bk-base"))
    ),
    "sd-1/variants/three-levels": _distilled(
        "sd-1", sd15_shapes(replace(SD15, architecture="three-levels"))
    ),
    "sd-2": Recipe(
        sd2_shapes(SD2),
        {"text_encoder": "cond_stage_model.model."} | REST,
        # The checkpoint has 24 layers, but the last one is not used.
        {"text_encoder_layers": 23},
    ),
    "sd-2/variants/one-layer": _distilled(
        "sd-2", sd2_shapes(replace(SD2, architecture="bk-v2-base"))
    ),
    "sd-2/variants/three-levels": _distilled(
        "sd-2", sd2_shapes(replace(SD2, architecture="three-levels-v2"))
    ),
    "sdxl": Recipe(sdxl_shapes(SDXL), SDXL_PREFIXES, CLIP | {"text_encoder_2_layers": 32}),
    "sdxl/variants/one-layer": _distilled("sdxl", sdxl_shapes(replace(SDXL, architecture="koala"))),
    "sdxl-refiner": Recipe(
        refiner_shapes(REFINER),
        {"text_encoder_2": "conditioner.embedders.0.model."} | REST,
        {"text_encoder_2_layers": 32},
    ),
}


def make_table(name: str) -> Table:
    """Return the table of one architecture."""
    recipe = RECIPES[name]
    parent = RECIPES[recipe.parent or name]
    dimensions = _dimensions(parent)
    checkpoint = {key: Symbol(key, shape) for key, shape in recipe.shapes.items()}
    table: Table = {}
    for component, prefix in recipe.prefixes.items():
        config = fill_in(_template(name, recipe, component), dimensions | parent.layers)
        symbols = _convert(component, checkpoint, config, prefix)
        model = {key: tuple(tensor.shape) for key, tensor in _model(component, config).items()}
        if missing := model.keys() - symbols.keys():
            raise ValueError(f"{name}: diffusers' converter does not make {min(missing)}")
        used = {symbols[key].key for key in model}
        table[component] = {
            "prefix": prefix,
            "rows": [
                [
                    symbols[key].key.removeprefix(prefix),
                    key,
                    symbols[key].op,
                    " ".join(expression(size, dimensions) for size in shape),
                ]
                for key, shape in model.items()
            ],
            "unused": sorted(
                key.removeprefix(prefix)
                for key in recipe.shapes
                if key.startswith(prefix) and key not in used
            ),
        }
    return table


def _template(name: str, recipe: Recipe, component: str) -> dict[str, Any]:
    path = f"{component}/config.json"
    template = json.loads((DATA / (recipe.parent or name) / "folder" / path).read_text())
    if recipe.parent is None:
        return template
    return {**template, **json.loads((DATA / name / UNET_CONFIG).read_text())}


def _dimensions(recipe: Recipe) -> dict[str, int]:
    """Assign a different size to each name of a dimension."""
    # The fourth level must be as wide as the third (a resnet between equal widths has no
    # shortcut), so three names are enough.
    names = [f"{component}_{level}" for component in ("unet", "vae") for level in range(3)]
    names.append("unet_inputs")
    for encoder in (name for name in recipe.prefixes if name.startswith("text")):
        names += [encoder, *(f"{encoder}_{part}" for part in ("mlp", "vocabulary", "positions"))]
    if "text_encoder_2" in recipe.prefixes:
        names.append("text_encoder_2_projection")
    return {name: 64 * prime for name, prime in zip(names, PRIMES, strict=False)}


def _convert(
    component: str, checkpoint: dict[str, Symbol], config: dict[str, Any], prefix: str
) -> dict[str, Symbol]:
    # The converters may change the dictionary.
    checkpoint = dict(checkpoint)
    match component:
        case "unet":
            return convert_ldm_unet_checkpoint(checkpoint, config)
        case "vae":
            return convert_ldm_vae_checkpoint(checkpoint, config)
        case _ if prefix.endswith("transformer."):
            return convert_ldm_clip_checkpoint(checkpoint)
        case _:
            return convert_open_clip_checkpoint(None, checkpoint, prefix=prefix)


def _model(component: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict that a component needs, with the names of published models."""
    with torch.device("meta"):
        match component:
            case "unet":
                return UNet2DConditionModel.from_config(config).state_dict()
            case "vae":
                return AutoencoderKL.from_config(config).state_dict()
            case "text_encoder":
                model = CLIPTextModel(CLIPTextConfig(**config))
            case _:
                model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    # transformers 5.6 left text_model. out of the names of CLIPTextModel; published models have it.
    whole = ("text_model.", "text_projection.")
    return {
        key if key.startswith(whole) else f"text_model.{key}": tensor
        for key, tensor in model.state_dict().items()
    }


def expression(size: int, dimensions: Mapping[str, int]) -> str:
    """Write a size in terms of the named dimensions; raise ValueError unless one way exists."""
    if size <= LARGEST_CONSTANT:
        return str(size)
    found = {
        name if factor == 1 else f"{factor}*{name}"
        for name, value in dimensions.items()
        for factor in (1, 2, 4, 8)
        if factor * value == size
    }
    found |= {
        f"{one}+{other}"
        for one, other in combinations(dimensions, 2)
        if dimensions[one] + dimensions[other] == size
    }
    found |= {
        f"{name}+{ids}"
        for name, value in dimensions.items()
        for ids in TIME_IDS
        if value + ids == size
    }
    if len(found) != 1:
        raise ValueError(
            f"{size} needs one expression but has {sorted(found)}: choose other primes"
        )
    return found.pop()


def render(table: Table) -> str:
    """Return the table as JSON with one row per line."""
    parts = []
    for component, content in table.items():
        rows = ",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in content["rows"])
        parts.append(
            f'{json.dumps(component)}: {{"prefix": {json.dumps(content["prefix"])}, "rows": [\n'
            f'{rows}\n], "unused": {json.dumps(content["unused"])}}}'
        )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write all tables."""
    for name in RECIPES:
        path = DATA / name / "table.json"
        path.write_text(render(make_table(name)))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
