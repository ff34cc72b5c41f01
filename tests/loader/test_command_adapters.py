"""Loading LoRAs and embeddings by command line, from a file, a link and a repo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from tests.support.loader.loadercli import Containers, failed, load_request
from tests.support.models.checkpoints import save_safetensors

BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {
    f"{BLOCK}.lora_down.weight": torch.ones(4, 768, dtype=torch.float16),
    f"{BLOCK}.lora_up.weight": torch.ones(640, 4, dtype=torch.float16),
    f"{BLOCK}.alpha": torch.tensor(2.0, dtype=torch.float16),
}
EMBEDDING = {"string_to_param": {"*": torch.ones(2, 768)}, "name": "charturner"}


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    """Containers with an empty volume, and no Hub to call."""
    with FakeHub() as hub:
        return Containers.reaching(hub, tmp_path)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA in kohya's format."""
    return save_safetensors(tmp_path / "fish.safetensors", LORA, {"ss_network_dim": "4"})


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    """An embedding in A1111's format."""
    path = tmp_path / "charturner.pt"
    torch.save(EMBEDDING, path)
    return path


def load(containers: Containers, path: Path, model_type: str) -> Path:
    """Load a file by hand and return the published folder."""
    arguments = ("--model-type", model_type, "--url", path, "--model-id", "fish")
    ended = containers.run("load", *arguments, "--store", containers.store)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.artifact is not None
    assert ended.result.artifact.base_model == "sd-1"
    return containers.store / "fish"


def test_lora_is_published(containers: Containers, lora: Path) -> None:
    """The folder is named after the model id, and the file has the name that diffusers expects."""
    folder = load(containers, lora, "lora")
    published = load_file(folder / "pytorch_lora_weights.safetensors")
    assert published.keys() == LORA.keys()


def test_embedding_is_published_with_its_token(containers: Containers, embedding: Path) -> None:
    """The folder holds the vectors and the token."""
    folder = load(containers, embedding, "embeddings")
    assert (folder / "token_identifier.txt").read_text() == "charturner"
    assert load_file(folder / "learned_embeds.safetensors").keys() == {"charturner"}


@pytest.mark.parametrize(("name", "model_type"), [("lora", "lora"), ("embedding", "embeddings")])
def test_adapter_loads_from_a_link(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, model_type: str
) -> None:
    """The operator's request loads the link in a fetch and a convert container."""
    path: Path = request.getfixturevalue(name)
    with FakeHub() as hub:
        containers = Containers.reaching(hub, tmp_path)
        link = hub.serve_file("/model", path.read_bytes())
        ended = containers.load(load_request(link, model_type=model_type))
    assert ended.code == ExitCode.DONE, ended.stderr
    assert list((containers.store / "model").glob("*.safetensors"))


def test_repo_with_one_lora_file_loads_that_file(tmp_path: Path) -> None:
    """The file has the name that diffusers' training scripts use."""
    (tmp_path / "repo").mkdir()
    save_safetensors(tmp_path / "repo" / "pytorch_lora_weights.safetensors", LORA)
    (tmp_path / "repo" / "README.md").write_text("a fish")
    with FakeHub() as hub:
        hub.add_repo("org/fish", tmp_path / "repo")
        containers = Containers.reaching(hub, tmp_path)
        ended = containers.load(load_request("org/fish", model_type="lora"))
    assert ended.code == ExitCode.DONE, ended.stderr
    published = load_file(containers.store / "model" / "pytorch_lora_weights.safetensors")
    assert published.keys() == LORA.keys()


def test_sdxl_embedding_in_two_files_loads_from_its_repo(tmp_path: Path) -> None:
    """Diffusers' training script for SDXL writes a file for each text encoder."""
    first, second = torch.randn(2, 768), torch.randn(2, 1280)
    (tmp_path / "repo").mkdir()
    save_safetensors(tmp_path / "repo" / "learned_embeds.safetensors", {"<cat>": first})
    save_safetensors(tmp_path / "repo" / "learned_embeds_2.safetensors", {"<cat>": second})
    with FakeHub() as hub:
        hub.add_repo("org/cat", tmp_path / "repo")
        containers = Containers.reaching(hub, tmp_path)
        ended = containers.load(load_request("org/cat", model_type="embeddings"))
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.artifact is not None
    assert ended.result.artifact.base_model == "sdxl"
    folder = containers.store / "model"
    assert (folder / "token_identifier.txt").read_text() == "<cat>"
    assert torch.equal(load_file(folder / "learned_embeds.safetensors")["<cat>"], first)
    assert torch.equal(load_file(folder / "learned_embeds_2.safetensors")["<cat>"], second)


def test_inspect_detects_the_adapter_type(
    containers: Containers, lora: Path, embedding: Path
) -> None:
    """Inspect reports the model type from the file alone."""
    found = json.loads(containers.run("inspect", lora, "--json").stdout)
    assert (found["modelType"], found["baseModel"]) == ("lora", "sd-1")
    assert "model type: embeddings" in containers.run("inspect", embedding).stdout


def test_wrong_model_type_is_refused_and_leaves_nothing(
    containers: Containers, lora: Path, embedding: Path
) -> None:
    """The message names the model type that the file needs."""
    for path, wrong, right in ((lora, "embeddings", "lora"), (embedding, "lora", "embeddings")):
        arguments = ("--model-type", wrong, "--url", path, "--model-id", "fish")
        ended = containers.run("load", *arguments, "--store", containers.store)
        failed(ended, Reason.UNSUPPORTED_FORMAT, f"it needs spec.modelType: {right}")
        assert list(containers.store.iterdir()) == []
