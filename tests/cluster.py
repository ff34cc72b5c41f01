"""A cluster for tests, the same for all of them: `cluster` gives each test a namespace of its own.

What it is made of depends on the environment, and tests do not notice:

- by default, `sd-operator standalone` without its operator, in a process of its own;
- KUBEBUILDER_ASSETS names a folder with etcd and kube-apiserver (controller-runtime's convention):
  both are started, with RBAC; standalone's node runs the Pods, and its controllers too unless
  kube-controller-manager lies there as well. The operator has the rights of the chart only;
- KUBECONFIG names any cluster, which is taken as it is. Without Nodes, standalone's controllers
  and node run there. With Nodes the Pods are real; then needed are SD_TEST_LOADER_IMAGE (an image
  with sd-loader that the nodes can pull) and SD_TEST_SOURCE_HOST (the address at which Pods reach
  this machine). SD_TEST_STORE may say where a claim's files lie here, with {namespace} in it.

Tests start and kill operators themselves.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rbacproxy import RULES

from sd_api import names
from sd_api.crd import custom_resource_definition
from sd_operator.standalone import pki
from sd_operator.standalone.executor import die_with_parent

sys.path.append(str(Path(__file__).parent.parent / "tools"))
from kubectl import kubectl_path

Json = dict[str, Any]

START_SECONDS = 60.0
CLAIM = "models"
SYSTEM_NAMESPACE = "sd-operator-system"


class ClusterError(Exception):
    """Something in the cluster did not happen; the message says what was seen last."""


@dataclass(frozen=True)
class Backend:
    """A running API server with something that runs Pods."""

    name: str
    kubeconfig: Path
    operator_kubeconfig: Path
    store: str | None
    """Where a claim's files lie on this machine, with {namespace} in it; None: out of reach."""
    loader_image: str = "sd-loader:test"
    source_host: str = "127.0.0.1"
    controllers: bool = True
    """Whether standalone's controllers run, whose first backoff is 1 s."""


