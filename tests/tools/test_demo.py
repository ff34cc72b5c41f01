"""Tests of the demo's models and helpers, and slow tests that run both demos to the end."""

import json
import signal
import socket
import stat
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest

from devkit.pictures import landscape
from sd_api.choices import ModelType
from sd_api.sources import CivitaiModel, HubRepo, TrainedId, read_source
from sd_loader.picture import reencoded
from tests.support.paths import ROOT
from tools.demo import gallery, sources
from tools.demo.processes import DemoError

CIVITAI_TYPES = {
    "Checkpoint": ModelType.CUSTOM_CKPT,
    "LORA": ModelType.LORA,
    "TextualInversion": ModelType.EMBEDDINGS,
    "Controlnet": ModelType.CONTROLNET,
    "VAE": ModelType.VAE,
}


def test_the_gallery_shows_every_type_of_model():
    """A repo and a trained model have a type of their own; Civitai's models have all others."""
    types = {CIVITAI_TYPES[model.type] for model in sources.ON_CIVITAI}
    assert types | {ModelType.HUGGINGFACE, ModelType.API_TRAINED} == set(ModelType)
    specs = sources.specs()
    assert {sources.SLOW_MODEL, sources.FAILED_MODEL} < set(specs)
    assert sources.TO_PASTE not in specs


def test_every_link_of_the_demo_fits_its_model():
    """The loader reads each link as one to Civitai, to a Hub repo or to a trained model."""
    kinds = {}
    for name, spec in sources.specs().items():
        model_type = ModelType(spec["modelType"]) if "modelType" in spec else None
        kinds[name] = type(read_source(spec["url"], model_type))
    assert kinds.pop("tiny-stable-diffusion") is HubRepo
    assert kinds.pop("my-dreambooth") is TrainedId
    assert set(kinds.values()) == {CivitaiModel}
    for repo in (sources.REPO_TO_PASTE, sources.GATED_REPO):
        assert isinstance(read_source(repo, None), HubRepo)
    assert isinstance(read_source(sources.civitai_link(sources.TO_PASTE), None), CivitaiModel)


def test_pictures_are_those_of_their_seed():
    """The loader can decode them, and another seed gives another picture."""
    pytest.importorskip("PIL", reason="Pillow is missing")
    picture = landscape(1, size=16)
    assert picture == landscape(1, size=16) != landscape(2, size=16)
    assert reencoded(picture).startswith(b"\xff\xd8")


def test_the_key_stays_for_later_runs(tmp_path, capsys):
    """Only the user can read the key's file. If it cannot be written, the demo prints a message."""
    path = tmp_path / "demo-key"
    first = gallery.kept_key(path)
    assert gallery.kept_key(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capsys.readouterr().out == ""
    assert gallery.kept_key(tmp_path / "missing" / "demo-key") != first
    assert "cannot be written: No such file or directory" in capsys.readouterr().out


def test_the_port_is_another_one_if_it_is_in_use():
    """The wanted port is used if it is free."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert gallery.free_port(port) not in {0, port}
    assert gallery.free_port(port) == port


def test_the_gallery_demo_waits_for_the_state_of_each_model():
    """One model must fail and one still loads. The demo does not wait for deleted models."""

    def model(name, kind, status="True"):
        return {"metadata": {"name": name}, "status": {"conditions": [with_status(kind, status)]}}

    def with_status(kind, status):
        return {"type": kind, "status": status, "reason": "Wrong", "message": "it is wrong"}

    failed, slow = sources.FAILED_MODEL, sources.SLOW_MODEL
    models = {failed: model(failed, "Stalled"), slow: model(slow, "Reconciling")}
    assert gallery.unsettled(models) == []
    loading = {"watercolor": model("watercolor", "Ready", "False")}
    assert gallery.unsettled(models | loading) == ["watercolor"]
    with pytest.raises(DemoError, match="watercolor: Wrong: it is wrong"):
        gallery.unsettled({"watercolor": model("watercolor", "Stalled")})


@pytest.mark.slow
def test_the_short_demo_ends_by_itself():
    """It exits with 0 only if it has seen every step."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step was checked" in done.stdout


@pytest.mark.slow
def test_the_gallery_opens_and_closes():
    """The models become Ready, the printed key works, and the demo exits with 0 on Ctrl-C."""
    command = [sys.executable, "-u", "-m", "tools.demo", "--keep"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        try:
            lines = []
            for line in demo.stdout:
                lines.append(line.strip())
                if line.startswith("All models are as they should be"):
                    break
            else:
                pytest.fail("\n".join(lines))
            url = next(line for line in lines if line.endswith("/gallery/"))
            key = lines[lines.index(url) + 1]
            address = url.replace("/gallery/", "/api/v1/enterprise/get_all_models")
            with urlopen(Request(address, json.dumps({"key": key}).encode())) as response:
                models = {model["model_id"] for model in json.load(response)["models"]}
            assert models == set(sources.specs()) - {sources.SLOW_MODEL, sources.FAILED_MODEL}
        finally:
            demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
