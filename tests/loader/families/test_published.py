"""Repos of other families are published byte for byte, or narrowed as diffusers narrows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub
from sd_api.sources import HubRepo
from sd_api.spec import ModelType
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Fetched, nothing_at_hand
from sd_loader.net.client import HttpClient
from sd_loader.settings import Settings
from sd_loader.source.hub import fetch_repo
from sd_loader.source.ref import Checks, SourceRef
from tests.support.loader.fetches import QUICK
from tests.support.models import familyrepos
from tests.support.models.familyloads import converted, publish
from tests.support.models.familyrepos import DIFFUSION, NF4, Files, quantized

SHARDS = [f"{DIFFUSION}-{number:05d}-of-00002.safetensors" for number in (1, 2)]


def fetch(files: Files, tmp_path: Path) -> tuple[Fetched, Path]:
    """Fetch a repo from a Hub. Return the record of the download and its folder."""
    into = tmp_path / "into"
    into.mkdir()
    ref = SourceRef("org/model", "spec.url", ModelType.HUGGINGFACE)
    with FakeHub() as hub:
        hub.add_repo("org/model", familyrepos.lay(files, tmp_path / "repo"))
        settings = Settings(
            hub_endpoint=hub.url,
            allowed_hosts=frozenset({hub.host}),
            credentials_dir=tmp_path / "secret",
        )
        client = HttpClient(settings, has_token=False, retries=QUICK)
        place = HubRepo("org/model")
        fetched = fetch_repo(place, ref, Checks(), client, into, lambda _: None, nothing_at_hand)
        return fetched, into


def dtypes(path: Path) -> dict[str, str]:
    """Return the types of a file's tensors."""
    with open_tensor_file(path) as file:
        return {name: tensor.dtype.label for name, tensor in file.tensors.items()}


def parsed(path: Path) -> dict[str, Any]:
    """Return a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_a_flux_repo_is_published_with_its_own_bytes(tmp_path):
    """Weights and tokenizers link to the download, which has no code and no unused weights."""
    repo = familyrepos.flux()
    fetched, into = fetch(repo, tmp_path)
    out, result = converted(fetched, into)
    downloaded = into / "repo"
    assert not list(downloaded.rglob("*.py"))
    assert not (downloaded / "flux1-dev.safetensors").exists()
    suffixes = (".safetensors", ".model", "tokenizer.json")
    for name in [name for name in repo if "/" in name and name.endswith(suffixes)]:
        published = out / name.replace("model-00001-of-00001", "model")
        assert published.read_bytes() == repo[name]
        assert published.samefile(downloaded / name)
    index = parsed(out / "transformer" / f"{DIFFUSION}.safetensors.index.json")
    assert sorted(set(index["weight_map"].values())) == SHARDS
    assert index["metadata"]["total_size"] == 2 * (32 + 64 + 64 + 4)
    assert result.files.keys() == {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert (result.base_model, result.variant) == ("flux", "dev")
    assert result.pipeline_class == "FluxPipeline"
    assert (result.precision, result.checked) == ("bf16", "names")


def test_configs_keep_what_their_classes_document(tmp_path):
    """The index and the tokenizer configs have the repo's entries; private keys are left out."""
    repo = familyrepos.flux()
    out, _result = publish(repo, tmp_path)
    assert parsed(out / "model_index.json") == json.loads(repo["model_index.json"])
    for name in ("tokenizer/tokenizer_config.json", "tokenizer_2/special_tokens_map.json"):
        assert (out / name).read_bytes() == repo[name]
    config = json.loads(repo["transformer/config.json"])
    del config["_name_or_path"]
    assert parsed(out / "transformer/config.json") == config
    encoder = parsed(out / "text_encoder_2/config.json")
    assert encoder["feed_forward_proj"] == "gated-gelu"
    assert encoder["torch_dtype"] == "bfloat16"
    assert parsed(out / "scheduler/scheduler_config.json") == json.loads(
        repo["scheduler/scheduler_config.json"]
    )


def test_a_precision_that_the_repo_has_changes_no_byte(tmp_path):
    """A repo in bf16 is published as it is when bf16 is asked for."""
    repo = familyrepos.flux()
    out, result = publish(repo, tmp_path, "bf16")
    for name in SHARDS:
        assert (out / "transformer" / name).read_bytes() == repo[f"transformer/{name}"]
    assert result.precision == "bf16"


