"""Diffusers and PEFT read the published LoRAs of transformers as the loader expects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import lora_pipeline
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from sd_loader.convert.plan.lora_keys import Half
from sd_loader.convert.plan.lora_layers import layer_kinds
from sd_loader.convert.plan.lora_styles import STYLES, LoraStyle
from sd_loader.convert.tables.architecture import Row
from tests.support.models.adapters import NAME, Tensors, loaded
from tests.support.models.transformerloras import (
    EACH_STYLE,
    SIZES,
    clip_shapes,
    control_shapes,
    has_alphas,
    layers_of,
    lora_shapes,
    named,
    style_id,
)

MIXINS = {
    "flux": lora_pipeline.FluxLoraLoaderMixin,
    "chroma": lora_pipeline.FluxLoraLoaderMixin,
    "flux2": lora_pipeline.Flux2LoraLoaderMixin,
    "sd-3": lora_pipeline.SD3LoraLoaderMixin,
    "qwen-image": lora_pipeline.QwenImageLoraLoaderMixin,
    "z-image": lora_pipeline.ZImageLoraLoaderMixin,
    "wan": lora_pipeline.WanLoraLoaderMixin,
    "lumina2": lora_pipeline.Lumina2LoraLoaderMixin,
}
ALPHA = 1.0
COLUMNS = 4
"""How many columns (inputs) of a layer's weight change are compared: the whole change is large."""


def random_lora(family: str, style: LoraStyle) -> Tensors:
    """The LoRA of `lora_shapes` with random numbers, and with ALPHA as each alpha."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) if shape else torch.tensor(ALPHA)
        for name, shape in lora_shapes(family, style).items()
    }


def change(down: torch.Tensor, up: torch.Tensor, alpha: float | None) -> torch.Tensor:
    """The first COLUMNS columns of a layer's weight change."""
    scale = 1.0 if alpha is None else alpha / len(down)
    return up.flatten(1) @ down.flatten(1)[:, :COLUMNS] * scale


def part(tensor: torch.Tensor, row: Row) -> torch.Tensor:
    """The rows of a layer's up matrix that belong to a module, in the module's order."""
    words = row.op.split()
    if words[:1] == ["swap"]:
        return torch.cat(tensor.chunk(2)[::-1])
    if words and words[0] in ("queries", "keys", "values"):
        widths = [SIZES["lumina2"][name] for name in ("inner", "keys", "keys")]
        return tensor.split(widths)[("queries", "keys", "values").index(words[0])]
    if words[:1] == ["rows"]:
        first, last = map(int, words[1].split("-"))
        pieces = tensor.chunk(int(words[3]))
        return torch.cat(pieces[first:last])
    return tensor


