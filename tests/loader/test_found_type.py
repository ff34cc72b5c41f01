"""If a request has no model type, the file or repo decides the type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devkit.controlnet_layouts import TINY, config, controlnet_shapes
from devkit.fakehub import FakeHub
from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, vae_shapes
from devkit.tiny import write_checkpoint
from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import refuse_impossible
from sd_loader.convert.detect.kinds import UNET_PREFIX as UNET
from sd_loader.convert.detect.kinds import found_type
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.request import conversion_of
from tests.support.loader.loadercli import Containers, Ended, artifact_of, failed, load_request
from tests.support.models.lorashapes import LORA

EMBEDDING: Shapes = {"emb_params": (2, 768)}
VAE = vae_shapes(TINY_SD15)
CONTROLNET = controlnet_shapes(TINY["sd-1"])
ADAPTERS = {"lora": LORA, "embeddings": EMBEDDING, "vae": VAE, "controlnet": CONTROLNET}
PART = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
"""A tensor by which a VAE is recognised."""
ALONE = {**PART, "model.diffusion_model.out.2.weight": (4, 320, 3, 3)}
"""A cut-off checkpoint: one tensor of the VAE and one of the UNet are left."""


KINDS = [
    pytest.param(kind, marks=pytest.mark.slow if kind in ("vae", "controlnet") else ())
    for kind in ADAPTERS
]


@pytest.fixture
def repo(hub: FakeHub, tmp_path: Path) -> Path:
    """The folder of the repo org/model, which is empty."""
    folder = tmp_path / "repo"
    folder.mkdir()
    hub.add_repo("org/model", folder)
    return folder


def served(hub: FakeHub, folder: Path, shapes: Shapes) -> str:
    """Serve a file with these tensors and return its link."""
    write_checkpoint(folder / "file.safetensors", shapes)
    return hub.serve_file("/file.safetensors", folder / "file.safetensors")


@pytest.fixture
def streamed(
    containers: Containers, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The link of a LoRA that a first Pod has converted while it streamed."""
    monkeypatch.setattr("sd_loader.streaming.LEAST_BYTES", 1)
    link = served(hub, tmp_path, LORA)
    fetched = containers.fetch(load_request(link))
    assert fetched.code == 0, fetched.stderr
    return link


def type_of(ended: Ended) -> str | None:
    """Return the model type of what was published."""
    return artifact_of(ended).model_type


@pytest.mark.parametrize("model_type", KINDS)
def test_file_behind_a_link_decides(
    containers: Containers, hub: FakeHub, tmp_path: Path, model_type: str
) -> None:
    """The result is the same as if the request named the type."""
    link = served(hub, tmp_path, ADAPTERS[model_type])
    found = artifact_of(containers.load(load_request(link)))
    given = artifact_of(containers.load(load_request(link, model_type=model_type, reload="1")))
    assert found.model_type == model_type
    assert found == given.model_copy(update={"shared_bytes": found.shared_bytes})


def test_checkpoint_behind_a_link_is_found_while_it_streams(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The outline of a checkpoint shows the type before the weights are downloaded."""
    link = hub.serve_file("/tiny.safetensors", checkpoint)
    assert type_of(containers.load(load_request(link))) == "custom_ckpt"


def test_adapter_behind_a_link_is_found_while_it_streams(
    containers: Containers, streamed: str
) -> None:
    """A large LoRA or VAE is converted from its ranges, like a checkpoint."""
    assert any((containers.store / ".staging").glob("*/*/out/*.safetensors"))
    assert type_of(containers.convert(load_request(streamed))) == "lora"


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"model.diffusion_model.out.2.weight": (4, 320, 3, 3)}, "custom_ckpt"),
        ({"cond_stage_model.transformer.x": (4, 4)}, "custom_ckpt"),
        ({"conditioner.embedders.0.x": (4, 4)}, "custom_ckpt"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "controlnet"),
        ({f"{UNET}input_blocks.0.0.weight": (4, 4), "lora_unet_x.alpha": ()}, "custom_ckpt"),
        ({"lora_unet_x.lora_up.weight": (4, 4)}, "lora"),
        ({"x": (4, 4)}, "vae"),
    ],
)
def test_file_with_a_vae_and_more_is_not_a_vae(
    tmp_path: Path, others: Shapes, expected: str
) -> None:
    """If the other tensors show a model, that is the type; unknown tensors do not count.

    The first ControlNets were published in one file with their checkpoint.
    """
    write_checkpoint(tmp_path / "x.safetensors", {**PART, **others})
    with open_tensor_file(tmp_path / "x.safetensors") as file:
        assert found_type(file.tensors) == expected


@pytest.mark.parametrize("model_type", ["lora", pytest.param("vae", marks=pytest.mark.slow)])
def test_wrong_type_in_the_request_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path, model_type: str
) -> None:
    """The message names the type that the file needs."""
    ended = containers.load(
        load_request(served(hub, tmp_path, ADAPTERS[model_type]), model_type="custom_ckpt")
    )
    failed(ended, Reason.UNSUPPORTED_FORMAT, f"it needs spec.modelType: {model_type}")


def test_cut_off_checkpoint_is_refused_as_a_checkpoint(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The VAE in the file is not published as a model of type vae."""
    ended = containers.load(load_request(served(hub, tmp_path, ALONE)))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "the file is a VAE: it needs spec.modelType")