@pytest.mark.parametrize(
    ("revision", "label", "wo"),
    [("fp16", "F16", "F32"), pytest.param("bf16", "BF16", "BF16", marks=pytest.mark.slow)],
)
def test_narrowing_keeps_the_modules_that_the_libraries_keep_in_fp32(tmp_path, revision, label, wo):
    """Wan's norms and time embedding stay in fp32; T5's `wo` does so in fp16 only."""
    out, result = publish(familyrepos.wan(), tmp_path, revision)
    assert dtypes(out / "transformer" / SHARDS[0]) == {
        "blocks.0.attn1.to_q.weight": label,
        "blocks.0.norm2.weight": "F32",
        "blocks.0.scale_shift_table": "F32",
        "condition_embedder.time_embedder.linear_1.weight": "F32",
        "condition_embedder.time_proj.weight": label,
    }
    encoder = dtypes(out / "text_encoder/model.safetensors")
    assert encoder.pop("encoder.block.0.layer.1.DenseReluDense.wo.weight") == wo
    assert set(encoder.values()) == {label}
    assert result.precision == "mixed"
    name = {"fp16": "float16", "bf16": "bfloat16"}[revision]
    assert parsed(out / "text_encoder/config.json")["torch_dtype"] == name


def test_wan_is_published_with_two_transformers(tmp_path):
    """Options of the pipeline stay, and the scheduler keeps its own settings."""
    repo = familyrepos.wan()
    out, result = publish(repo, tmp_path)
    assert parsed(out / "model_index.json") == json.loads(repo["model_index.json"])
    for name in (f"transformer/{SHARDS[1]}", f"transformer_2/{DIFFUSION}.safetensors"):
        assert (out / name).read_bytes() == repo[name]
    assert (result.base_model, result.precision) == ("wan", "fp32")


def test_shards_of_a_variant_are_chosen_and_lose_its_name(tmp_path):
    """The fp16 shards of SD 3's third encoder are published; null components stay null."""
    repo = familyrepos.sd3()
    out, result = publish(repo, tmp_path, "fp16")
    folder = out / "text_encoder_3"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    shard = "model.fp16-00001-of-00002.safetensors"
    published = (folder / "model-00001-of-00002.safetensors").read_bytes()
    assert published == repo[f"text_encoder_3/{shard}"]
    assert parsed(out / "model_index.json")["image_encoder"] == [None, None]
    assert (result.base_model, result.precision) == ("sd-3", "fp16")


def test_a_clip_encoder_without_prefix_gets_it(tmp_path):
    """Every published tensor of the encoder begins with `text_model.`.

    Versions of transformers before 5.6 would open random weights without the prefix.
    """
    repo = familyrepos.flux()
    tensors = {"final_layer_norm.weight": ("BF16", (8,)), "embeddings.x.weight": ("BF16", (4,))}
    repo["text_encoder/model.safetensors"] = familyrepos.weights(tensors)
    out, _result = publish(repo, tmp_path)
    assert set(dtypes(out / "text_encoder/model.safetensors")) == {
        "text_model.embeddings.x.weight",
        "text_model.final_layer_norm.weight",
    }


def test_an_image_encoder_without_prefix_gets_it(tmp_path):
    """Every published tensor of CLIP's image encoder begins with `vision_model.`."""
    repo = familyrepos.wan()
    index = json.loads(repo["model_index.json"])
    index |= {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": ["transformers", "CLIPVisionModel"],
    }
    repo["model_index.json"] = familyrepos.encoded(index)
    repo["image_encoder/config.json"] = familyrepos.encoded({"model_type": "clip_vision_model"})
    repo["image_encoder/model.safetensors"] = familyrepos.weights(
        {"embeddings.class_embedding": ("F32", (8,)), "vision_model.x.weight": ("F32", (4,))}
    )
    out, _result = publish(repo, tmp_path)
    assert set(dtypes(out / "image_encoder/model.safetensors")) == {
        "vision_model.embeddings.class_embedding",
        "vision_model.x.weight",
    }


def test_a_file_that_transformers_would_refuse_is_written_again(tmp_path):
    """A file without the metadata `format: pt` is published with it, as transformers requires."""
    repo = familyrepos.flux()
    name = "text_encoder/model.safetensors"
    tensors = {"text_model.x": ("BF16", (8,))}
    repo[name] = familyrepos.weights(tensors, metadata={"origin": "elsewhere"})
    out, _result = publish(repo, tmp_path)
    with open_tensor_file(out / name) as file:
        assert file.metadata == {"format": "pt"}


def test_a_quantized_repo_is_published_unchanged(tmp_path):
    """Only the documented settings of the quantizer are published, and the status names it."""
    repo = quantized(**NF4, attn_implementation="evil/kernel")
    out, result = publish(repo, tmp_path)
    name = f"transformer/{DIFFUSION}.safetensors"
    assert (out / name).read_bytes() == repo[name]
    settings = parsed(out / "transformer/config.json")["quantization_config"]
    assert settings == {"quant_method": "bitsandbytes", **NF4}
    assert result.precision == "nf4"
