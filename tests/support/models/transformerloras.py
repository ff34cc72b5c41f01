"""LoRAs of models with a transformer: shapes of tensors by name, as wide as the real models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd_api.choices import ModelType
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.lora import plan_lora
from sd_loader.convert.plan.lora_keys import Half
from sd_loader.convert.plan.lora_layers import BLOCKS, layer_kinds, norm_names
from sd_loader.convert.plan.lora_styles import STYLES, Alphas, LoraStyle
from sd_loader.convert.tables.dimensions import evaluate
from sd_loader.convert.write.files import FolderPlan
from sd_loader.tensors import Dtype, Tensor, TensorFile

Shapes = dict[str, tuple[int, ...]]

RANK = 2
SIZES: Mapping[str, Mapping[str, int]] = {
    "flux": {"inner": 3072, "context": 4096, "pooled": 768, "inputs": 64, "outputs": 64},
    "chroma": {
        "inner": 3072,
        "context": 4096,
        "inputs": 64,
        "outputs": 64,
        "approximator": 5120,
        "approximator_inputs": 64,
    },
    "flux2": {
        "inner": 6144,
        "mlp": 18432,
        "time": 256,
        "context": 15360,
        "inputs": 128,
        "outputs": 128,
    },
    "sd-3": {
        "inner": 1536,
        "context": 4096,
        "pooled": 2048,
        "patch": 2,
        "inputs": 16,
        "outputs": 64,
    },
    "qwen-image": {"inner": 3072, "inputs": 64, "outputs": 64, "context": 3584},
    "z-image": {"inner": 3840, "mlp": 10240, "time": 256, "inputs": 64, "context": 2560},
    "wan": {
        "inner": 5120,
        "mlp": 13824,
        "inputs": 16,
        "outputs": 64,
        "context": 4096,
        "image": 1280,
        "image_keys": 5120,
        "time": 256,
        "patch_0": 1,
        "patch_1": 2,
        "patch_2": 2,
    },
    "lumina2": {
        "inner": 2304,
        "keys": 768,
        "mlp": 9216,
        "time": 1024,
        "inputs": 64,
        "outputs": 64,
        "context": 2304,
    },
}
"""The sizes of a published model of each family, by their names in its key table."""

EACH_STYLE = [
    (family, number)
    for family, styles in STYLES.items()
    for number, style in enumerate(styles)
    if not style.whole_model
]
"""The styles in which a LoRA may change only some of the layers, by family and number."""


def style_id(case: tuple[str, int]) -> str:
    """Describe a family and the number of one of its styles."""
    family, number = case
    style = STYLES[family][number]
    return f"{family} {number}: {style.prefix or 'bare '}{style.layout.value}"


def layers_of(family: str, style: LoraStyle) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Yield each layer that diffusers reads: its name in the table, shape, modules in diffusers."""
    for template, kind in layer_kinds(family, style.layout).items():
        if not style.matches(template):
            continue
        rows = kind.variants[-1]
        shapes = [
            tuple(evaluate(size, SIZES[family]) for size in row.shape.split()) for row in rows
        ]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        modules = [row.target.removesuffix(".weight").replace("{}", "0") for row in rows]
        yield template.replace("{}", "0"), shape, modules


def named(style: LoraStyle, layer: str, half: Half) -> str:
    """The name of a layer's tensor in a style."""
    role = next(role for role, found in style.halves.items() if found is half)
    return f"{style.prefix}{layer.replace('.', style.separator)}.{role}"


def halves(
    style: LoraStyle, layer: str, shape: tuple[int, ...], *, alphas: bool, rank: int = RANK
) -> Shapes:
    """The tensors of a LoRA for one layer of this shape."""
    found = {
        named(style, layer, Half.DOWN): (rank, *shape[1:]),
        named(style, layer, Half.UP): (shape[0], rank, *[1] * (len(shape) - 2)),
    }
    return found | ({named(style, layer, Half.ALPHA): ()} if alphas else {})


def has_alphas(style: LoraStyle) -> bool:
    """Whether this module's LoRAs have alphas in this style: yes, if the style permits them."""
    return style.alphas is not Alphas.FORBIDDEN and Half.ALPHA in style.halves.values()


def lora_shapes(family: str, style: LoraStyle) -> Shapes:
    """A LoRA of each layer that diffusers reads, but only of the first block of each kind."""
    found: Shapes = {}
    for layer, shape, _ in layers_of(family, style):
        found |= halves(style, layer, shape, alphas=has_alphas(style))
    return found


def control_shapes() -> Shapes:
    """A LoRA of FLUX.1 in the style of Black Forest Labs: all layers, with biases, and norms."""
    style = STYLES["flux"][-1]
    [blocks] = BLOCKS["flux"].values()
    found: Shapes = {}
    for layer, shape, _ in layers_of("flux", style):
        for number in range(blocks.get(layer.partition(".")[0], 1)):
            own = layer.replace(".0.", f".{number}.", 1) if number else layer
            found |= halves(style, own, shape, alphas=False)
            found[named(style, own, Half.BIAS)] = shape[:1]
    for template, stack in norm_names("flux").items():
        for number in range(blocks[stack]):
            found[template.replace("{}", str(number))] = (128,)
    return found


def clip_shapes(style: LoraStyle, prefix: str, *, width: int = 768, layer: int = 0) -> Shapes:
    """A LoRA of one encoder layer of CLIP-L: its attention and its first projection."""
    names = {f"self_attn.{name}_proj": width for name in ("q", "k", "v", "out")}
    own = replace(style, prefix=prefix)
    found: Shapes = {}
    for name, outputs in {**names, "mlp.fc1": 4 * width}.items():
        path = f"text_model.encoder.layers.{layer}.{name}"
        found |= halves(own, path, (outputs, width), alphas=style.separator == "_")
    return found


def plan(shapes: Shapes, metadata: dict[str, str] | None = None, **options: Any) -> FolderPlan:
    """Plan the folder of a LoRA with tensors of these shapes."""
    tensors = {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}
    file = TensorFile(Path("x"), -1, "safetensors", tensors, metadata or {})
    return plan_lora(file, Conversion(ModelType.LORA, "x", **options))
