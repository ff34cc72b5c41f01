"""The list of config keys is the one that the installed libraries document."""

from __future__ import annotations

import pytest
from transformers import CLIPConfig
from transformers.activations import ACT2FN

from sd_loader.diffusers_repo.config_keys import PATH, allowed_config
from sd_loader.diffusers_repo.config_limits import NAMES, NUMBERS, ONLY
from sd_loader.errors import LoaderError
from tools.make_config_keys import make_list, render, transformers_entries


@pytest.mark.filterwarnings("ignore")  # deprecated algorithms are tried as well
def test_list_in_the_loader_is_up_to_date():
    """Run `python -m tools.make_config_keys` after an update of diffusers or transformers."""
    assert render(make_list()) == PATH.read_text()


def test_each_limit_is_of_a_documented_key():
    """A limit for a key that no class documents would have no effect."""
    text = PATH.read_text()
    for key in (*NUMBERS, *NAMES, *ONLY):
        assert f'"{key.rpartition(".")[2]}": {{"types"' in text


def test_allowed_activations_add_no_tensors():
    """A tensor that an activation adds would have random values."""
    for name in NAMES["hidden_act"]:
        assert not list(ACT2FN[name].parameters())


def test_nested_configs_are_read_by_the_list_of_their_class():
    """The list of each nested class applies, without code for the class around it."""
    classes = transformers_entries("Checker", CLIPConfig)
    config = {
        "text_config": {"hidden_size": 8, "attn_implementation": "evil/kernel"},
        "vision_config": {"patch_size": [4, 4], "model_type": "evil", "x": {"y": 1}},
        "quantization_config": {"x": 1},
        "projection_dim": 16,
    }
    assert allowed_config(config, "Checker", "x", classes=classes) == {
        "projection_dim": 16,
        "text_config": {"hidden_size": 8, "model_type": "clip_text_model"},
        "vision_config": {"patch_size": [4, 4], "model_type": "clip_vision_model"},
    }
    with pytest.raises(LoaderError, match=r"x: text_config: vocab_size is"):
        allowed_config({"text_config": {"vocab_size": 1 << 31}}, "Checker", "x", classes=classes)
    with pytest.raises(LoaderError, match=r"x: vision_config is \[1\]; it should be"):
        allowed_config({"vision_config": [1]}, "Checker", "x", classes=classes)
