"""The cluster of a test run: one API server, in which each test gets its own namespace.

The environment selects the backend; tests are the same for all of them:

- By default the cluster is `sd-operator standalone` without its operator, in its own process.
- KUBEBUILDER_ASSETS names a folder with etcd and kube-apiserver (controller-runtime's convention).
  Both are started, with RBAC. Standalone's node runs the Pods. Standalone's controllers run too,
  unless the folder has a kube-controller-manager. The operator has only the chart's rights.
- KUBECONFIG names an existing cluster. If it has no Nodes, standalone's controllers and node are
  added. If it has Nodes, its Pods are real, and CONTRIBUTING.md lists the variables that say how
  they find the loader's image and this machine. At its end, the run deletes all that it created.

Tests start and kill operators themselves.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sd_api.crd import custom_resource_definition
from sd_operator.standalone import pki
from sd_operator.standalone.podrun import NODE
from tests.support.kube.administrator import administrator
from tests.support.kube.cluster import (
    CLAIM,
    TEST_LABEL,
    Backend,
    Cluster,
    ClusterError,
    Json,
)
from tests.support.kube.rights import RULES
from tests.support.processes import START_SECONDS, free_ports, listens, running

SYSTEM_NAMESPACE = "sd-operator-system"
POD_SECONDS = 240.0
"""Seconds to wait for a Pod of a real node, which may have to pull an image and bind a volume."""


@contextlib.contextmanager
def backend_of(env: Mapping[str, str]) -> Iterator[Backend]:
    """Start the cluster that the environment selects."""
    with (
        tempfile.TemporaryDirectory(prefix="sd-cluster-") as folder,
        contextlib.ExitStack() as stack,
    ):
        work = Path(folder)
        if env.get("KUBEBUILDER_ASSETS"):
            yield stack.enter_context(_kube_apiserver(Path(env["KUBEBUILDER_ASSETS"]), work))
        elif env.get("KUBECONFIG"):
            yield stack.enter_context(_existing(env, work))
        else:
            yield stack.enter_context(_standalone(work))


@contextlib.contextmanager
def _standalone(work: Path) -> Iterator[Backend]:
    kubeconfig, store = work / "kubeconfig", work / "store"
    with running(
        _local_cluster("serve", kubeconfig, store),
        work / "standalone.log",
        lambda: kubeconfig.exists(),
    ):
        yield Backend(
            "standalone", kubeconfig, kubeconfig, f"{store}/.claims/{{namespace}}/{CLAIM}"
        )


@contextlib.contextmanager
def _existing(env: Mapping[str, str], work: Path) -> Iterator[Backend]:
    with contextlib.ExitStack() as stack:
        kubeconfig = stack.enter_context(administrator(env["KUBECONFIG"], work))
        admin = Cluster(Backend("cluster", kubeconfig, kubeconfig, None), "default", work)
        if any(node["metadata"]["name"] != NODE for node in admin.list("nodes")):
            backend = _with_nodes(kubeconfig, env)
            stack.enter_context(_defined(admin))
        else:
            stack.enter_context(_defined(admin))
            stack.callback(admin.run, "delete", "node", NODE)
            store = stack.enter_context(_node(kubeconfig, work))
            backend = Backend("nodeless cluster", kubeconfig, kubeconfig, store)
        try:
            yield backend
        finally:
            _delete_namespaces(admin, backend)


def _with_nodes(kubeconfig: Path, env: Mapping[str, str]) -> Backend:
    missing = [
        name for name in ("SD_TEST_LOADER_IMAGE", "SD_TEST_SOURCE_HOST") if not env.get(name)
    ]
    if missing:
        _give_up(f"KUBECONFIG names a cluster with nodes: set {' and '.join(missing)}")
    source_host = env["SD_TEST_SOURCE_HOST"]
    try:
        socket.create_server((source_host, 0)).close()
    except OSError as error:
        _give_up(f"SD_TEST_SOURCE_HOST: this machine cannot listen on {source_host} ({error})")
    return Backend(
        "cluster",
        kubeconfig,
        kubeconfig,
        env.get("SD_TEST_STORE"),
        env["SD_TEST_LOADER_IMAGE"],
        source_host,
        controllers=False,
        local_pods=False,
        patience=POD_SECONDS,
    )


def _give_up(why: str) -> NoReturn:
    """End the run. A run that skips its loads would look like one that has passed."""
    pytest.exit(f"{why}. See CONTRIBUTING.md.", pytest.ExitCode.USAGE_ERROR)


@contextlib.contextmanager
def _defined(admin: Cluster) -> Iterator[None]:
    """Install the CRD and delete it at the end, unless the cluster already has it."""
    definition = custom_resource_definition()
    name = definition["metadata"]["name"]
    if admin.exists("crd", name):
        if _schemas(admin.get("crd", name)) != _schemas(definition):
            _give_up(
                f"The cluster has another version of the CRD {name}: remove it, or run"
                " `kubectl apply --server-side -f crds/stablediffusionmodels.yaml`"
            )
        yield
        return
    _define(admin)
    try:
        yield
    finally:
        admin.kubectl("delete", "crd", name, "--timeout=60s", timeout=70)


def _schemas(definition: Json) -> list[Json]:
    return [version["schema"] for version in definition["spec"]["versions"]]


def _delete_namespaces(admin: Cluster, backend: Backend) -> None:
    seconds = backend.patience
    selector = f"--selector={TEST_LABEL}={backend.run}"
    done = admin.run(
        "delete", "namespaces", selector, f"--timeout={seconds}s", timeout=seconds + 10
    )
    if done.returncode:
        raise ClusterError(
            f"Some namespaces of this run remain: {done.stderr.strip()}. Find out what keeps them:"
            f" kubectl get namespaces {selector} -o yaml"
        )


@contextlib.contextmanager
def _node(kubeconfig: Path, work: Path, *options: str) -> Iterator[str]:
    store = work / "store"
    store.mkdir(exist_ok=True)
    command = _local_cluster("join", kubeconfig, store, *options)
    log = work / "node.log"
    with running(command, log, lambda: "ready" in log.read_text()):
        yield f"{store}/.claims/{{namespace}}/{CLAIM}"


def _local_cluster(command: str, kubeconfig: Path, store: Path, *options: str) -> list[str]:
    here = Path(__file__).parent
    return [
        *(sys.executable, str(here / "localcluster.py"), command),
        *("--kubeconfig", str(kubeconfig), "--store", str(store), *options),
        *("--loader", sys.executable, "-IS", str(here / "podloader.py")),
    ]


@contextlib.contextmanager
def _kube_apiserver(assets: Path, work: Path) -> Iterator[Backend]:
    """Start etcd and kube-apiserver with RBAC, as controller-runtime's envtest does."""
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
        stack.enter_context(running(etcd, work / "etcd.log", lambda: listens(client)))
        stack.enter_context(running(apiserver, work / "apiserver.log", is_ready))
        _define(admin)
        pki.write_private(operator, pki.kubeconfig(server, ca, _operator_token(admin)))
        real = (assets / "kube-controller-manager").exists()
        if real:
            stack.enter_context(running(manager, work / "manager.log", lambda: True))
        options = ("--controllers", "claim") if real else ()
        store = stack.enter_context(_node(kubeconfig, work, *options))
        yield Backend("kube-apiserver", kubeconfig, operator, store, controllers=not real)


def _define(admin: Cluster) -> None:
    definition = custom_resource_definition()
    admin.kubectl_apply(definition)
    name = definition["metadata"]["name"]
    admin.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=20s")
    # A real API server needs a moment until it serves a new kind.
    deadline = time.monotonic() + START_SECONDS
    while admin.run("get", "sdm").returncode and time.monotonic() < deadline:
        time.sleep(0.1)


def _operator_token(admin: Cluster) -> str:
    """Return a token of a service account that has only the operator's rights."""
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
        admin.kubectl_apply(item)
    return admin.kubectl("create", "token", "sd-operator", "--duration=4h").strip()
