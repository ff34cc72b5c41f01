"""The files of a PEFT adapter, and LoRAs that cannot have one. PEFT opens it in test_lora_peft."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sd_api.reasons import Reason
from sd_loader.convert.plan.needs import needs
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.request import conversion_of
from tests.support.models.loraarrays import Arrays, loaded, random, read, request, write

PEFT = {"format": "peft"}
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
QUERY, CROSS, CONV = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", "down_blocks.1.resnets.0.conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_out_proj"


def layer(name: str, outputs: int, *inputs: int, rank: int = 4, alpha: float = 2) -> Arrays:
    """Return a layer in kohya's style."""
    return {
        f"{name}.lora_down.weight": random(1, rank, *inputs),
        f"{name}.lora_up.weight": random(2, outputs, rank, *[1] * (len(inputs) - 1)),
        f"{name}.alpha": np.array(alpha, "float16"),
    }


def kohya(name: str) -> str:
    """The name of a layer of the UNet in kohya's style."""
    return f"lora_unet_{name.replace('.', '_')}"


UNET = (
    layer(kohya(QUERY), 64, 64)
    | layer(kohya(CROSS), 64, 768)
    | layer(kohya(CONV), 64, 32, 3, 3, rank=8, alpha=0.5)
)


def test_ranks_and_alphas_are_in_the_config(tmp_path):
    """The tensors keep their bytes, under the names of the modules."""
    converted, published = loaded(tmp_path, UNET, lora=PEFT)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "target_modules": sorted([QUERY, CROSS, CONV]),
        "lora_bias": False,
        "use_dora": False,
        "r": 4,
        "rank_pattern": {CONV: 8},
        "lora_alpha": 2,
        "alpha_pattern": {CONV: 0.5},
    }
    adapter = read(tmp_path / "out" / "adapter_model.safetensors")
    for name in (QUERY, CROSS, CONV):
        for half, other in (("A", "down"), ("B", "up")):
            own = adapter.pop(f"base_model.model.{name}.lora_{half}.weight")
            assert own.tobytes() == published[f"{kohya(name)}.lora_{other}.weight"].tobytes()
    assert not adapter
    assert sorted(converted.files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
    ]


def test_without_an_alpha_the_scale_is_one(tmp_path):
    """PEFT divides the alpha by the rank, so the config has the rank as the alpha."""
    arrays = {name: array for name, array in UNET.items() if not name.endswith("alpha")}
    loaded(tmp_path, arrays, lora=PEFT)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["alpha_pattern"]) == (4, {CONV: 8})


def test_an_expanded_lycoris_has_a_peft_adapter(tmp_path):
    """The options format and expandLycoris can be combined."""
    arrays = {
        f"{kohya(CROSS)}.hada_w{number}_{letter}": random(number, *shape)
        for number in (1, 2)
        for letter, shape in (("a", (64, 4)), ("b", (4, 768)))
    }
    loaded(tmp_path, arrays, lora={"format": "peft", "expandLycoris": True})
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)


def test_a_layer_of_several_modules_is_cut_into_its_rows(tmp_path):
    """Each module gets its rows of the up matrix, and the whole down matrix."""
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    _, published = loaded(tmp_path, layer(name, 9216, 3072), lora=PEFT)
    adapter = read(tmp_path / "out" / "adapter_model.safetensors")
    up = published[f"{name}.lora_up.weight"]
    for number, letter in enumerate("qkv"):
        module = f"base_model.model.transformer_blocks.0.attn.to_{letter}"
        rows = up[3072 * number : 3072 * (number + 1)]
        assert adapter.pop(f"{module}.lora_B.weight").tobytes() == rows.tobytes()
        down = adapter.pop(f"{module}.lora_A.weight")
        assert down.tobytes() == published[f"{name}.lora_down.weight"].tobytes()
    assert not adapter


def test_a_name_that_is_a_suffix_of_others_makes_a_pattern(tmp_path):
    """With a list of names, PEFT would also change all modules whose names end in one of them."""
    arrays = {
        "transformer.proj_out.lora_A.weight": random(1, 4, 3072),
        "transformer.proj_out.lora_B.weight": random(2, 64, 4),
        "transformer.transformer_blocks.0.norm1.linear.lora_A.weight": random(1, 2, 3072),
        "transformer.transformer_blocks.0.norm1.linear.lora_B.weight": random(2, 18432, 2),
    }
    loaded(tmp_path, arrays, lora=PEFT)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == r"proj_out|transformer_blocks\.0\.norm1\.linear"
    other = "transformer_blocks.0.norm1.linear"
    ranks = {"proj_out": 4, other: 2}
    found = {
        name: config["rank_pattern"].get("^proj_out" if name == "proj_out" else name, config["r"])
        for name in ranks
    }
    assert found == ranks


def test_a_lora_has_no_peft_adapter_by_default(tmp_path):
    """The folder has only the file for diffusers."""
    converted, _ = loaded(tmp_path, UNET)
    assert [*converted.files] == ["pytorch_lora_weights.safetensors"]


def test_layers_of_a_text_encoder_are_left_to_diffusers(tmp_path):
    """The adapter has only layers of the UNet, and a warning states this.

    Names of modules in a text encoder depend on the version of transformers.
    """
    converted, _ = loaded(tmp_path, UNET | layer(TEXT, 768, 768), lora=PEFT)
    adapter = read(tmp_path / "out" / "adapter_model.safetensors")
    assert not any("text_model" in name for name in adapter)
    assert converted.warnings == (
        "adapter_model.safetensors has the layers of the UNet only; those of text_encoder are in"
        " pytorch_lora_weights.safetensors",
    )


REFUSED = {
    "text encoder": (layer(TEXT, 768, 768), Reason.INVALID_SPEC, "the file has none; leave it out"),
    "nan": (UNET | layer(kohya(QUERY), 64, 64, alpha=np.nan), None, "is nan, which is not a scale"),
    "inf": (UNET | layer(kohya(QUERY), 64, 64, alpha=np.inf), None, "is inf, which is not a scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_lora_without_a_possible_adapter_is_refused(tmp_path, case):
    """A LoRA with an infinite or NaN scale, or without layers of the UNet, is refused.

    JSON has no such numbers, and an adapter without layers would change nothing.
    """
    arrays, reason, message = REFUSED[case]
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, arrays, lora=PEFT)
    assert caught.value.reason is (reason or Reason.VERIFICATION_FAILED)
    assert message in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_the_file_is_downloaded_completely_before_its_alphas_are_read(tmp_path):
    """`needs` asks for the whole file: the adapter's config needs its alphas."""
    with open_tensor_file(write(tmp_path / "file", UNET)) as file:
        assert needs(file, conversion_of(request(lora=PEFT))).whole_file
