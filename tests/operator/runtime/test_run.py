"""Tests of the operator process against an API server that the test controls."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from kopf._cogs.structs.references import Insights
from typing_extensions import override

from devkit.fakefiles import json_answer
from devkit.loopback import Answer, HangUpError, Loopback, Request
from sd_api import names
from sd_operator.base.errors import ForbiddenError
from sd_operator.base.settings import Settings
from sd_operator.clients import kube
from sd_operator.reconciler.namespaces import Namespaces
from sd_operator.runtime import run
from tests.support.kube.kubeconfig import write_kubeconfig
from tests.support.operator.operators import probe
from tests.support.processes import START_SECONDS

KINDS = {
    "/api/v1": [
        ("Pod", "pods"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"),
        ("Namespace", "namespaces"),
    ],
    "/apis/batch/v1": [("Job", "jobs")],
    "/apis/apiextensions.k8s.io/v1": [("CustomResourceDefinition", "customresourcedefinitions")],
    f"/apis/{names.API_VERSION}": [(names.KIND, names.PLURAL)],
}


@dataclass
class Server:
    """The API server of an empty cluster."""

    known: bool = True
    """Whether the cluster has our CRD."""
    error: dict[str, Any] | None = None
    """The error event that ends every watch."""
    away: bool = False
    """Whether the server cuts every connection without a response."""
    away_for: str = ""
    """The path whose requests are cut off."""
    lease: Any = None
    paths: list[str] = field(default_factory=list)
    """The paths of all requests."""
    watches: list[dict[str, list[str]]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def respond(self, request: Request) -> Answer:
        """Answer a request, or cut its connection."""
        self.paths.append(request.path)
        if self.away or request.path == self.away_for:
            raise HangUpError
        query = parse_qs(request.query)
        if "/leases" in request.path and request.method != "GET":
            self.lease = json.loads(request.body)
            return json_answer(201 if request.method == "POST" else 200, self.lease)
        if "watch" in query:
            self.watches.append({"path": [request.path], **query})
            return Answer(200, self.watch())
        answer = self.reply(request.path)
        return json_answer(404, {"code": 404}) if answer is None else json_answer(200, answer)

    def watch(self) -> Iterator[bytes]:
        """Wait for the error that ends a watch."""
        while not self.away and not self.stopped.wait(0.05):
            if self.error is not None:
                yield json.dumps({"type": "ERROR", "object": self.error}).encode() + b"\n"
                return

    def reply(self, path: str) -> Any:
        """Return the response to a GET that is not a watch; None means 404."""
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            return {"groups": [_group(one.split("/")[2]) for one in KINDS if one != "/api/v1"]}
        if path in KINDS:
            return {"resources": [_resource(kind, plural) for kind, plural in KINDS[path]]}
        if path.endswith(names.PLURAL) and not self.known:
            return None
        if "/leases/" in path:
            return self.lease
        return {"items": [], "metadata": {"resourceVersion": "1"}}


def _group(name: str) -> dict[str, Any]:
    version = names.VERSION if name == names.GROUP else "v1"
    entry = {"version": version, "groupVersion": f"{name}/{version}"}
    return {"name": name, "versions": [entry], "preferredVersion": entry}


def _resource(kind: str, plural: str) -> dict[str, Any]:
    verbs = ["get", "list", "watch", "patch"]
    namespaced = kind not in ("Namespace", "CustomResourceDefinition")
    return {
        "kind": kind,
        "name": plural,
        "singularName": kind.lower(),
        "namespaced": namespaced,
        "verbs": verbs,
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The running server, to which tmp_path/kubeconfig leads."""
    state = Server()
    with Loopback(state.respond) as http:
        write_kubeconfig(tmp_path / "kubeconfig", http.url)
        yield state
        state.stopped.set()


