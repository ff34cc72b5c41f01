"""Runs one Pod: scheduling, volumes, init containers, containers, and its end."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from sd_api import defaults
from sd_operator.standalone import logs
from sd_operator.standalone.claims import obstacle
from sd_operator.standalone.client import JSON, MERGE, Client, ignore_gone, object_path
from sd_operator.standalone.containers import LOST_MESSAGE, Container, now
from sd_operator.standalone.controllers import event
from sd_operator.standalone.database import Key
from sd_operator.standalone.errors import ApiError, Json
from sd_operator.standalone.executor import (
    LOADER,
    Mounts,
    Process,
    RefusedError,
    environment,
    loader_arguments,
)
from sd_operator.standalone.jobs import ENDED
from sd_operator.standalone.metadata import is_subdomain
from sd_operator.standalone.secretfiles import secret_files, secrets_of

log = logging.getLogger(__name__)

NODE = "standalone"
MAX_GRACE_SECONDS = 5.0
"""The longest time that a container gets to end after SIGTERM."""
RETRY_SECONDS = 0.5
MESSAGE_BYTES = 4096
"""The kubelet's limit on a termination message."""
FALLBACK_BYTES = 2048
"""The kubelet's limit on a termination message that is taken from the log."""
START_ERROR = 128
"""The exit code of a container that could not be started."""


@dataclass(frozen=True)
class Machine:
    """The folders and the loader that Pods run with on this machine."""

    store: Path
    """The folder of the main PVC; other PVCs have folders below it."""
    state: Path
    """A private folder for volumes, Secrets and termination messages."""
    logs: Path
    main_claim: Key = ("default", defaults.CLAIM_NAME)
    """Namespace and name of the PVC whose folder is the store itself."""
    loader: Sequence[str] = LOADER

    def claim_folder(self, namespace: str, name: str) -> Path:
        """Return the folder of a PVC; create it if it is missing."""
        if (namespace, name) == self.main_claim:
            return self.store
        folder = self.store / ".claims" / namespace / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def claim_folders(self) -> Iterator[tuple[Key, Path]]:
        """Yield namespace, name and folder of each PVC that has a folder."""
        yield self.main_claim, self.store
        for folder in self.store.glob(".claims/*/*"):
            yield (folder.parent.name, folder.name), folder


