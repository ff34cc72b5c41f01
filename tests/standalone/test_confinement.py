"""Tests that no manifest can run code on the machine or reach files outside its volumes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sd_api.check import CheckedVersion, CheckRequest
from sd_api.loader_env import LoaderEnv
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import manifests
from sd_operator.rules.volume_jobs import build_check, build_sweep
from sd_operator.standalone.errors import ApiError
from sd_operator.standalone.executor import LOADER, Mounts, RefusedError, environment
from sd_operator.standalone.registry import Registry
from sd_operator.standalone.resources import NAMESPACES, PODS
from tests.support.kube.cluster import Cluster
from tests.support.kube.rawapi import RawApi
from tests.support.kube.stubjobs import MOUNTS, VOLUMES, container, job, pod_spec, wait_for_pod
from tests.support.rules.observed import claim, model

LOG = "/dev/termination-log"
POD = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}}
MOUNTED = Mounts(
    {"/models": Path("/srv/store"), "/tmp": Path("/state/tmp"), LOG: Path("/state/log")},
    Path("/state/root"),
    frozenset({"/models"}),
)


def variables(**env: str) -> dict[str, str]:
    """Return the environment of a container whose manifest sets these variables."""
    listed = [{"name": name, "value": value} for name, value in env.items()]
    return environment({"terminationMessagePath": LOG, "env": listed}, POD, MOUNTED)


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "DYLD_INSERT_LIBRARIES",
        "GCONV_PATH",
        "PATH",
        "OPENSSL_CONF",
        "SSLKEYLOGFILE",
        "SD_LOADER_TERMINATION_LOG ",
        "pythonpath",
        "",
    ],
)
def test_variable_that_no_loader_job_has_is_refused(name):
    """The container is refused: Python, the linker or a library may read code by this variable."""
    with pytest.raises(RefusedError, match="only the variables of a loader Job"):
        variables(**{name: "/models"})


@pytest.mark.parametrize(
    "path",
    ["/etc/cron.d/x", "/tmp/log", "/models/log", f"{LOG}/../log", f"{LOG}/x", "log", "/"],
)
def test_termination_log_is_the_containers_own(path):
    """A path other than the container's own log is refused, because the loader overwrites it."""
    with pytest.raises(RefusedError, match="must be the terminationMessagePath /dev/termination"):
        variables(SD_LOADER_TERMINATION_LOG=path)


@pytest.mark.parametrize("name", sorted(LoaderEnv.path_names() - {"SD_LOADER_TERMINATION_LOG"}))
@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/root", "/state/root/root"),
        ("/", "/state/root/"),
        ("/modelsx", "/state/root/modelsx"),
        ("/models/../../etc", "/state/root/etc"),
        ("/../../etc", "/state/root/etc"),
        ("models", "/state/root/models"),
        ("../x", "/state/root/x"),
        ("/run/secrets/sd", "/state/root/run/secrets/sd"),
        ("/models", "/srv/store"),
        ("/models/x/..", "/srv/store/x/.."),
    ],
)
def test_folder_outside_the_volumes_is_empty(name, path, place):
    """Paths outside the volumes lead below the empty root: a real home may have code and tokens."""
    assert variables(**{name: path})[name] == place


def test_mount_of_the_root_does_not_open_the_machine():
    """A path that no mount translates, such as /root, leads below the empty root."""
    mounts = Mounts({"/": Path("/state/volume")}, Path("/state/root"))
    env = [{"name": "HOME", "value": "/root"}]
    container = {"terminationMessagePath": LOG, "env": env}
    assert environment(container, POD, mounts)["HOME"] == "/state/root/root"


def test_variables_of_a_loader_job_are_set():
    """Paths are translated; an empty variable stays empty."""
    env = variables(
        HOME="/tmp",
        HF_HOME="/tmp/hf",
        OMP_WAIT_POLICY="passive",
        HTTPS_PROXY="http://proxy.example.com",
        SD_LOADER_TERMINATION_LOG=LOG,
        SD_LOADER_CREDENTIALS_DIR="",
    )

    assert env == {
        "PATH": env["PATH"],
        "HOME": "/state/tmp",
        "HF_HOME": "/state/tmp/hf",
        "OMP_WAIT_POLICY": "passive",
        "HTTPS_PROXY": "http://proxy.example.com",
        "SD_LOADER_TERMINATION_LOG": "/state/log",
        "SD_LOADER_CREDENTIALS_DIR": "",
    }


def test_every_variable_of_our_jobs_is_in_the_list():
    """The list of sd_api has all variables of the operator's Jobs, so standalone runs them."""
    loader = LoaderSettings(retain_previous_seconds=60)
    settings = Settings(loader=loader)
    version = CheckedVersion(uid="u", load_hash="0" * 16, model_id="m")
    loaded = model(credentialsSecretRef={"name": "token"})
    for made in (
        manifests.build(manifests.plan_load(loaded, settings, claim(), 0), settings),
        manifests.build(manifests.plan_remove(loaded, settings, "models", 0), settings),
        build_sweep("n", "sweep", "models", loader),
        build_check("n", "check", "models", CheckRequest(versions=(version,)), loader),
    ):
        spec = made["spec"]["template"]["spec"]
        for template in (*spec.get("initContainers", ()), *spec["containers"]):
            assert {entry["name"] for entry in template["env"]} <= LoaderEnv.every_name()


