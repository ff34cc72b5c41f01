"""Repos that are damaged, contain code or cannot satisfy the spec are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.models.repoconversions import (
    TEXT,
    UNET,
    VAE,
    change_json,
    change_weights,
    convert_repo,
)
from tests.support.models.tinyrepo import replace


def refusal(repo: Path, **fields: Any) -> LoaderError:
    """Return the error of a conversion that must fail."""
    with pytest.raises(LoaderError) as caught:
        convert_repo(repo, **fields)
    return caught.value


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_from_safetensors_refuses_a_pickled_repo(repo, suffix):
    """The message names spec.fromSafetensors, even if the pickle is named like safetensors."""
    tensors = load_file(repo / UNET)
    (repo / UNET).unlink()
    torch.save(tensors, (repo / UNET).with_suffix(suffix))
    error = refusal(repo, from_safetensors=True)
    assert (error.reason, "fromSafetensors" in error.message) == (Reason.UNSAFE_MODEL, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("{}", "neither vocab.json", id="no tokenizer"),
        pytest.param('{"model": {"type": "Unigram"}}', "neither vocab.json", id="another kind"),
        pytest.param('{"model": {"type": "BPE"}}', "vocabulary", id="no vocabulary"),
        pytest.param(
            '{"model": {"type": "BPE", "vocab": {"a": "b"}}}', "vocabulary", id="ids as text"
        ),
        pytest.param(
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a b c"]}}',
            "two words",
            id="bad merges",
        ),
        pytest.param(
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []},'
            ' "added_tokens": [{"content": []}]}',
            "an id in tokenizer.json is not a whole number",
            id="bad token",
        ),
        pytest.param("[" * 100_000, "not valid JSON", id="nested too deep to read"),
        pytest.param('{"x":' + "[" * 40 + "]" * 40 + "}", "nested", id="nested too deep"),
    ],
)
def test_unreadable_tokenizer_is_refused(repo, content, words):
    """The message describes the problem."""
    replace(repo / "tokenizer/tokenizer.json", content)
    assert words in refusal(repo).message


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"weights": "ema"}, Reason.INVALID_SPEC, "spec.weights"),
        ({"original_config": "https://x.example/y"}, Reason.INVALID_SPEC, "spec.originalConfig"),
        ({"base_model": "sdxl"}, Reason.CONVERSION_FAILED, "spec.baseModel"),
    ],
)
def test_field_that_a_repo_cannot_satisfy_is_refused(repo, fields, reason, words):
    """The message names the field of the spec."""
    error = refusal(repo, **fields)
    assert (error.reason, words in error.message) == (reason, True), error.message


def lose_a_tensor(repo: Path) -> None:
    """Remove a tensor of the UNet."""
    change_weights(repo / UNET, lambda tensors: tensors.pop("conv_in.weight"))


def lose_a_part(repo: Path) -> None:
    """Cut off most of a tensor of the UNet."""
    name = "mid_block.resnets.0.conv1.weight"
    change_weights(repo / UNET, lambda it: it.update({name: it[name][:1].clone()}))


def be_wider(repo: Path) -> None:
    """Make the text encoder's width a string."""
    change_json(repo / "text_encoder/config.json", lambda it: it.update(hidden_size="x"))


def be_infinite(repo: Path) -> None:
    """Write a number that no float can hold into the UNet's config."""
    path = repo / "unet/config.json"
    replace(path, path.read_text().replace('"sample_size": 64', '"sample_size": 1e400'))


def quantize(repo: Path) -> None:
    """Replace a tensor of the UNet by bytes."""
    change_weights(
        repo / UNET, lambda it: it.update({"conv_in.weight": torch.zeros(2, dtype=torch.uint8)})
    )


def duplicate(repo: Path) -> None:
    """Add a text encoder's tensor again, with its prefix."""
    name = "final_layer_norm.weight"
    change_weights(repo / TEXT, lambda it: it.update({f"text_model.{name}": it[name].clone()}))


def empty_vae(repo: Path) -> None:
    """Give the VAE an unknown structure and no tensors."""
    change_json(repo / "vae/config.json", lambda config: config.update(layers_per_block=1))
    replace(repo / VAE, b"\x08\0\0\0\0\0\0\0{}      ")


def cut_off(repo: Path) -> None:
    """Truncate the UNet's file."""
    replace(repo / UNET, (repo / UNET).read_bytes()[:-1000])


def page(repo: Path) -> None:
    """Replace the UNet's file by an HTML page."""
    replace(repo / UNET, "<html><title>Sign in</title>" + " " * 100)


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        pytest.param(lose_a_tensor, Reason.CONVERSION_FAILED, "conv_in.weight", id="lost tensor"),
        pytest.param(
            lose_a_part,
            Reason.CONVERSION_FAILED,
            "mid_block.resnets.0.conv1",
            id="part of a tensor",
        ),
        pytest.param(be_wider, Reason.CONVERSION_FAILED, "hidden_size is x", id="invalid width"),
        pytest.param(be_infinite, Reason.DAMAGED_FILE, "not valid JSON", id="infinite number"),
        pytest.param(quantize, Reason.UNSUPPORTED_FORMAT, "quantized", id="quantized weights"),
        pytest.param(duplicate, Reason.CONVERSION_FAILED, "two tensors", id="doubled tensor"),
        pytest.param(empty_vae, Reason.NOT_A_MODEL, "without tensors", id="no tensors"),
        pytest.param(cut_off, Reason.DAMAGED_FILE, "diffusion_pytorch_model", id="cut off"),
        pytest.param(page, Reason.NOT_A_MODEL, "HTML", id="HTML page"),
    ],
)
def test_damaged_weights_are_refused(repo, damage, reason, words):
    """Damaged weights are refused: diffusers would fill gaps with random numbers and only warn."""
    damage(repo)
    error = refusal(repo)
    assert (error.reason, words in error.message) == (reason, True), error.message


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, Reason.UNSAFE_MODEL),
        ("unet/config.json", {"quantization_config": {"x": 1}}, Reason.UNSUPPORTED_FORMAT),
        ("scheduler/scheduler_config.json", {"prediction_type": []}, Reason.UNSUPPORTED_FORMAT),
        ("scheduler/scheduler_config.json", {"auto_map": {}}, Reason.UNSAFE_MODEL),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"_class_name": "FluxPipeline"}, Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_configs_are_checked_again_in_the_conversion(repo, name, change, reason):
    """A config that was changed after the download is refused by the conversion, too."""
    change_json(repo / name, lambda value: value.update(change))
    assert refusal(repo).reason is reason
