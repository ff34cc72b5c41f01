"""`spec.lora.format: peft` publishes an adapter with which PEFT makes the LoRA's changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.support.models.adapters import loaded, lora, pipeline, trained

ADAPTER = "adapter_model.safetensors"
PEFT = {"format": "peft"}


def deltas(model: torch.nn.Module, adapter: str) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to the weights of a model, by module."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(adapter).clone()
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", {})
    }


def of_diffusers(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return the changes of the UNet as diffusers loads them."""
    pipe = pipeline(family)
    try:
        pipe.load_lora_weights(folder, adapter_name="x")
        return deltas(pipe.unet, "x")
    finally:
        pipe.unload_lora_weights()


def of_peft(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return the changes of the UNet as PEFT loads them."""
    model = PeftModel.from_pretrained(pipeline(family).unet, folder)
    try:
        assert not model.active_peft_config.modules_to_save
        return deltas(model, "default")
    finally:
        model.unload()


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Assert that both have the same modules, with equal changes that are not zero."""
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        scale = change.abs().max()
        assert scale > 0, name
        assert (found[name] - change).abs().max() <= 1e-6 * scale, name


CASES = [
    pytest.param("sd15", "kohya"),
    *(
        pytest.param(family, style, marks=pytest.mark.slow)
        for family, style in (
            ("sd15", "old diffusers"),
            ("sd15", "diffusers"),
            ("sd15", "peft"),
            ("sd-2", "kohya"),
            ("sdxl", "kohya"),
            ("sdxl", "kohya sgm"),
            ("sdxl", "peft"),
        )
    ),
]


@pytest.mark.parametrize(("family", "style"), CASES)
def test_peft_makes_the_changes_that_diffusers_makes(tmp_path, family, style):
    """PEFT's adapter changes the UNet as diffusers' LoRA does, with different ranks and alphas."""
    tensors = lora(family, style, text=False, dtype=torch.float32)
    converted, out = loaded(tmp_path, tensors, lora=PEFT)
    assert {"adapter_config.json", ADAPTER} <= converted.files.keys()
    assert_equal(of_peft(family, out), of_diffusers(family, out))


@pytest.mark.slow
# peft mistakes each of its own biases for a shard of a distributed run, and warns.
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True, "target_modules": ("to_out.0",)},
        {"alpha_pattern": {"to_q": 3}},
    ],
    ids=["DoRA", "rsLoRA", "bias", "alphas"],
)
def test_the_config_in_the_metadata_is_kept(tmp_path, options):
    """PEFT follows the options, such as DoRA, that diffusers wrote into the LoRA's metadata."""
    _, layers, config = trained(**options)
    layers = {f"unet.{name}": tensor for name, tensor in layers.items()}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({f"unet.{key}": value for key, value in config.items() if key != "peft_type"})
    _, out = loaded(tmp_path, layers, {"lora_adapter_metadata": text}, lora=PEFT)
    assert_equal(of_peft("sd15", out), of_diffusers("sd15", out))
    published = load_file(out / ADAPTER)
    for name, tensor in layers.items():
        assert torch.equal(published[name.replace("unet.", "base_model.model.", 1)], tensor)