@dataclass
class Operator:
    """`sd-operator run` as a process."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, holds: Callable[[str], object]) -> str:
        """Wait until a condition holds for the text of the log, and return this text."""
        deadline = time.monotonic() + START_SECONDS
        while not holds(text := self.log.read_text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        return text

    def probe(self, path: str) -> int:
        """Return the HTTP status of a probe's path."""
        return probe(self.wait_for(lambda text: "probes on" in text), path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Return a function that starts an operator; keywords are variables. Kill it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(**env: str) -> Operator:
        log = tmp_path / "log"
        settings = {
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
            "SD_OPERATOR_METRICS_PORT": "0",
            "SD_OPERATOR_PROBES_PORT": "0",
            "HOME": str(tmp_path),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sd_operator", "run"],
                env=settings | env,
                stdout=output,
                stderr=output,
            )
        started.append(process)
        return Operator(process, log)

    yield run
    for process in started:
        process.kill()
        process.wait()


Start = Callable[..., Operator]


def last_line(operator: Operator) -> str:
    """Return the line with which an operator says why it ended; it has no traceback."""
    line = json.loads(operator.log.read_text().splitlines()[-1])
    message: str = line["message"]
    assert message.startswith("the operator has ended: ")
    assert "error" not in line
    return message


def test_operator_watches_only_what_it_needs(server: Server, start: Start) -> None:
    """Jobs and Pods are selected by label. Each watch has a timeout, to detect dead connections."""
    operator = start()
    operator.wait_for(lambda _: len(server.watches) == 4)
    by_path = {one["path"][0]: one for one in server.watches}
    ours = "app.kubernetes.io/managed-by=sd-operator,app.kubernetes.io/name=sd-loader"
    assert set(by_path) == {
        f"/apis/{names.API_VERSION}/{names.PLURAL}",
        "/apis/batch/v1/jobs",
        "/api/v1/pods",
        "/api/v1/persistentvolumeclaims",
    }
    assert by_path["/apis/batch/v1/jobs"]["labelSelector"] == [ours]
    assert by_path["/api/v1/pods"]["labelSelector"] == [ours]
    assert all(0 < float(one["timeoutSeconds"][0]) <= 600 for one in server.watches)
    assert operator.probe("/readyz") == 200
    operator.process.terminate()
    assert operator.process.wait(10) == 0


def test_operator_with_namespaces_stays_in_them(server: Server, tmp_path: Path) -> None:
    """Every request for objects, not only every watch, is limited to one of the namespaces."""
    settings = Settings(
        tmp_path / "kubeconfig",
        namespaces=("art", "ops"),
        bind_address="127.0.0.1",
        metrics_port=0,
        probes_port=0,
    )

    async def until_it_watches() -> None:
        stop = asyncio.Event()
        operator = asyncio.create_task(run.operate(settings, stop))
        async with asyncio.timeout(START_SECONDS):
            while len(server.watches) < 8:  # noqa: ASYNC110 - the server's threads make it so
                await asyncio.sleep(0.02)
            stop.set()
            await operator

    asyncio.run(until_it_watches())
    discovery = {"/api", "/apis", *KINDS}
    asked = {path for path in server.paths if path not in discovery}
    assert {path.partition("/namespaces/")[2].split("/")[0] for path in asked} == {"art", "ops"}


@pytest.mark.parametrize("code", [403, pytest.param(500, marks=pytest.mark.slow)])
def test_operator_restarts_an_expired_watch_and_ends_when_one_fails(
    server: Server, start: Start, code: int
) -> None:
    """410 is normal after a quiet time. After another error, the operator would see no changes."""
    operator = start()
    operator.wait_for(lambda _: len(server.watches) == 4)
    server.error = {"kind": "Status", "code": 410, "message": "too old"}
    operator.wait_for(lambda _: len(server.watches) >= 8)
    server.error = None
    assert operator.process.poll() is None
    assert operator.probe("/healthz") == 200
    server.error = {"kind": "Status", "code": code, "message": "no such luck"}
    assert operator.process.wait(20) == 1
    assert "no such luck" in last_line(operator)


def test_operator_waits_for_the_crd(server: Server, start: Start) -> None:
    """The process is alive but not ready, and the log says what to apply."""
    server.known = False
    operator = start()
    operator.wait_for(lambda text: "kubectl apply -f crds/stablediffusionmodels.yaml" in text)
    assert (operator.probe("/healthz"), operator.probe("/readyz")) == (200, 503)
    server.known = True
    operator.wait_for(lambda _: len(server.watches) == 4)
    assert operator.probe("/readyz") == 200


def test_operator_waits_for_the_api_server(server: Server, start: Start, tmp_path: Path) -> None:
    """SIGTERM still ends the process cleanly while it waits."""
    config = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "kubeconfig").write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:1", config))
    operator = start()
    operator.wait_for(lambda text: "does not serve us yet" in text)
    operator.process.terminate()
    assert operator.process.wait(10) == 0
    assert server.watches == []