@dataclass
class Cluster:
    """One test's namespace."""

    backend: Backend
    namespace: str
    work: Path
    _operators: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return self.backend.kubeconfig

    @property
    def store(self) -> Path:
        """The files of the namespace's claim; skips the test where they are out of reach."""
        if self.backend.store is None:
            pytest.skip("SD_TEST_STORE does not say where the claim's files can be seen")
        return Path(self.backend.store.format(namespace=self.namespace))

    def run(
        self, *arguments: str, stdin: str | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace, whatever comes of it."""
        command = [str(kubectl_path()), f"--kubeconfig={self.kubeconfig}", f"-n={self.namespace}"]
        return subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout
        )

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 30) -> str:
        """What kubectl prints; it must succeed."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def refused(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl complains of; it must fail."""
        done = self.run(*arguments, stdin=stdin)
        if not done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} succeeded: {done.stdout.strip()}")
        return done.stderr

    def apply(self, manifest: str | Json, *options: str) -> str:
        """Apply YAML text or of an object."""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
        return self.kubectl("apply", "-f", "-", *options, stdin=text)

    def get(self, kind: str, name: str) -> Json:
        """One object."""
        item: Json = json.loads(self.kubectl("get", kind, name, "-o=json"))
        return item

    def list(self, kind: str, *selectors: str) -> list[Json]:
        """The objects of a kind."""
        items: list[Json] = json.loads(self.kubectl("get", kind, "-o=json", *selectors))["items"]
        return items

    def exists(self, kind: str, name: str) -> bool:
        """Whether there is such an object."""
        return bool(self.kubectl("get", kind, name, "--ignore-not-found", "-o=name"))

    def model(self, name: str, **spec: object) -> Json:
        """Apply a StableDiffusionModel and return it."""
        self.apply(model_manifest(name, **spec))
        return self.get("sdm", name)

    def wait_for(
        self,
        kind: str,
        name: str,
        reached: Callable[[Json], object],
        timeout: float = 60.0,
    ) -> Json:
        """Wait until an object is as wanted, and return it."""
        deadline = time.monotonic() + timeout
        item: Json = {}
        while time.monotonic() < deadline:
            if self.exists(kind, name) and reached(item := self.get(kind, name)):
                return item
            time.sleep(0.1)
        raise ClusterError(f"{kind}/{name} did not get there in {timeout} s: {json.dumps(item)}")

    def wait_gone(self, kind: str, name: str, timeout: float = 60.0) -> None:
        """Wait until an object is gone."""
        self.kubectl(
            "wait", "--for=delete", kind, name, f"--timeout={timeout}s", timeout=timeout + 5
        )

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reasons and messages of the Events about an object, oldest first."""
        found = self.list("events", f"--field-selector=involvedObject.name={name}")
        found.sort(key=lambda item: (item["lastTimestamp"] or "", item["metadata"]["name"]))
        return [(item["reason"], item["message"]) for item in found]

    def start_operator(self, **env: str) -> subprocess.Popen[bytes]:
        """`sd-operator run` for this namespace, as a process; its log is work/operator-N.log."""
        settings = {
            "KUBECONFIG": str(self.backend.operator_kubeconfig),
            "SD_OPERATOR_NAMESPACES": self.namespace,
            "SD_OPERATOR_CLAIM_NAME": CLAIM,
            "SD_OPERATOR_LOADER_IMAGE": self.backend.loader_image,
            "SD_OPERATOR_LOADER_SLIM_IMAGE": self.backend.loader_image,
            "SD_OPERATOR_GPU_COUNT": "0",
            "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
            "SD_OPERATOR_METRICS_PORT": "0",
            "SD_OPERATOR_PROBES_PORT": "0",
            "SD_OPERATOR_POLL_SECONDS": "0.5",
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.work),
        }
        log = self.work / f"operator-{len(self._operators)}.log"
        process = start([sys.executable, "-m", "sd_operator", "run"], log, settings | env)
        self._operators.append(process)
        return process

    def operator_log(self) -> str:
        """What this test's operators have logged."""
        return "".join(path.read_text() for path in sorted(self.work.glob("operator-*.log")))

    def stop_operators(self) -> None:
        """End the operators that still run."""
        for process in self._operators:
            stop(process)


def model_manifest(name: str, **spec: object) -> Json:
    """A StableDiffusionModel; spec in the resource's own words."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": spec,
    }


def claim_manifest(name: str = CLAIM) -> Json:
    """A PersistentVolumeClaim."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


@contextlib.contextmanager
def namespace_of(backend: Backend, work: Path, claim: bool = True) -> Iterator[Cluster]:
    """A namespace with a claim, deleted afterwards, and its operators ended."""
    cluster = Cluster(backend, f"test-{secrets.token_hex(4)}", work)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}}
    made = [namespace, *([claim_manifest()] if claim else [])]
    cluster.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(made))
    try:
        if claim and backend.store is not None:
            cluster.store.mkdir(parents=True, exist_ok=True)
        yield cluster
    finally:
        cluster.stop_operators()
        _release(cluster)
        cluster.kubectl(
            "delete", "namespace", cluster.namespace, "--wait=false", "--ignore-not-found"
        )


def _release(cluster: Cluster) -> None:
    """Free the models that no operator will ever clean up."""
    for model in cluster.list("sdm"):
        if model["metadata"].get("finalizers"):
            release = '{"metadata":{"finalizers":null}}'
            cluster.run("patch", "sdm", model["metadata"]["name"], "--type=merge", "-p", release)


@contextlib.contextmanager
def backend_of(env: Mapping[str, str], loader: Sequence[str] = ()) -> Iterator[Backend]:
    """The cluster that the environment asks for; Pods of standalone's node may run a stand-in."""
    with (
        tempfile.TemporaryDirectory(prefix="sd-cluster-") as folder,
        contextlib.ExitStack() as stack,
    ):
        work = Path(folder)
        if env.get("KUBEBUILDER_ASSETS"):
            yield stack.enter_context(
                _kube_apiserver(Path(env["KUBEBUILDER_ASSETS"]), work, loader)
            )
        elif env.get("KUBECONFIG"):
            yield stack.enter_context(_existing(Path(env["KUBECONFIG"]), env, work, loader))
        else:
            yield stack.enter_context(_standalone(work, loader))


