"""Diffusers repos of any origin become the canonical folder, which holds only data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_loader.convert.tables.clip import vocabulary_file
from sd_loader.errors import LoaderError
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_safetensors, tiny_sd15, tiny_sdxl
from tests.support.models.conversions import convert_file, identical
from tests.support.models.images import assert_same_image
from tests.support.models.repoconversions import (
    TEXT,
    UNET,
    VAE,
    change_json,
    change_weights,
    convert_repo,
)
from tests.support.models.tinyrepo import copy_repo, pipeline, replace, save_repo

ROWS = (
    Row("huggingface", "SD 1.x", "diffusers repo", "save_pretrained", "StableDiffusionPipeline"),
    Row(
        "huggingface", "SDXL base", "diffusers repo", "save_pretrained", "StableDiffusionXLPipeline"
    ),
)


@pytest.mark.parametrize(
    ("row", "architecture", "make"),
    [
        pytest.param(ROWS[0], "sd15", tiny_sd15, id=str(ROWS[0])),
        pytest.param(ROWS[1], "sdxl", tiny_sdxl, id=str(ROWS[1]), marks=pytest.mark.slow),
    ],
)
def test_repo_and_checkpoint_of_one_model_give_the_same_weights(tmp_path, row, architecture, make):
    """Weights, the result's fields and model_index.json are equal, except for add_watermarker."""
    repo = save_repo(tmp_path / "repo", architecture, torch.float16, variant="fp16")
    checkpoint = save_safetensors(tmp_path / "model.safetensors", make(torch.float16))
    out, converted = convert_repo(repo, revision="fp16")
    assert converted.pipeline_class == row.opens_with
    expected = convert_file(checkpoint, tmp_path / "expected")
    names = {name for name in expected.files if name.endswith(".safetensors")}
    assert {name: converted.files[name] for name in names} == {
        name: expected.files[name] for name in names
    }
    assert set(converted.files) == set(expected.files)
    for field in ("base_model", "pipeline_class", "precision", "prediction_type"):
        assert getattr(converted, field) == getattr(expected, field)
    ours = json.loads((out / "model_index.json").read_text())
    theirs = json.loads((tmp_path / "expected" / "model_index.json").read_text())
    assert ours == {name: theirs[name] for name in theirs if name != "add_watermarker"}


def test_unchanged_files_are_linked(repo):
    """Files that need no change are hard links to the repo's; changed files are new files."""
    out, converted = convert_repo(repo)
    for name in (UNET, VAE):
        assert (out / name).samefile(repo / name)
    assert not (out / TEXT).samefile(repo / TEXT)
    assert converted.precision == "fp32"
    for name, digest in converted.files.items():
        assert (out / name).stat().st_size == digest.size
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(
        converted.files
    )