def test_operator_ends_when_the_api_server_stays_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liveness probe would not notice that the operator sees nothing, so the process exits."""
    monkeypatch.setattr(run, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(run, "AWAY_MAX_SECONDS", 0.3)
    monkeypatch.setattr(kube, "RETRY_SECONDS", 0.01)
    kubeconfig = tmp_path / "kubeconfig"
    settings = Settings(kubeconfig, bind_address="127.0.0.1", metrics_port=0, probes_port=0)

    def leave() -> None:
        while len(server.watches) < 4:
            time.sleep(0.02)
        server.away = True

    threading.Thread(target=leave, daemon=True).start()
    with pytest.raises(run.WatchEndedError, match="away for"):
        asyncio.run(asyncio.wait_for(run.operate(settings, asyncio.Event()), 20))


@pytest.mark.parametrize(
    "when", [pytest.param("while it starts", marks=pytest.mark.slow), "while it serves"]
)
def test_a_leader_that_loses_the_api_server_ends_with_one_line(
    server: Server, start: Start, when: str
) -> None:
    """The line says what failed, without a traceback: no code of the operator is at fault."""
    election = {"SD_OPERATOR_LEADER_ELECTION": "true", "SD_OPERATOR_LEASE_NAMESPACE": "sd"}
    if when == "while it starts":
        server.away_for = "/apis/batch/v1/jobs"
        operator = start(**election)
    else:
        operator = start(**election)
        operator.wait_for(lambda _: len(server.watches) == 4)
        server.away = True
    assert operator.process.wait(30) == 1
    cause = "list " if when == "while it starts" else "the Lease could not be renewed for 6 s: get"
    assert cause in last_line(operator)
    assert "Traceback" not in operator.log.read_text()


class Unreliable(Namespaces):
    """A check of the listed namespaces that fails the first time."""

    def __init__(self, error: Exception) -> None:
        self.served: set[str] = set()
        self._errors = [error]

    @override
    async def look(self) -> None:
        if self._errors:
            raise self._errors.pop()
        self.served = {"art"}


@pytest.mark.parametrize(
    ("error", "traced"),
    [(KeyError("metadata"), True), (ForbiddenError("jobs is forbidden"), False)],
    ids=["a fault of the operator", "an error of the API server"],
)
def test_the_namespaces_are_checked_again_after_any_error(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    traced: bool,
) -> None:
    """Otherwise a namespace would not be served when its rights return, without any report."""
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.001)
    watched = Insights()

    async def until_watched() -> None:
        looking = asyncio.create_task(run._look(Unreliable(error), watched))
        async with asyncio.timeout(5), watched.revised:
            await watched.revised.wait_for(lambda: watched.namespaces)
        looking.cancel()

    asyncio.run(until_watched())
    assert watched.namespaces == {"art"}
    (record,) = [one for one in caplog.records if "cannot be checked" in one.message]
    assert bool(record.exc_info) is traced


def test_an_invalid_setting_ends_the_operator_with_one_line(start: Start, server: Server) -> None:
    """The process exits with one line that names the setting, without a traceback."""
    operator = start(SD_OPERATOR_GPU_COUNT="many")
    assert operator.process.wait(10) == 2
    (line,) = operator.log.read_text().splitlines()
    assert line.startswith("sd-operator: SD_OPERATOR_GPU_COUNT must be a whole number")
    assert server.watches == []