class PodRun:
    """Runs one Pod and reports its status."""

    def __init__(self, client: Client, machine: Machine, pod: Json) -> None:
        self.deleted = asyncio.Event()
        """Set by the kubelet when the Pod is deleted."""
        self._client = client
        self._machine = machine
        self._pod = pod
        self._meta = pod["metadata"]
        self._folder = machine.state / self._meta["uid"]
        self._inits = [Container(spec) for spec in pod["spec"].get("initContainers", ())]
        self._containers = [Container(spec) for spec in pod["spec"]["containers"]]
        self._volumes: dict[str, Path] = {}
        self._claims: set[str] = set()
        self._failure: Json = {}
        self._started = ""
        self._reported_phase = ""
        self._once: set[str] = set()
        """Texts of statuses and reasons of Events that must not be written again."""

    async def run(self) -> None:
        """Run the Pod to its end.

        If the Pod is deleted, stop it, remove it from the API server, and remove its logs from this
        machine.
        """
        if not self.deleted.is_set():
            await self._live_until_deleted()
        if self.deleted.is_set():
            if self._started and self._reported_phase not in ENDED:
                if self._phase() not in ENDED:
                    self._failure = {"reason": "Deleted", "message": "the Pod was deleted"}
                await self._report()
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._meta["uid"]}}
            await ignore_gone(self._request("DELETE", object_path(self._pod), options))
            logs.remove(self._machine.logs, self._meta["uid"])

    async def _live_until_deleted(self) -> None:
        live = asyncio.create_task(self._live())
        deleted = asyncio.create_task(self.deleted.wait())
        try:
            await asyncio.wait({live, deleted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            live.cancel()
            deleted.cancel()
            for result in await asyncio.gather(live, deleted, return_exceptions=True):
                if isinstance(result, Exception):
                    log.error("Pod %s: %s", self._meta["name"], result)
            await asyncio.gather(*(self._stop(c) for c in (*self._inits, *self._containers)))
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _live(self) -> None:
        if self._pod["spec"].get("nodeName"):
            await self._fail_lost()
            return
        try:
            self._check()
            await self._schedule()
            await self._prepare_volumes()
            for container in (*self._inits, *self._containers):
                container.state = {"waiting": {"reason": "PodInitializing"}}
            for container in self._inits:
                await self._start(container)
                await self._finish(container)
                if container.exit_code:
                    return
            for container in self._containers:
                await self._start(container)
            await asyncio.gather(*(self._finish(c) for c in self._containers))
        except RefusedError as error:
            self._failure = {"reason": "StartError", "message": str(error)}
            for container in (*self._inits, *self._containers):
                if container.exit_code is None and container.process is None:
                    container.end(START_ERROR, str(error), "StartError")
            await self._warn("Failed", str(error))
            await self._report()

    async def _fail_lost(self) -> None:
        """Report that the node restarted while the Pod ran, so that the Job starts another Pod."""
        status = self._pod.get("status", {})
        for container in (*self._inits, *self._containers):
            container.end_lost(status)
        self._started = status.get("startTime", "") or now()
        self._failure = {"reason": "NodeLost", "message": LOST_MESSAGE}
        await self._report()

    def _check(self) -> None:
        spec = self._pod["spec"]
        if spec.get("restartPolicy") != "Never":
            raise RefusedError("standalone runs only Pods with restartPolicy: Never")
        for volume in spec.get("volumes", ()):
            kinds = volume.keys() - {"name"}
            if not kinds <= {"persistentVolumeClaim", "secret", "projected", "emptyDir"}:
                raise RefusedError(
                    f"volume {volume['name']}: standalone mounts persistentVolumeClaim, secret,"
                    f" projected and emptyDir, not {', '.join(kinds)}"
                )
            names = [secret["secretName"] for secret in secrets_of(volume)]
            if claim := volume.get("persistentVolumeClaim"):
                names.append(claim.get("claimName", ""))
            for name in names:
                if not is_subdomain(name):
                    raise RefusedError(f"volume {volume['name']}: {name!r} is not a name")

    # Before the start

    async def _schedule(self) -> None:
        """Wait until the Pod's PVCs can be mounted, then bind the Pod to this node."""
        namespace = self._meta["namespace"]
        for volume in self._pod["spec"].get("volumes", ()):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"
            while claim and (why := obstacle(claim, await self._find(path))):
                text = f"0/1 nodes are available: {why}"
                unscheduled = {"type": "PodScheduled", "status": "False", "message": text}
                conditions = [unscheduled | {"reason": "Unschedulable"}]
                await self._patch({"phase": "Pending", "conditions": conditions}, text)
                await self._warn("FailedScheduling", text)
                await asyncio.sleep(RETRY_SECONDS)
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        name = {"name": self._meta["name"], "namespace": namespace}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": name, "target": target}
        await ignore_gone(self._request("POST", object_path(self._pod, "binding"), binding))
        self._started = now()

    async def _prepare_volumes(self) -> None:
        """Create the Pod's volumes; wait for a Secret that is missing and not optional."""
        namespace = self._meta["namespace"]
        for volume in self._pod["spec"].get("volumes", ()):
            folder = self._folder / "volumes" / volume["name"]
            folder.mkdir(parents=True, mode=0o700)
            if claim := volume.get("persistentVolumeClaim"):
                folder = await self._claim_folder(volume["name"], claim["claimName"])
                self._claims.add(volume["name"])
            for secret in secrets_of(volume):
                path = f"/api/v1/namespaces/{namespace}/secrets/{secret['secretName']}"
                while (body := await self._find(path)) is None and not secret.get("optional"):
                    text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : secret'
                    text += f' "{secret["secretName"]}" not found'
                    await self._wait_for_mount(text)
                for name, content in secret_files(secret, body or {}).items():
                    (folder / name).touch(mode=0o600)
                    (folder / name).write_bytes(content)
            self._volumes[volume["name"]] = folder

    async def _claim_folder(self, volume: str, claim: str) -> Path:
        """Return the folder of a PVC; wait while the folder cannot be created."""
        while True:
            try:
                return self._machine.claim_folder(self._meta["namespace"], claim)
            except OSError as error:
                text = f'MountVolume.SetUp failed for volume "{volume}" : {error.strerror}'
                await self._wait_for_mount(text)

    async def _wait_for_mount(self, text: str) -> None:
        await self._report(once=text)
        await self._warn("FailedMount", text)
        await asyncio.sleep(RETRY_SECONDS)

    async def _find(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    # Containers

    def _mounts(self, container: Container) -> Mounts:
        mounts: Sequence[Json] = container.spec.get("volumeMounts", ())
        paths: dict[str, Path] = {}
        for mount in mounts:
            if unsupported := mount.keys() & {"subPath", "subPathExpr"}:
                raise RefusedError(
                    f"volumeMount {mount['mountPath']}: standalone mounts whole volumes,"
                    f" without {', '.join(unsupported)}"
                )
            paths[mount["mountPath"]] = self._volumes[mount["name"]]
        claims = frozenset(mount["mountPath"] for mount in mounts if mount["name"] in self._claims)
        paths |= {container.spec["terminationMessagePath"]: self._message_path(container)}
        return Mounts(paths, self._folder / "root", claims)

    def _message_path(self, container: Container) -> Path:
        path: Path = self._folder / f"termination-{container.name}"
        return path

    def _log_path(self, container: Container) -> Path:
        return logs.log_path(self._machine.logs, self._meta["uid"], container.name)

    async def _start(self, container: Container) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._message_path(container).touch(mode=0o600)
        mounts = self._mounts(container)
        arguments = loader_arguments(container.spec, mounts)
        env = environment(container.spec, self._pod, mounts)
        container.process = await Process.start(
            [*self._machine.loader, *arguments], env, self._folder, self._log_path(container)
        )
        container.state = {"running": {"startedAt": now()}}
        await self._report()

    async def _finish(self, container: Container) -> None:
        if container.process is not None:
            code = await container.process.wait()
            container.end(code, self._message(container, code))
            await self._report()

    async def _stop(self, container: Container) -> None:
        if container.process is not None and container.exit_code is None:
            grace = self._pod["spec"].get("terminationGracePeriodSeconds", MAX_GRACE_SECONDS)
            await container.process.stop(min(grace, MAX_GRACE_SECONDS))
            code = await container.process.wait()
            container.end(code, self._message(container, code))

    def _message(self, container: Container, code: int) -> str:
        """Return the termination message that the container wrote.

        If a failed container wrote no message, return the end of its log instead if
        terminationMessagePolicy asks for it.
        """
        text = self._message_path(container).read_bytes()[:MESSAGE_BYTES]
        fallback = container.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not text and code and fallback:
            text = self._log_path(container).read_bytes()[-FALLBACK_BYTES:]
        return text.decode(errors="replace")

    # Status

    def _phase(self) -> str:
        codes = [container.exit_code for container in self._containers]
        if self._failure or any(container.exit_code for container in self._inits):
            return "Failed"
        if None not in codes:
            return "Failed" if any(codes) else "Succeeded"
        return "Running" if any(c.process for c in self._containers) else "Pending"

    async def _report(self, once: str = "") -> None:
        phase = self._phase()
        initialized = all(container.exit_code == 0 for container in self._inits)
        ready = phase == "Running" and all("running" in c.state for c in self._containers)
        why = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "ContainersNotReady")
        conditions = [
            _condition("PodScheduled", bool(self._started), ""),
            _condition("Initialized", initialized, "ContainersNotInitialized"),
            _condition("ContainersReady", ready, why),
            _condition("Ready", ready, why),
        ]
        if self._failure.get("reason") == "NodeLost":
            disrupted = _condition("DisruptionTarget", True, "")
            conditions.append(disrupted | {"reason": "TerminationByKubelet"})
        status: Json = {"phase": phase, "conditions": conditions} | self._failure
        status["startTime"] = self._started or None
        for key, group in (
            ("initContainerStatuses", self._inits),
            ("containerStatuses", self._containers),
        ):
            is_init = key == "initContainerStatuses"
            status |= {key: [c.status(is_init) for c in group]} if group else {}
        await self._patch(status, once)
        self._reported_phase = phase

    async def _patch(self, status: Json, once: str) -> None:
        """Write the Pod's status; do nothing if it was written before with the same text `once`."""
        if once in self._once:
            return
        self._once |= {once} if once else set()
        body = {"metadata": {"uid": self._meta["uid"]}, "status": status}
        await ignore_gone(self._request("PATCH", object_path(self._pod, "status"), body, MERGE))

    async def _request(
        self, method: str, path: str, body: Json | None = None, kind: str = JSON
    ) -> Json:
        """Send a request, and repeat it while the API server is unavailable or overloaded."""
        while True:
            try:
                return await self._client.request(method, path, body, kind)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                if isinstance(error, ApiError) and error.code < 500 and error.code != 429:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _warn(self, reason: str, message: str) -> None:
        """Record a Warning Event about the Pod, only once for each reason."""
        if reason in self._once:
            return
        self._once.add(reason)
        path = f"/api/v1/namespaces/{self._meta['namespace']}/events"
        body = event(self._pod, reason, message, "kubelet", "Warning")
        await ignore_gone(self._request("POST", path, body))


def _condition(kind: str, value: bool, reason: str) -> Json:
    entry = {"type": kind, "status": "True" if value else "False", "lastTransitionTime": now()}
    return entry if value else entry | {"reason": reason}
