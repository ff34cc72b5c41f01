"""Tests that build the images with buildah and run them as a kubelet would.

The environment variables SD_TEST_BASE_IMAGE and SD_TEST_BUILD_IMAGE name local images; they are
passed as the build arguments BASE_IMAGE and BUILD_IMAGE (docs/images.md tells how to make the
images with debootstrap). SD_TEST_IMAGE_ARGS holds further arguments of `buildah build`, such as a
pip.conf as a secret, or volumes with packages.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from sd_api.wire import LoadResult
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import manifests
from tests.support.charts import imagerun
from tests.support.charts.imagerun import Image
from tests.support.gateway.gatewayrun import call, write_keys
from tests.support.operator.operated import Operated
from tests.support.paths import ROOT
from tests.support.processes import free_ports
from tests.support.rules.observed import claim, model

BASE = os.environ.get("SD_TEST_BASE_IMAGE", "")
BUILD = os.environ.get("SD_TEST_BUILD_IMAGE", BASE)
ARGUMENTS = shlex.split(os.environ.get("SD_TEST_IMAGE_ARGS", ""))
MB = 10**6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BASE, reason="SD_TEST_BASE_IMAGE names no image to build upon"),
    pytest.mark.skipif(imagerun.missing() is not None, reason=str(imagerun.missing())),
]


def built(dockerfile: str, tag: str, *options: str) -> Iterator[Image]:
    """Build an image from the working tree and mount it; remove it afterwards."""
    arguments = [f"--build-arg=BASE_IMAGE={BASE}", f"--build-arg=BUILD_IMAGE={BUILD}", *ARGUMENTS]
    imagerun.buildah("build", "--file", ROOT / dockerfile, "--tag", tag, *arguments, *options, ROOT)
    try:
        with imagerun.mounted(tag) as image:
            yield image
    finally:
        imagerun.buildah("rmi", tag)


@pytest.fixture(scope="module")
def slim() -> Iterator[Image]:
    """The loader image without torch."""
    yield from built("loader-image/Dockerfile", "localhost/sd-test-slim:1", "--target=slim")


@pytest.fixture(scope="module")
def operator() -> Iterator[Image]:
    """The operator's image."""
    yield from built("operator/Dockerfile", "localhost/sd-test-operator:1")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume whose owner and mode are those that fsGroup sets."""
    folder = tmp_path / "volume"
    folder.mkdir()
    os.chown(folder, 0, manifests.USER_ID)
    folder.chmod(0o2775)
    return folder


def job(url: str, hub: FakeHub, **spec: Any) -> dict[str, Any]:
    """Return the Pod of the Job that the operator creates for a load."""
    settings = Settings(
        loader=LoaderSettings(gpu_count=0),
        allowed_hosts=frozenset({hub.host}),
        hub_endpoint=hub.url,
    )
    plan = manifests.plan_load(model(url=url, **spec), settings, claim(), 0)
    pod: dict[str, Any] = manifests.build(plan, settings)["spec"]["template"]["spec"]
    return pod


def test_the_loader_publishes_a_model(slim: Image, volume: Path, tmp_path: Path) -> None:
    """The containers of a Job fetch and convert a tiny model, and its files have the Job's uid."""
    checkpoint = tmp_path / "tiny.safetensors"
    write_checkpoint(checkpoint)
    with FakeHub() as hub:
        url = hub.serve_file("/tiny.safetensors", checkpoint)
        pod = job(url, hub, revision="bf16", verify={"weights": True})
        results = []
        for container in [*pod["initContainers"], *pod["containers"]]:
            mounts = {"models": volume, "tmp": imagerun.TMPFS}
            done, message = imagerun.run_container(slim, container, mounts, tmp_path)
            assert done.returncode == 0, done.stderr
            results.append(LoadResult.model_validate_json(message))
    assert [result.outcome for result in results] == ["fetched", "loaded"]
    published = volume / "sketch"
    index = json.loads((published / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {path.stat().st_uid for path in published.rglob("*")} == {manifests.USER_ID}


def test_only_the_mounts_can_be_written(slim: Image, tmp_path: Path) -> None:
    """The process has no capability and cannot get any."""
    script = (
        "touch /opt/sd/x /usr/x /x /etc/x; touch /tmp/x && grep -E 'Cap|NoNew' /proc/self/status"
    )
    mounts = {"/tmp": imagerun.TMPFS}
    done = slim.run(["sh", "-c", script], mounts, folder=tmp_path)
    assert done.stderr.count("Read-only file system") == 4
    status = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert status.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in status.values()} == {0}


def test_the_loader_starts_under_any_uid(slim: Image, tmp_path: Path) -> None:
    """The loader starts under a uid without a user name, as OpenShift gives to each namespace."""
    other = Image(slim.root, {**slim.config, "User": "1000650000"})
    done = other.run(["sd-loader", "--version"], {"/tmp": imagerun.TMPFS}, folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("which", "megabytes"),
    [pytest.param("slim", 145, id="loader-slim"), pytest.param("operator", 150, id="operator")],
)
def test_image_is_small(request: pytest.FixtureRequest, which: str, megabytes: int) -> None:
    """The limit counts the files that the image adds to its base image."""
    image: Image = request.getfixturevalue(which)
    files = [path for path in image.root.joinpath("opt/sd").rglob("*") if not path.is_symlink()]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= megabytes * MB


@pytest.mark.parametrize("which", ["slim", "operator"])
def test_image_has_only_what_it_runs(request: pytest.FixtureRequest, which: str) -> None:
    """An image has no pip, compiler, package of another image, or replaceable bytecode."""
    image: Image = request.getfixturevalue(which)
    environment = image.root / "opt" / "sd"
    (packages,) = environment.glob("lib/python3*/site-packages")
    present = {path.name for path in packages.iterdir()}
    other = {"slim": "sd_operator", "operator": "sd_loader"}[which]
    assert not present & {"pip", "setuptools", "hatchling", "torch", "pytest", other}
    assert not {path.name for path in (environment / "bin").iterdir()} & {"pip", "cc", "strip"}
    assert not [path for path in environment.rglob("*") if not path.is_symlink() and _loose(path)]
    own = {"slim": "sd_loader", "operator": "sd_operator"}[which]
    sources = {path.stem for path in (packages / own).glob("*.py")}
    assert sources == {path.name.split(".")[0] for path in (packages / own).glob("__pycache__/*")}


def _loose(path: Path) -> bool:
    mode = path.stat()
    return bool(mode.st_mode & 0o6022) or mode.st_uid != 0


@pytest.mark.parametrize(
    ("which", "module"),
    [
        ("slim", "sd_loader.stages"),
        ("operator", "sd_operator.runtime.run"),
        ("operator", "sd_operator.gateway.app"),
    ],
)
def test_every_imported_module_has_bytecode(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, module: str
) -> None:
    """No import has to compile a module: in a read-only image, each start would be 1 s slower."""
    script = (
        f"import sys, {module}, os\n"
        "print([one.__file__ for one in list(sys.modules.values())"
        " if (getattr(one, '__file__', None) or '').startswith('/opt/sd/')"
        " and one.__file__.endswith('.py') and not os.path.exists(one.__cached__)])"
    )
    image: Image = request.getfixturevalue(which)
    done = image.run(["python3", "-c", script], {"/tmp": imagerun.TMPFS}, folder=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_operators_default_command_names_a_missing_setting(
    operator: Image, tmp_path: Path
) -> None:
    """Outside a cluster, the default command ends with an error about the missing setting."""
    done = operator.run(operator.command, {"/tmp": imagerun.TMPFS}, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sd-operator: KUBECONFIG must name a file")


def for_the_image(file: Path, copy: Path) -> Path:
    """Return a copy that only the image's user can read, as in a Secret volume."""
    copy.write_bytes(file.read_bytes())
    os.chown(copy, manifests.USER_ID, manifests.USER_ID)
    copy.chmod(0o400)
    return copy


def test_the_operators_image_loads_a_model(
    operator: Image, operated: Operated, tmp_path: Path
) -> None:
    """The operator in its image loads a model, with the image's uid and without capabilities."""
    kubeconfig = for_the_image(
        operated.cluster.backend.operator_kubeconfig, tmp_path / "kubeconfig"
    )
    env = {
        "KUBECONFIG": "/etc/sd-operator/kubeconfig",
        "SD_OPERATOR_NAMESPACES": operated.cluster.namespace,
        "SD_OPERATOR_ALLOWED_HOSTS": operated.hub.host,
        "SD_OPERATOR_GPU_COUNT": "0",
        "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
        "SD_OPERATOR_METRICS_PORT": "0",
        "SD_OPERATOR_PROBES_PORT": "0",
        "SD_OPERATOR_POLL_SECONDS": "0.5",
    }
    mounts = {"/tmp": imagerun.TMPFS, env["KUBECONFIG"]: kubeconfig}
    with operator.started(operator.command, mounts, env, folder=tmp_path) as process:
        operated.cluster.model("sketch", url=operated.link())
        operated.ready("sketch")
        code, output = process.stop()
    assert code == 0, output


def test_the_gateways_image_loads_a_model(
    operator: Image, operated: Operated, tmp_path: Path
) -> None:
    """A load by the gateway in the operator's image succeeds; an operator does the load."""
    operated.start()
    (key,) = write_keys(tmp_path / "lines", operated.cluster.namespace)
    (port,) = free_ports(1)
    env = {
        "KUBECONFIG": "/etc/sd-gateway/kubeconfig",
        "SD_GATEWAY_KEYS_FILE": "/etc/sd-gateway/keys",
        "SD_GATEWAY_BIND_ADDRESS": "127.0.0.1",
        "SD_GATEWAY_PORT": str(port),
        "SD_GATEWAY_METRICS_PORT": "0",
    }
    mounts = {
        "/tmp": imagerun.TMPFS,
        env["KUBECONFIG"]: for_the_image(operated.cluster.kubeconfig, tmp_path / "kubeconfig"),
        env["SD_GATEWAY_KEYS_FILE"]: for_the_image(tmp_path / "lines", tmp_path / "keys"),
    }
    said = {"model_id": "sketch", "url": operated.link(), "model_type": "custom_ckpt"}
    with operator.started(["sd-gateway", "run"], mounts, env, folder=tmp_path) as process:
        address = f"http://127.0.0.1:{port}"
        assert call(address, key, "load_model", **said)["message"] == "model load started"
        operated.ready("sketch")
        assert call(address, key, "verify_model", model_id="sketch")["status"] == "success"
        code, output = process.stop()
    assert code == 0, output