def expected(family: str, style: LoraStyle, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each module of diffusers with the change that the loader's table gives it."""
    kinds = layer_kinds(family, style.layout)
    for layer, _, modules in layers_of(family, style):
        template = next(name for name in kinds if name.replace("{}", "0") == layer)
        down = tensors[named(style, layer, Half.DOWN)]
        up = tensors[named(style, layer, Half.UP)]
        alpha = ALPHA if has_alphas(style) else None
        for module, row in zip(modules, kinds[template].variants[-1], strict=True):
            yield module, change(down, part(up, row), alpha)


def read_by_diffusers(family: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The first columns of the changes that diffusers reads from a file's tensors, by module."""
    mixin = MIXINS[family]
    options: dict[str, Any] = {"return_alphas": True} if "Flux" in mixin.__name__ else {}
    found = mixin.lora_state_dict(dict(tensors), **options)
    state, alphas = found if isinstance(found, tuple) else (found, None)
    changes = {}
    for name, down in state.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            alpha = (alphas or {}).get(f"{module}.alpha")
            changes[module] = change(down, state[f"{module}.lora_B.weight"], alpha)
    assert len(state) == 2 * len(changes)
    return changes


QUICK = {("flux", 0)}
CASES = [
    pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow, id=style_id(case))
    for case in EACH_STYLE
]


@pytest.mark.parametrize("case", CASES)
def test_diffusers_reads_every_layer_of_the_published_file(tmp_path, case):
    """Names, scales and the order of rows are those of the loader's table."""
    family, number = case
    style = STYLES[family][number]
    tensors = random_lora(family, style)
    _, out = loaded(tmp_path, tensors)
    found = read_by_diffusers(family, load_file(out / f"{NAME}.safetensors"))
    wanted = {f"transformer.{name}": value for name, value in expected(family, style, tensors)}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max(), name


@pytest.mark.slow
def test_diffusers_reads_a_control_lora_as_the_file_states(tmp_path):
    """Norms and biases are read, and the rows of a layer of several modules are cut."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randn(shape, generator=generator) for name, shape in control_shapes().items()
    }
    _, out = loaded(tmp_path, tensors)
    published = load_file(out / f"{NAME}.safetensors")
    assert published.keys() == tensors.keys()
    state = MIXINS["flux"].lora_state_dict(published)
    block = "single_transformer_blocks.37."
    linear = "single_blocks.37.linear1.lora_B."
    norm = tensors["single_blocks.37.norm.query_norm.scale"]
    assert torch.equal(state[f"transformer.{block}attn.norm_q.weight"], norm)
    for part in ("weight", "bias"):
        cut = tensors[linear + part][2 * 3072 : 3 * 3072]
        assert torch.equal(state[f"transformer.{block}attn.to_v.lora_B.{part}"], cut)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "prefix"),
    [(0, "lora_te1_"), (0, "lora_te_"), (2, "lora_te1_"), (5, "text_encoder.")],
)
def test_diffusers_changes_clip_as_the_file_states(tmp_path, number, prefix):
    """A LoRA of FLUX.1 may have layers of CLIP-L, in the styles in which diffusers reads them."""
    style = STYLES["flux"][number]
    generator = torch.Generator().manual_seed(1)
    of_clip = {
        name: torch.randn(shape, generator=generator) if shape else torch.tensor(ALPHA)
        for name, shape in clip_shapes(style, prefix).items()
    }
    _, out = loaded(tmp_path, random_lora("flux", style) | of_clip)
    mixin = MIXINS["flux"]
    published = load_file(out / f"{NAME}.safetensors")
    state, alphas = mixin.lora_state_dict(published, return_alphas=True)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=1, num_attention_heads=12
        )
    )
    mixin.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder")
    changed = {
        name.partition("encoder.layers.0.")[2]: module
        for name, module in encoder.named_modules()
        if getattr(module, "lora_A", None)
    }
    downs = ("lora_down.weight", "lora_A.weight")
    layers = {
        name.replace("_", ".").partition("encoder.layers.0.")[2].rpartition(".lora")[0]: name
        for name in of_clip
        if name.endswith(downs)
    }
    assert {name.replace("_", ".") for name in changed} == layers.keys()
    for name, module in changed.items():
        down = layers[name.replace("_", ".")]
        up = down.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
        alpha = ALPHA if style.separator == "_" else None
        wanted = change(of_clip[down], of_clip[up], alpha)
        (adapter,) = module.lora_A
        own = change(
            module.lora_A[adapter].weight.detach(),
            module.lora_B[adapter].weight.detach(),
            module.scaling[adapter] * module.r[adapter],
        )
        assert (own - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name


def peft_changes(folder: Path) -> dict[str, torch.Tensor]:
    """The first columns of the changes in a PEFT adapter's files, scaled by its config."""
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    changes = {}
    for name, down in state.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            short = module.removeprefix("base_model.model.")
            alpha = config["alpha_pattern"].get(short, config["lora_alpha"])
            changes[f"transformer.{short}"] = change(down, state[f"{module}.lora_B.weight"], alpha)
    return changes


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH_STYLE, ids=map(style_id, EACH_STYLE))
def test_a_peft_adapter_has_the_changes_that_diffusers_reads(tmp_path, case):
    """The rows of a layer of several modules are cut, and its down matrix is repeated."""
    family, number = case
    _, out = loaded(tmp_path, random_lora(family, STYLES[family][number]), lora={"format": "peft"})
    wanted = read_by_diffusers(family, load_file(out / f"{NAME}.safetensors"))
    found = peft_changes(out)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 5], ids=["kohya", "PEFT"])
def test_peft_opens_the_adapter_of_a_flux_lora(tmp_path, number):
    """PEFT changes exactly the LoRA's modules, although longer names of others end in proj_out."""
    style = STYLES["flux"][number]
    _, out = loaded(tmp_path, random_lora("flux", style), lora={"format": "peft"})
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    opened = PeftModel.from_pretrained(model.to_empty(device="cpu").to(torch.float16), out)
    found = {
        name.removeprefix("base_model.model."): module
        for name, module in opened.named_modules()
        if "default" in getattr(module, "lora_A", {})
    }
    wanted = read_by_diffusers("flux", load_file(out / f"{NAME}.safetensors"))
    assert {f"transformer.{name}" for name in found} == wanted.keys()
    for name, module in found.items():
        own = change(
            module.lora_A["default"].weight.detach().float(),
            module.lora_B["default"].weight.detach().float(),
            module.scaling["default"] * module.r["default"],
        )
        value = wanted[f"transformer.{name}"]
        assert (own - value).abs().max() <= 1e-6 * value.abs().max(), name