@contextlib.contextmanager
def _standalone(work: Path, loader: Sequence[str]) -> Iterator[Backend]:
    kubeconfig, store = work / "kubeconfig", work / "store"
    command = [sys.executable, "-m", "sd_operator", "standalone", "--no-operator"]
    if loader:
        script = str(Path(__file__).with_name("clusterstub.py"))
        command = [sys.executable, script, "--loader", *loader]
    command += ["--store", str(store), "--kubeconfig", str(kubeconfig)]
    with running(command, work / "standalone.log", lambda: kubeconfig.exists()):
        yield Backend(
            "standalone", kubeconfig, kubeconfig, f"{store}/.claims/{{namespace}}/{CLAIM}"
        )


@contextlib.contextmanager
def _existing(
    kubeconfig: Path, env: Mapping[str, str], work: Path, loader: Sequence[str]
) -> Iterator[Backend]:
    admin = Cluster(Backend("cluster", kubeconfig, kubeconfig, None), "default", work)
    _define(admin)
    if not [node for node in admin.list("nodes") if node["metadata"]["name"] != "standalone"]:
        with _node(kubeconfig, work, loader) as store:
            yield Backend("nodeless cluster", kubeconfig, kubeconfig, store)
        return
    if loader:
        pytest.skip("KUBECONFIG names a cluster with nodes, which run no stand-in for the loader")
    for name in ("SD_TEST_LOADER_IMAGE", "SD_TEST_SOURCE_HOST"):
        if not env.get(name):
            pytest.skip(f"KUBECONFIG names a cluster with nodes, and {name} is not set")
    yield Backend(
        "cluster",
        kubeconfig,
        kubeconfig,
        env.get("SD_TEST_STORE"),
        env["SD_TEST_LOADER_IMAGE"],
        env["SD_TEST_SOURCE_HOST"],
        controllers=False,
    )


@contextlib.contextmanager
def _node(kubeconfig: Path, work: Path, loader: Sequence[str], *options: str) -> Iterator[str]:
    store = work / "store"
    store.mkdir(exist_ok=True)
    script = str(Path(__file__).with_name("clusternode.py"))
    command = [sys.executable, script, "--kubeconfig", str(kubeconfig), "--store", str(store)]
    command += ["--loader", *loader] if loader else []
    log = work / "node.log"
    with running([*command, *options], log, lambda: "ready" in log.read_text()):
        yield f"{store}/.claims/{{namespace}}/{CLAIM}"