def test_the_loaders_interpreter_ignores_the_environment(tmp_path):
    """Even if PYTHONPATH reaches the loader, it adds no code."""
    marker = tmp_path / "ran"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w').close()")
    command = [*LOADER, "--help"]
    assert command[0] == sys.executable

    subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        timeout=60,
    )

    assert not marker.exists()


def _rejection(**spec: Any) -> str:
    registry = Registry()
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    registry.create(NAMESPACES, "", namespace, "Strict")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod_spec(**spec)}
    with pytest.raises(ApiError) as error:
        registry.create(PODS, "default", pod, "Strict")
    assert error.value.code == 422
    return str(error.value)


@pytest.mark.parametrize("name", ["../../x", "/x", "..", ".", "", "x/y", "X", "x" * 64])
def test_name_of_a_volume_is_a_label(name):
    """A Pod with a volume of any other name is rejected: the node makes a folder of this name."""
    assert "spec.volumes[2].name" in _rejection(volumes=[*VOLUMES, {"name": name, "emptyDir": {}}])


def test_names_of_volumes_are_distinct():
    """A Pod with two volumes of one name is rejected: both would have the same folder."""
    volumes = [*VOLUMES, {"name": "tmp", "emptyDir": {}}]
    assert 'spec.volumes[2].name: Duplicate value: "tmp"' in _rejection(volumes=volumes)


FEW_NAMES = {("persistentVolumeClaim", "x/../models"), ("secret", "..")}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        pytest.param(
            {"containers": [container("convert", env=[{"name": "LD_PRELOAD", "value": "x.so"}])]},
            "env LD_PRELOAD: standalone sets only the variables of a loader Job",
            id="variable",
        ),
        pytest.param(
            {
                "containers": [
                    container(
                        "convert", env=[{"name": "SD_LOADER_TERMINATION_LOG", "value": "/tmp/x"}]
                    )
                ]
            },
            "must be the terminationMessagePath",
            id="termination-log",
        ),
        pytest.param(
            {
                "containers": [
                    container("convert", volumeMounts=[{**MOUNTS[0], "subPath": "../../x"}])
                ]
            },
            "standalone mounts whole volumes, without subPath",
            id="subpath",
        ),
        *(
            pytest.param(
                {"volumes": [{"name": "models", source: {key: name}}, VOLUMES[1]]},
                f"volume models: {name!r} is not a name",
                id=f"{source}-{name}",
                marks=[] if (source, name) in FEW_NAMES else [pytest.mark.slow],
            )
            for source, key in (("persistentVolumeClaim", "claimName"), ("secret", "secretName"))
            for name in ("..", "x/../models", "../../../../../api?/../../x", "/x")
        ),
    ],
)
def test_pod_that_reaches_beyond_its_volumes_fails(
    shared_stub_cluster: Cluster, changes: dict[str, Any], complaint: str
):
    """The Pod fails, its status has the reason, and no process is run or file created."""
    name = f"j{secrets.token_hex(4)}"
    shared_stub_cluster.apply(job(name, pod=pod_spec(**{"initContainers": [], **changes})))

    failed = wait_for_pod(shared_stub_cluster, name, "Failed")

    assert complaint in failed["status"]["message"]
    assert list(shared_stub_cluster.store.iterdir()) == []


@pytest.mark.cluster
@pytest.mark.parametrize("key", [".", "..", "..x"])
def test_key_of_a_secret_is_a_file_name(shared_stub_cluster: Cluster, key: str):
    """A real API server rejects these keys, which are not names of files."""
    name = f"s{secrets.token_hex(4)}"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {key: ""}}
    assert "must not " in shared_stub_cluster.refused("create", "-f", "-", stdin=json.dumps(secret))


@pytest.mark.cluster
def test_bytes_that_are_not_utf8_are_a_client_error(backend):
    """A header or body with these bytes gets status 400, 401, 403 or 415; Accept is ignored."""
    if backend.name != "standalone":
        pytest.skip(f"this test is for standalone, not for {backend.name}")
    api = RawApi(backend.kubeconfig)
    path = "/api/v1/namespaces/default/secrets"

    for token in ("Bearer \xff", "Bearer \xff\xfe", "Bearer \x80"):
        answer = api.ask("GET", path, Authorization=token)
        assert (answer.code, answer.body["kind"]) == (401, "Status")
    assert api.ask("GET", path, Host="\xff").code == 403
    assert api.ask("GET", path, Accept="\xff").code == 200
    assert api.ask("POST", path, b"{}", Content_Type="\xff").code == 415
    assert api.ask("POST", path, b'{"kind": "\xff"}').code == 400
    latin = "application/json; charset=no-such-charset"
    assert api.ask("POST", path, b"{}", Content_Type=latin).code == 400