def test_files_are_copied_if_the_volume_refuses_links(repo, monkeypatch):
    """All published weights that the conversion does not change are copies of the repo's."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    out, _ = convert_repo(repo)
    for name in (UNET, VAE):
        assert not (out / name).samefile(repo / name)
        assert (out / name).read_bytes() == (repo / name).read_bytes()


def test_pickled_weights_give_the_same_files_as_safetensors(repo, sd15, tmp_path):
    """Files and digests are the same for pickled weights and for safetensors."""
    for path, name in ((UNET, "diffusion_pytorch_model.bin"), (TEXT, "pytorch_model.bin")):
        tensors = load_file(repo / path)
        (repo / path).unlink()
        torch.save(tensors, (repo / path).with_name(name))
    _, pickled = convert_repo(repo)
    (tmp_path / "other").mkdir()
    _, safe = convert_repo(copy_repo(sd15, tmp_path / "other" / "repo"))
    assert pickled.files == safe.files


@pytest.mark.parametrize(
    ("revision", "dtype"),
    [
        ("fp16", torch.float16),
        pytest.param("bf16", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_requested_precision_is_published(repo, revision, dtype):
    """Each weight is cast as torch casts it, and the text encoder's config names the precision."""
    out, converted = convert_repo(repo, revision=revision)
    assert converted.precision == revision
    for name in (UNET, VAE):
        ours, theirs = load_file(out / name), load_file(repo / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].to(dtype)) for key in ours)
    config = json.loads((out / "text_encoder/config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert "dtype" not in config


def test_shards_are_joined(repo):
    """The shards of a small component become one file, as diffusers would save it."""
    tensors = load_file(repo / UNET)
    names = sorted(tensors)
    (repo / UNET).unlink()
    for number, part in ((1, names[::2]), (2, names[1::2])):
        path = repo / f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path, {"format": "pt"})
    replace(repo / "unet/diffusion_pytorch_model.safetensors.index.json", "{}")
    out, _ = convert_repo(repo)
    ours = load_file(out / UNET)
    assert all(torch.equal(ours[name], tensors[name]) for name in names)
    assert len(ours) == len(names)


def test_folder_opens_and_renders_like_the_repo(repo):
    """Diffusers opens the folder offline with the same weights and renders the same image."""
    from diffusers import StableDiffusionPipeline

    out, _ = convert_repo(repo)
    opened = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    original = pipeline("sd15")
    for name in ("unet", "vae", "text_encoder"):
        ours = getattr(opened, name).state_dict()
        theirs = getattr(original, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(identical(ours[key], theirs[key]) for key in ours)
    images = []
    for pipe in (opened, original):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(
            pipe(
                "a cat",
                num_inference_steps=2,
                height=64,
                width=64,
                generator=generator,
                output_type="np",
            ).images
        )
    assert images[0].std() > 0.01
    assert_same_image(*images)


def test_old_tensor_names_become_the_current_ones(repo):
    """Old names of a VAE's attention are replaced by the current ones.

    Tensors that the class does not have are dropped.
    """
    new = load_file(repo / VAE)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for old, current in {
            "query": "to_q",
            "key": "to_k",
            "value": "to_v",
            "proj_attn": "to_out.0",
        }.items():
            for name in [name for name in tensors if f".{current}." in name]:
                tensors[name.replace(f".{current}.", f".{old}.")] = tensors.pop(name)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
        tensors["text_projection.weight"] = torch.zeros(2, 2)
        tensors["logit_scale"] = torch.zeros(1)

    change_weights(repo / VAE, rename)
    change_weights(repo / TEXT, add)
    out, _ = convert_repo(repo)
    assert load_file(out / VAE).keys() == new.keys()
    text = load_file(out / TEXT)
    assert all(name.startswith("text_model.") for name in text)
    assert "text_model.embeddings.position_ids" not in text


def test_clip_tokenizer_gets_its_vocabulary_files_back(repo):
    """vocab.json and merges.txt are restored from the tokenizer.json that transformers saves."""
    from transformers import CLIPTokenizer

    folder = repo / "tokenizer"
    vocabulary = {name: vocabulary_file(name) for name in ("vocab.json", "merges.txt")}
    for name, content in vocabulary.items():
        replace(folder / name, content)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = CLIPTokenizer.from_pretrained(folder, pad_token="!")
    prompts = ["a photograph of an astronaut riding a horse", "Ünïcödé, 12 cats!"]
    ids = tokenizer(prompts).input_ids
    for name in vocabulary:
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    out, _ = convert_repo(repo)
    for name, content in vocabulary.items():
        assert (out / "tokenizer" / name).read_bytes() == content
    restored = CLIPTokenizer.from_pretrained(out / "tokenizer")
    assert restored(prompts).input_ids == ids
    assert restored.pad_token == "!"
    assert restored.model_max_length == 77


def test_token_of_textual_inversion_is_published(repo):
    """The text encoder has a row for the token, and the opened pipeline's tokenizer knows it."""
    from diffusers import StableDiffusionPipeline

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("token_embedding.weight"))
        tensors[name] = torch.cat([tensors[name], torch.ones(1, tensors[name].shape[1])])

    change_weights(repo / TEXT, grow)
    change_json(repo / "text_encoder/config.json", lambda it: it.update(vocab_size=49409))
    replace(repo / "tokenizer/added_tokens.json", json.dumps({"<my-cat>": 49408}))
    out, _ = convert_repo(repo)
    opened = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert opened.tokenizer("a <my-cat>").input_ids[-2] == 49408
    assert opened.text_encoder.get_input_embeddings().weight[49408].eq(1).all()


def test_token_without_a_row_in_the_text_encoder_is_refused(repo):
    """The message names the token and its id."""
    replace(repo / "tokenizer/added_tokens.json", json.dumps({"<my-cat>": 49408}))
    with pytest.raises(LoaderError) as caught:
        convert_repo(repo)
    assert caught.value.message == (
        "tokenizer: the token <my-cat> has the id 49408; its text encoder has 49408 tokens, with"
        " ids from 0 to 49407"
    )


def test_configs_hold_only_data(repo):
    """Keys that make transformers run code and keys that hold local paths are left out."""

    def poison(config: dict[str, Any]) -> None:
        config["_name_or_path"] = "/home/somebody"
        config["_attn_implementation"] = "evil/kernels"
        config["attn_implementation"] = "evil/kernels"

    for name in ("unet/config.json", "text_encoder/config.json"):
        change_json(repo / name, poison)
    change_json(repo / "tokenizer/tokenizer_config.json", lambda it: it.update(chat_template="{%"))
    replace(repo / "unet/evil.py", "raise SystemExit")
    replace(repo / "unet/diffusion_pytorch_model.msgpack", "x")
    out, converted = convert_repo(repo)
    text = "".join(path.read_text() for path in out.rglob("*.json"))
    for word in ("somebody", "evil", "chat_template"):
        assert word not in text
    assert all(name.endswith((".json", ".txt", ".safetensors")) for name in converted.files)


def test_spec_overrides_the_config(repo):
    """spec.predictionType and spec.upcastAttention replace the values in the repo's configs."""
    out, converted = convert_repo(repo, prediction_type="v_prediction", upcast_attention=True)
    assert converted.prediction_type == "v_prediction"
    scheduler = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["_class_name"] == "PNDMScheduler"
    assert json.loads((out / "unet/config.json").read_text())["upcast_attention"] is True