@contextlib.contextmanager
def _kube_apiserver(assets: Path, work: Path, loader: Sequence[str]) -> Iterator[Backend]:
    """Start etcd and kube-apiserver as controller-runtime's envtest does, with RBAC."""
    for program in ("etcd", "kube-apiserver"):
        if not (assets / program).exists():
            pytest.skip(f"KUBEBUILDER_ASSETS has no {program}")
    client, peer, secure = free_ports(3)
    ca, certificate = pki.make_certificates()
    token = secrets.token_hex(24)
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    for name, content in (
        ("tls.crt", certificate.cert),
        ("tls.key", certificate.key),
        ("accounts.key", key),
        ("tokens.csv", f'{token},admin,admin,"system:masters"\n'.encode()),
    ):
        pki.write_private(work / name, content)
    server = f"https://127.0.0.1:{secure}"
    kubeconfig, operator = work / "kubeconfig", work / "operator.kubeconfig"
    pki.write_private(kubeconfig, pki.kubeconfig(server, ca, token))
    admin = Cluster(Backend("kube-apiserver", kubeconfig, operator, None), SYSTEM_NAMESPACE, work)
    etcd = [
        str(assets / "etcd"),
        f"--data-dir={work / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    apiserver = [
        str(assets / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--tls-cert-file={work / 'tls.crt'}",
        f"--tls-private-key-file={work / 'tls.key'}",
        f"--cert-dir={work}",
        f"--token-auth-file={work / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-account-issuer={server}",
        f"--service-account-key-file={work / 'accounts.key'}",
        f"--service-account-signing-key-file={work / 'accounts.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",
    ]
    manager = [
        str(assets / "kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        "--controllers=job-controller,garbage-collector-controller,namespace-controller,"
        "ttl-after-finished-controller",
    ]

    def is_ready() -> bool:
        return admin.run("get", "--raw=/readyz").stdout == "ok"

    with contextlib.ExitStack() as stack:
        stack.enter_context(running(etcd, work / "etcd.log", lambda: _listens(client)))
        stack.enter_context(running(apiserver, work / "apiserver.log", is_ready))
        _define(admin)
        pki.write_private(operator, pki.kubeconfig(server, ca, _operator_token(admin)))
        real = (assets / "kube-controller-manager").exists()
        if real:
            stack.enter_context(running(manager, work / "manager.log", lambda: True))
        options = ("--controllers", "claim") if real else ()
        store = stack.enter_context(_node(kubeconfig, work, loader, *options))
        yield Backend("kube-apiserver", kubeconfig, operator, store, controllers=not real)


def _define(admin: Cluster) -> None:
    definition = custom_resource_definition()
    admin.apply(definition)
    name = definition["metadata"]["name"]
    admin.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=20s")
    # A real server has not served a new kind for a moment after that.
    deadline = time.monotonic() + START_SECONDS
    while admin.run("get", "sdm").returncode and time.monotonic() < deadline:
        time.sleep(0.1)


def _operator_token(admin: Cluster) -> str:
    """A token of a service account with the operator's rights, and no others."""
    meta = {"name": "sd-operator", "namespace": SYSTEM_NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sd-operator"}
    rbac = "rbac.authorization.k8s.io/v1"
    for item in (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": rbac,
            "kind": "ClusterRole",
            "metadata": {"name": "sd-operator"},
            "rules": RULES,
        },
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "sd-operator"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
    ):
        admin.apply(item)
    return admin.kubectl("create", "token", "sd-operator", "--duration=4h").strip()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start(
    command: list[str], log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process that does not outlive this one, with its output in a log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, env=env, preexec_fn=die_with_parent
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, politely at first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(command: list[str], log: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    """A process, from when it is ready until the context ends."""
    process = start(command, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        stop(process)


def credentials(kubeconfig: Path) -> tuple[str, str, str]:
    """Server, token and CA certificate (PEM) of a kubeconfig of ours, for raw requests."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return cluster["server"], config["users"][0]["user"]["token"], ca


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    """The cluster of this test run."""
    with backend_of(os.environ) as found:
        yield found


@pytest.fixture(scope="session")
def stub_backend() -> Iterator[Backend]:
    """A cluster whose Pods run stubloader.py in place of the loader."""
    stub = Path(__file__).with_name("stubloader.py")
    with backend_of(os.environ, [sys.executable, str(stub)]) as found:
        yield found


@pytest.fixture(scope="module")
def shared_cluster(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace that the tests of a module share: they use different names."""
    with namespace_of(backend, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def shared_stub_cluster(
    stub_backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """As `shared_cluster`, with stubloader.py in place of the loader."""
    with namespace_of(stub_backend, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def stub_cluster(stub_backend: Backend, tmp_path: Path) -> Iterator[Cluster]:
    """As `cluster`, with stubloader.py in place of the loader."""
    with namespace_of(stub_backend, tmp_path) as made:
        yield made


@pytest.fixture
def cluster(backend: Backend, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own, with a claim."""
    with namespace_of(backend, tmp_path) as made:
        yield made
