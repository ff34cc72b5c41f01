"""The examples of docs/serving.md are valid, and the server that they run makes images."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from PIL import Image

from devkit.fakehub import FakeHub
from devkit.ldm_layouts import sd15_shapes
from devkit.tiny import SMALLEST_SD15, write_checkpoint
from sd_api.names import artifact_path
from tests.support.charts.pod_security import violations
from tests.support.loader.loadercli import Containers, artifact_of, link_to, load_request
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text()
FOLDER = ROOT / "examples" / "serving"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
Json = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A volume and the url of the model that is loaded onto it."""

    containers: Containers
    url: str

    def load(self, reload: str | None = None) -> Path:
        """Load the model, or load it again; return its link."""
        request = load_request(self.url, reload=reload)
        artifact_of(self.containers.load(request))
        return self.containers.store / artifact_path(request.model_id)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub and file server on loopback."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def published(hub: FakeHub, tmp_path: Path) -> Published:
    """A volume, and a tiny model that the test loads onto it."""
    checkpoint = tmp_path / "tiny.safetensors"
    write_checkpoint(checkpoint, sd15_shapes(SMALLEST_SD15))
    containers = Containers.reaching(hub, tmp_path)
    return Published(containers, link_to(hub, checkpoint))


def objects(path: Path) -> list[Json]:
    """Return the objects of a manifest."""
    return list(yaml.safe_load_all(path.read_text()))


def pod_of(item: Json) -> Json:
    """Return the Pod's spec of a Deployment or an InferenceService."""
    spec = item["spec"]
    if item["kind"] == "Deployment":
        return spec["template"]["spec"]
    return {key: value for key, value in spec["predictor"].items() if key != "minReplicas"}


def as_typed(item: Json, kind: str) -> Json:
    """Return the fields that the API's type has; raise ValueError if a required one is missing."""
    sanitized = client.ApiClient().sanitize_for_serialization(getattr(client, kind).from_dict(item))
    return dict(sanitized)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_object_has_the_fields_of_its_kind(path: Path) -> None:
    """The predictor of an InferenceService also has the fields of a Pod."""
    for item in objects(path):
        if item["kind"] == "InferenceService":
            assert as_typed(pod_of(item), "V1PodSpec") == pod_of(item)
        else:
            assert as_typed(item, f"V1{item['kind']}") == item


def test_an_invalid_object_is_noticed() -> None:
    """The check above sees a field that the type does not have, and one that is missing."""
    unknown = {"containers": [{"name": "server", "mounts": []}]}

    assert as_typed(unknown, "V1PodSpec") == {"containers": [{"name": "server"}]}
    with pytest.raises(ValueError, match="name"):
        as_typed({"containers": [{"image": "server"}]}, "V1PodSpec")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_server_mounts_the_models_read_only(path: Path) -> None:
    """A server cannot change what the loader published."""
    [pod] = [pod_of(item) for item in objects(path) if item["kind"] != "Service"]
    claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume["persistentVolumeClaim"]["readOnly"] for volume in claims] == [True]
    [container] = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"]["readOnly"] is True


def test_the_deployment_is_admitted_by_the_restricted_standard() -> None:
    """The server runs under the same Pod Security Standard as the operator."""
    [deployment] = [
        item for item in objects(FOLDER / "diffusers.yaml") if item["kind"] == "Deployment"
    ]
    assert violations(pod_of(deployment)) == []


def test_the_page_names_every_example() -> None:
    """Users cannot find an example that the page does not name."""
    named = set(re.findall(r"examples/serving/([\w.-]+\w)", PAGE))
    assert named == {path.name for path in FOLDER.iterdir() if path.is_file()}


def get(url: str) -> tuple[int, Json]:
    """Send a GET request; return the status and the body."""
    return _answer(urllib.request.Request(url))


def post(url: str, body: Json) -> tuple[int, Json]:
    """Send a JSON request; return the status and the body."""
    return _answer(urllib.request.Request(url, json.dumps(body).encode(), method="POST"))


def _answer(request: urllib.request.Request) -> tuple[int, Json]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def serving(link: Path, tmp_path: Path) -> Iterator[str]:
    """Run the server for a model; yield its address once the model is open."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / "server.py"), str(link), "--port", "0"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield f"http://127.0.0.1:{line.rsplit(maxsplit=1)[1]}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_server_makes_images_and_asks_for_a_restart_after_a_reload(
    published: Published, tmp_path: Path
) -> None:
    """A seed gives the same image again. After a reload, only the liveness probe fails."""
    link = published.load()
    ask = {"prompt": "a lighthouse", "size": "64x64", "num_inference_steps": 2, "seed": 7}

    with serving(link, tmp_path) as address:
        assert get(f"{address}/readyz") == (200, {"folder": str(link.resolve())})
        status, first = post(f"{address}/v1/images/generations", ask)
        assert status == 200, first
        _, again = post(f"{address}/v1/images/generations", ask)
        assert first["data"] == again["data"]
        image = Image.open(io.BytesIO(base64.b64decode(first["data"][0]["b64_json"])))
        assert (image.format, image.size) == ("PNG", (64, 64))
        for wrong, cause in WRONG.items():
            assert post(f"{address}/v1/images/generations", json.loads(wrong)) == (
                400,
                {"error": cause},
            )

        assert get(f"{address}/livez")[0] == 200
        published.load(reload="again")
        assert get(f"{address}/livez")[0] == 503
        assert post(f"{address}/v1/images/generations", ask)[1]["data"] == first["data"]


WRONG = {
    "{}": "prompt: must be a text",
    '{"prompt": "a", "n": 1000}': "n: must be a whole number from 1 to 4",
    '{"prompt": "a", "size": "9999x9999"}': (
        "size: must be WIDTHxHEIGHT, multiples of 8 from 64 to 2048"
    ),
}
"""Requests that the server refuses, with the cause."""