@pytest.mark.parametrize("model_type", KINDS)
def test_only_weights_file_of_a_repo_decides(
    containers: Containers, repo: Path, model_type: str
) -> None:
    """A repo without model_index.json and config.json stands for its one weights file."""
    write_checkpoint(repo / "some-name.safetensors", ADAPTERS[model_type])
    (repo / "README.md").write_text("a model")
    assert type_of(containers.load(load_request("org/model"))) == model_type


def test_link_to_a_file_of_a_repo_decides(containers: Containers, hub: FakeHub, repo: Path) -> None:
    """The other files of the repo do not matter."""
    write_checkpoint(repo / "a.safetensors", LORA)
    write_checkpoint(repo / "b.safetensors", EMBEDDING)
    url = f"{hub.url}/org/model/resolve/main/b.safetensors"
    assert type_of(containers.load(load_request(url))) == "embeddings"


def test_config_of_a_component_decides_before_its_weights(
    containers: Containers, repo: Path
) -> None:
    """Weights in diffusers' layout need the config, so the repo is loaded as a whole."""
    net = TINY["sd-1"]
    (repo / "config.json").write_text(json.dumps(config(net)))
    write_checkpoint(repo / "other.safetensors", LORA)
    ended = containers.load(load_request("org/model"))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "has no weights that the loader can read")


def test_model_index_decides_before_everything_else(containers: Containers, repo: Path) -> None:
    """A pipeline's repo often has its checkpoint and the config of a component beside it."""
    (repo / "model_index.json").write_text(json.dumps({"_class_name": "NoPipeline"}))
    (repo / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    write_checkpoint(repo / "file.safetensors", LORA)
    failed(containers.load(load_request("org/model")), Reason.UNSUPPORTED_FORMAT, "NoPipeline")


def test_several_weights_files_of_a_repo_are_named(containers: Containers, repo: Path) -> None:
    """The loader does not guess which of them the user means, whatever their types."""
    write_checkpoint(repo / "pytorch_lora_weights.safetensors", LORA)
    write_checkpoint(repo / "style.safetensors", EMBEDDING)
    failed(
        containers.load(load_request("org/model")),
        Reason.INVALID_SPEC,
        "pytorch_lora_weights.safetensors, style.safetensors",
    )


def test_sdxl_embedding_in_two_files_is_found(containers: Containers, repo: Path) -> None:
    """The two files are one model."""
    write_checkpoint(repo / "learned_embeds.safetensors", {"<cat>": (2, 768)})
    write_checkpoint(repo / "learned_embeds_2.safetensors", {"<cat>": (2, 1280)})
    artifact = artifact_of(containers.load(load_request("org/model")))
    assert (artifact.model_type, artifact.base_model) == ("embeddings", "sdxl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "ema"}, "spec.weights: ema is for checkpoints"),
        ({"vae": {"url": "org/vae"}}, "spec.vae is for whole models"),
        ({"original_config": "c.yaml"}, "spec.originalConfig is for checkpoints"),
    ],
)
def test_option_that_the_found_type_cannot_have_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    """The message is that of a spec that names the type."""
    asked = load_request("https://models.example.com/a", **fields)
    refuse_impossible(conversion_of(asked))
    with pytest.raises(LoaderError, match=message):
        refuse_impossible(conversion_of(asked, ModelType.LORA))


def test_options_of_a_found_lora_are_used(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The options of a LoRA are not refused before the type is known."""
    asked = load_request(served(hub, tmp_path, LORA), lora={"format": "peft"})
    assert type_of(containers.load(asked)) == "lora"
    assert (containers.store / "model" / "adapter_config.json").is_file()


def test_only_a_whole_model_is_rendered_by_default() -> None:
    """The request asks for an image if the model is a pipeline; only the found type shows that."""
    asked = load_request("org/model").model_copy(update={"render_if_pipeline": True})
    assert conversion_of(asked, ModelType.HUGGINGFACE).verify.render
    assert not conversion_of(asked, ModelType.VAE).verify.render
    assert not conversion_of(asked).verify.render


def test_file_by_hand_shows_its_type(containers: Containers, tmp_path: Path) -> None:
    """`sd-loader load --url FILE` needs no other option, and its summary names the type."""
    write_checkpoint(tmp_path / "style.safetensors", LORA)
    arguments = ("--url", tmp_path / "style.safetensors", "--model-id", "style")
    ended = containers.run("load", *arguments, "--store", containers.store)
    assert type_of(ended) == "lora"
    assert "loaded lora, sd-1" in ended.stderr


def test_published_version_of_another_type_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """Both requests have the same load hash, because an unknown type is planned as a checkpoint."""
    link = served(hub, tmp_path, LORA)
    assert type_of(containers.load(load_request(link))) == "lora"
    given = load_request(link, model_type="custom_ckpt")
    assert given.load_hash == load_request(link).load_hash
    failed(containers.load(given), Reason.INVALID_SPEC, "but the source is of type lora")
    assert type_of(containers.load(load_request(link))) == "lora"


def test_download_is_taken_over_from_a_request_with_the_wrong_type(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The download shows another type than the one that the first request named."""
    link = served(hub, tmp_path, LORA)
    assert containers.fetch(load_request(link, model_type="custom_ckpt")).code == 0
    assert type_of(containers.load(load_request(link))) == "lora"


def test_streamed_adapter_is_not_published_as_a_checkpoint(
    containers: Containers, streamed: str
) -> None:
    """The request got its type after the first Pod had converted the file."""
    ended = containers.load(load_request(streamed, model_type="custom_ckpt"))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "it needs spec.modelType: lora")
