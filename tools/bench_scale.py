"""Measure the operator with many models: creating, loading, idling and restarting.

    python -m tools.bench_scale [--models N] [--rest SECONDS] [--kubeconfig FILE]

By default the script starts standalone's API server, without controllers or a node, in its own
process. --kubeconfig names a throw-away API server instead, such as a bare kube-apiserver with
etcd. The script stands in for the node: it completes every Job immediately. The queue has no
limits. The table shows each measurement beside its target. Ratios and counts can be
compared between machines, seconds cannot.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from sd_api import names
from sd_api.crd import custom_resource_definition
from sd_api.wire import Artifact, LoadResult, Source
from sd_operator.standalone import pki
from sd_operator.standalone.client import Cache, Client, object_path
from sd_operator.standalone.controllers import JOBS, event, job_pod
from sd_operator.standalone.errors import ApiError
from sd_operator.standalone.server import ApiServer
from sd_operator.standalone.signals import until_signal

Json = dict[str, Any]
Samples = dict[tuple[str, ...], float]

NAMESPACE = "bench-scale"
CONCURRENCY = 16
TIMEOUT = 900.0
READS = ("get", "list")
TICK = os.sysconf("SC_CLK_TCK")
RESULT = LoadResult(
    outcome="loaded",
    artifact=Artifact(
        digest="blake3:" + "ab" * 32, size_bytes=2_100_000_000, files=13, base_model="sd-1"
    ),
    source=Source(size_bytes=2_100_000_000, format="safetensors"),
)


# The API server.


async def serve(kubeconfig: Path, folder: Path) -> None:
    """Run standalone's API server alone until a signal stops it."""
    token = secrets.token_urlsafe(32)
    ca, certificate = pki.make_certificates()
    api = ApiServer(token, folder)
    runner = web.AppRunner(api.application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    context = certificate.server_context(folder)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server = f"https://127.0.0.1:{runner.addresses[0][1]}"
    pki.write_private(kubeconfig, pki.kubeconfig(server, ca, token))
    await until_signal([])
    await runner.cleanup()


async def prepare(client: Client) -> None:
    """Create the CRD, the namespace and the PVC."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}},
    }
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    for path, body in (
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", custom_resource_definition()),
        ("/api/v1/namespaces", space),
        (f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims", claim),
    ):
        try:
            await client.request("POST", path, body)
        except ApiError as error:
            if error.code != 409:
                raise


# The operator.


@dataclass
class Operator:
    """A running operator and what it has used."""

    process: subprocess.Popen[bytes]
    log: Path

    def metrics(self) -> Samples:
        """Return the metrics by name and label values; empty until the operator serves them."""
        port = re.search(r"metrics on port (\d+)", self.log.read_text())
        if port is None:
            return {}
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def requests(self) -> Counter[tuple[str, str]]:
        """Count its API requests by verb and resource."""
        counts: Counter[tuple[str, str]] = Counter()
        for (name, *labels), value in self.metrics().items():
            if name == "sdmodel_api_requests_total":
                _, what, verb = labels
                counts[verb, what] += int(value)
        return counts

    def cpu_seconds(self) -> float:
        """Return the CPU time it has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def peak_megabytes(self) -> float:
        """Return its peak memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024 / 1e6


@contextmanager
def operating(kubeconfig: Path, log: Path) -> Iterator[Operator]:
    """Run an operator with default settings, except that the queue has no limits."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SD_OPERATOR_")}
    env |= {
        "KUBECONFIG": str(kubeconfig),
        "SD_OPERATOR_NAMESPACES": NAMESPACE,
        "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
        "SD_OPERATOR_METRICS_PORT": "0",
        "SD_OPERATOR_PROBES_PORT": "0",
        "SD_OPERATOR_MAX_LOADS": "0",
        "SD_OPERATOR_MAX_LOADS_PER_NAMESPACE": "0",
    }
    with log.open("wb") as output:
        command = [sys.executable, "-m", "sd_operator", "run"]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield Operator(process, log)
    finally:
        process.terminate()
        process.wait(60)


# The user and the node.


@dataclass
class Stage:
    """Acts as the user and the node, and records when each model and its Job appear."""

    client: Client
    jobs: Cache = field(init=False)
    created: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = Cache(self.client, JOBS, self._changed)

    def _changed(self, job: Json) -> None:
        name = job["metadata"]["annotations"][names.ANNOTATION_MODEL].partition("/")[2]
        self.seen.setdefault(name, time.monotonic())

    async def apply(self, count: int) -> None:
        """Create the models, CONCURRENCY at a time."""
        path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"

        async def create(number: int) -> None:
            name = f"model-{number:05}"
            body = {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": name},
                "spec": {"url": f"https://example.com/{name}.safetensors"},
            }
            await self.client.request("POST", path, body)
            self.created[name] = time.monotonic()

        await each(create, range(count))

    async def finish(self) -> None:
        """Create a Pod for every Job, then complete all Pods, then all Jobs."""
        jobs = list(self.jobs.objects.values())
        pods: list[Json] = []

        async def run(job: Json) -> None:
            path = f"/api/v1/namespaces/{NAMESPACE}/pods"
            pods.append(await self.client.request("POST", path, job_pod(job)))

        async def end_pod(pod: Json) -> None:
            ended = {"exitCode": 0, "reason": "Completed", "message": RESULT.encode()}
            container = {"name": names.CONTAINER_CONVERT, "image": "", "imageID": ""}
            container |= {"ready": False, "restartCount": 0, "state": {"terminated": ended}}
            status = {"phase": "Succeeded", "containerStatuses": [container]}
            await self.client.patch(object_path(pod, "status"), {"status": status})

        async def end_job(job: Json) -> None:
            now = event(job, "", "", "")["lastTimestamp"]
            reached = {"status": "True", "lastTransitionTime": now, "lastProbeTime": now}
            conditions = [{"type": kind, **reached} for kind in ("SuccessCriteriaMet", "Complete")]
            status = {"startTime": now, "completionTime": now, "succeeded": 1}
            status |= {"uncountedTerminatedPods": {}, "conditions": conditions}
            await self.client.patch(object_path(job, "status"), {"status": status})

        await each(run, jobs)
        await each(end_pod, pods)
        await each(end_job, jobs)


