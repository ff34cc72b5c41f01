"""`sd-loader inspect LINK` shows what a link or repo leads to, without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import FakeHub, sha256
from sd_api.reasons import ExitCode, Reason
from tests.support.loader.hubfetches import REPO, write_repo
from tests.support.loader.loadercli import Containers, Ended, failed, safetensors_bytes
from tests.support.models.lorashapes import LORA

LORA_BYTES = safetensors_bytes(LORA, {"modelspec.title": "Fish", "modelspec.license": "MIT"})
PAGE = "https://civitai.com/models/7/tiny-model"
TOKEN = "c1vitai-s3cret-token"


@pytest.fixture
def civitai(containers: Containers) -> Iterator[FakeCivitai]:
    """A Civitai that the containers may reach."""
    with FakeCivitai() as server:
        hosts = f"{containers.env['SD_LOADER_ALLOWED_HOSTS']},{server.cdn_host}"
        containers.env |= {
            "SD_LOADER_CIVITAI_ENDPOINT": server.url,
            "SD_LOADER_ALLOWED_HOSTS": hosts,
        }
        yield server


def inspected(containers: Containers, link: str, **env: str) -> dict[str, Any]:
    """Inspect a link, which must succeed, and return the printed JSON object."""
    ended = containers.run("inspect", "--json", link, **env)
    assert ended.code == ExitCode.DONE, ended.stderr
    return parsed(ended)


def parsed(ended: Ended) -> dict[str, Any]:
    """Return the JSON object that the command printed."""
    shown: dict[str, Any] = json.loads(ended.stdout)
    return shown


@pytest.mark.parametrize(
    "link",
    [PAGE, pytest.param("urn:air:sd1:checkpoint:civitai:7@71", marks=pytest.mark.slow)],
)
def test_a_page_of_civitai_shows_card_and_file(
    containers: Containers, civitai: FakeCivitai, checkpoint: Path, link: str
) -> None:
    """Only the header of a large file is downloaded; it shows the type and the base model."""
    version = Version(71, [File(700, checkpoint)], trained_words=("fishy",), base_model="Pony")
    civitai.add(Model(7, "LORA", [version]))
    shown = inspected(containers, link)
    assert (shown["modelType"], shown["baseModel"]) == ("custom_ckpt", "sd-1")
    assert (shown["version"], shown["file"]) == ("7@71+700", "tiny.safetensors")
    assert (shown["sizeBytes"], shown["sha256"]) == (checkpoint.stat().st_size, sha256(checkpoint))
    card = shown["card"]
    assert (card["title"], card["basedOn"]) == ("Tiny model (v1.0)", "Pony")
    assert card["license"].startswith("commercial use: ")
    assert card["triggerWords"] == ["fishy"]
    assert civitai.bytes_served < checkpoint.stat().st_size / 2
    assert not list(containers.store.iterdir())


def test_a_file_that_needs_a_login_shows_what_the_api_says(
    containers: Containers, civitai: FakeCivitai, checkpoint: Path
) -> None:
    """The command prints what the API says, then fails as a load would.

    With a token, it also reads the file. The token is not shown, even if the server quotes it.
    """
    file = File(700, checkpoint, name=f"{TOKEN}.safetensors")
    version = Version(71, [file], trained_words=(f"x {TOKEN}",), needs_login=True)
    civitai.add(Model(7, "Checkpoint", [version]))
    civitai.token = TOKEN
    ended = containers.run("inspect", "--json", PAGE)
    failed(ended, Reason.AUTHENTICATION_REQUIRED, "requires a token")
    shown = parsed(ended)
    assert (shown["modelType"], shown["card"]["title"]) == ("custom_ckpt", "Tiny model (v1.0)")
    assert "baseModel" not in shown
    shown = inspected(containers, PAGE, CIVITAI_TOKEN=TOKEN)
    assert shown["baseModel"] == "sd-1"
    assert (shown["card"]["triggerWords"], shown["file"]) == (["x …"], "….safetensors")


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({}, id="ranges"),
        pytest.param({"ignore_range": True}, id="no ranges", marks=pytest.mark.slow),
    ],
)
def test_a_plain_link_shows_the_file(
    containers: Containers, hub: FakeHub, faults: dict[str, Any]
) -> None:
    """A small file is downloaded as a whole."""
    link = hub.serve_file("/fish.safetensors", LORA_BYTES, **faults)
    shown = inspected(containers, link)
    assert (shown["modelType"], shown["baseModel"]) == ("lora", "sd-1")
    assert (shown["card"]["title"], shown["card"]["license"]) == ("Fish", "MIT")
    assert shown["sizeBytes"] == len(LORA_BYTES)


def test_a_repo_shows_its_pipeline(containers: Containers, hub: FakeHub, tmp_path: Path) -> None:
    """Only configs are downloaded. The size is that of the files which a load downloads."""
    repo = write_repo(tmp_path / "repo")
    (repo / "unet/config.json").write_text('{"cross_attention_dim": 1024}')
    hub.add_repo(REPO, repo, card_data={"license": "mit", "base_model": "org/base"})
    shown = inspected(containers, f"https://huggingface.co/{REPO}/tree/main")
    assert (shown["modelType"], shown["baseModel"]) == ("huggingface", "sd-2")
    assert shown["pipelineClass"] == "StableDiffusionPipeline"
    assert shown["commit"] == hub.repos[REPO].commit()
    assert shown["sizeBytes"] > 280_000
    assert (shown["card"]["license"], shown["card"]["basedOn"]) == ("mit", "org/base")
    assert hub.bytes_served < 2_000


@pytest.mark.parametrize(
    ("config", "model_type", "base_model"),
    [
        pytest.param(
            {"_class_name": "ControlNetModel", "cross_attention_dim": 768},
            "controlnet",
            "sd-1",
            id="a ControlNet",
        ),
        pytest.param(
            {"_class_name": "AutoencoderKLWan"}, "vae", "wan", id="a VAE", marks=pytest.mark.slow
        ),
    ],
)
def test_a_repo_of_one_component_shows_its_class(
    containers: Containers,
    hub: FakeHub,
    tmp_path: Path,
    config: dict[str, Any],
    model_type: str,
    base_model: str,
) -> None:
    """The repo's config.json names the class, which shows the type."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(bytes(10_000))
    hub.add_repo(REPO, tmp_path)
    shown = inspected(containers, REPO)
    assert (shown["modelType"], shown["baseModel"]) == (model_type, base_model)
    assert shown["pipelineClass"] == config["_class_name"]


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(REPO, id="the only file"),
        pytest.param(
            f"https://huggingface.co/{REPO}/blob/main/fish.safetensors",
            id="named",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_file_of_a_repo_shows_what_it_is(
    containers: Containers, hub: FakeHub, tmp_path: Path, link: str
) -> None:
    """The repo's card takes precedence over the file's metadata."""
    (tmp_path / "fish.safetensors").write_bytes(LORA_BYTES)
    hub.add_repo(REPO, tmp_path, card_data={"instance_prompt": "fishy"})
    shown = inspected(containers, link)
    assert (shown["modelType"], shown["baseModel"]) == ("lora", "sd-1")
    assert (shown["card"]["title"], shown["card"]["triggerWords"]) == ("model", ["fishy"])
    assert shown["sha256"] == sha256(tmp_path / "fish.safetensors")


@pytest.mark.parametrize(
    ("link", "reason", "message"),
    [
        pytest.param("s3://bucket/model", Reason.INVALID_SPEC, "MODEL is in", id="an object store"),
        pytest.param(PAGE, Reason.SOURCE_NOT_FOUND, "7", id="no such model"),
        pytest.param("org/nothing", Reason.SOURCE_NOT_FOUND, "org/nothing", id="no such repo"),
        pytest.param(
            "http://127.0.0.1:1/x", Reason.ADDRESS_REFUSED, "127.0.0.1", id="a private address"
        ),
    ],
)
@pytest.mark.usefixtures("civitai")
def test_a_link_that_leads_nowhere_is_refused_as_by_a_load(
    containers: Containers, link: str, reason: Reason, message: str
) -> None:
    """Message and remedy are those of a load."""
    ended = containers.run("inspect", link)
    failed(ended, reason, message)
    assert ended.stdout == ""


def test_the_name_of_a_missing_file_is_not_taken_for_a_link(containers: Containers) -> None:
    """The remedy is the one for files."""
    ended = containers.run("inspect", "none.safetensors")
    remedy = "Give the path of a file that exists and that you may read."
    failed(ended, Reason.SOURCE_NOT_FOUND, "none.safetensors", remedy)


def test_lines_of_text_name_each_field(containers: Containers, hub: FakeHub) -> None:
    """A link has the same field names as a file or a published model."""
    link = hub.serve_file("/fish.safetensors", LORA_BYTES)
    ended = containers.run("inspect", link)
    for line in ("model type: lora", "base model: sd-1", "title:      Fish", "size:       17 kB"):
        assert line in ended.stdout, ended.stdout