async def each(work: Callable[[Any], Coroutine[Any, Any, None]], items: Sequence[Any]) -> None:
    """Call `work` with each item, CONCURRENCY at a time."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def until(holds: Callable[[], object]) -> float:
    """Wait until `holds` returns a true value; return the time of the monotonic clock."""
    deadline = time.monotonic() + TIMEOUT
    while not await asyncio.to_thread(holds):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the operator did not reach the expected state in {TIMEOUT:g} s")
        await asyncio.sleep(0.1)
    return time.monotonic()


# The measurement.


@dataclass
class Report:
    """The rows of the table, and whether a target was missed."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    missed: bool = False

    def add(self, what: str, found: float, unit: str, most: float | None = None) -> None:
        """Add a row. `most` is the target: a greater `found` misses it."""
        over = most is not None and found > most
        self.missed |= over
        target = "" if most is None else f"at most {most:g} {unit}" + (" MISSED" if over else "")
        self.rows.append((what, f"{found:.4g} {unit}", target))

    def show(self) -> None:
        """Print the table."""
        for what, found, target in self.rows:
            print(f"{what:<48} {found:>12}   {target}")


def scaled(count: int, thousand: float, five_thousand: float) -> float:
    """Return a target for this number of models, from its values for 1,000 and 5,000 models."""
    return thousand + (five_thousand - thousand) * max(0.0, (count - 1000) / 4000)


async def measure(kubeconfig: Path, work: Path, count: int, rest: float) -> Report:
    """Run all phases and return the report."""
    report = Report()
    async with await Client.connect(str(kubeconfig)) as client:
        await prepare(client)
        stage = Stage(client)
        watching = asyncio.create_task(stage.jobs.run())
        with operating(kubeconfig, work / "operator-1.log") as operator:
            await until(lambda: "serving" in operator.log.read_text())
            begun = time.monotonic()
            await stage.apply(count)
            applied = time.monotonic() - begun
            all_jobs = await until(lambda: len(stage.seen) >= count) - begun
            report.add(f"creating {count} models", applied, "s")
            report.add("creating all Jobs, relative to that", all_jobs / applied, "times", 2)
            delays = [stage.seen[name] - at for name, at in stage.created.items()]
            for percent in (50, 95, 99):
                found = statistics.quantiles(delays, n=100)[percent - 1]
                report.add(f"delay from model to Job, percentile {percent}", found, "s")
            begun = time.monotonic()
            await stage.finish()
            ready = ("sdmodel_models", NAMESPACE, "Ready", "")
            done = await until(lambda: operator.metrics().get(ready) == count)
            report.add("from all Jobs done to all models Ready", done - begun, "s")
            report.add("operator CPU until then", operator.cpu_seconds(), "s")
            requests = operator.requests()
            for (verb, what), number in sorted(requests.items()):
                report.add(f"requests per model: {verb} {what}", number / count, "")
            writes = sum(
                number
                for (verb, what), number in requests.items()
                if verb in ("create", "patch", "delete") and what != "events"
            )
            report.add("writes per model, without Events", writes / count, "", 6)
            gets = sum(n for (verb, what), n in requests.items() if verb == "get")
            report.add("GET requests", gets, "", 0)
            before = operator.cpu_seconds()
            await asyncio.sleep(rest)
            used = (operator.cpu_seconds() - before) / rest * 100
            report.add(f"operator CPU while idle, over {rest:g} s", used, "%")
            after = operator.requests()
            report.add("requests while idle", sum(after.values()) - sum(requests.values()), "")
            report.add(
                "operator peak memory", operator.peak_megabytes(), "MB", scaled(count, 250, 500)
            )
        with operating(kubeconfig, work / "operator-2.log") as operator:
            begun = time.monotonic()
            done = await until(lambda: operator.metrics().get(ready) == count)
            report.add(
                "restart: time until all models are known", done - begun, "s", scaled(count, 4, 15)
            )
            writes = sum(n for (verb, _), n in operator.requests().items() if verb not in READS)
            report.add("restart: writes", writes, "", 0)
            report.add("restart: CPU", operator.cpu_seconds(), "s")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return report


def main() -> int:
    """Measure and print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=1000, help="number of models")
    parser.add_argument(
        "--rest", type=float, default=30.0, help="seconds to watch the idle operator"
    )
    parser.add_argument("--kubeconfig", type=Path, help="kubeconfig of a throw-away API server")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    with tempfile.TemporaryDirectory(prefix="sd-bench-") as folder:
        work = Path(folder)
        if options.serve:
            asyncio.run(serve(options.serve, work))
            return 0
        kubeconfig = options.kubeconfig or work / "kubeconfig"
        server = None
        if not options.kubeconfig:
            server = subprocess.Popen(
                [sys.executable, "-m", "tools.bench_scale", "--serve", str(kubeconfig)]
            )
        try:
            while not kubeconfig.exists():
                time.sleep(0.1)
            report = asyncio.run(measure(kubeconfig, work, options.models, options.rest))
        finally:
            if server is not None:
                server.terminate()
                server.wait(30)
    report.show()
    return int(report.missed)


if __name__ == "__main__":
    sys.exit(main())
