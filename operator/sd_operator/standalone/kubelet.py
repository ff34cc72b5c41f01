"""Scheduler and kubelet in one: runs every Pod of the cluster on this machine."""

from __future__ import annotations

import asyncio
from functools import partial

from sd_operator.standalone import logs
from sd_operator.standalone.client import Cache, Client, ignore_gone, object_path
from sd_operator.standalone.controllers import PODS
from sd_operator.standalone.errors import Json
from sd_operator.standalone.jobs import ENDED, phase
from sd_operator.standalone.podrun import NODE, Machine, PodRun


class Kubelet:
    """Runs every Pod that is not assigned to another node."""

    def __init__(self, client: Client, machine: Machine) -> None:
        self.pods = Cache(client, PODS, self._changed)
        self._client = client
        self._machine = machine
        self._runs: dict[str, PodRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: set[str] = set()

    async def register(self, port: int | None = None) -> None:
        """Create the Node. A real API server reads container logs from `port`."""
        node: Json = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await ignore_gone(self._client.request("POST", "/api/v1/nodes", node))
        status: Json = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }
        if port is not None:
            status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": port}}
        await self._client.patch(object_path(node, "status"), {"status": status})

    async def run(self) -> None:
        """Run for ever; when cancelled, first stop every process."""
        try:
            await self.pods.run()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        gone = uid not in self.pods.objects
        deleted = gone or "deletionTimestamp" in pod["metadata"]
        run = self._runs.get(uid)
        if gone:
            self._ended.discard(uid)
            if run is None:
                logs.remove(self._machine.logs, uid)
        if run is None:
            foreign = pod["spec"].get("nodeName") not in (None, NODE)
            # An old event of the watch can arrive after the Pod's last status was written. It must
            # not run the Pod again.
            ended = uid in self._ended or phase(pod) in ENDED
            if gone or foreign or (ended and not deleted):
                return
            run = self._runs[uid] = PodRun(self._client, self._machine, pod)
            task = asyncio.create_task(run.run())
            self._tasks.add(task)
            task.add_done_callback(partial(self._forget, uid))
        if deleted:
            run.deleted.set()

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._runs.pop(uid, None)
        if uid in self.pods.objects:
            self._ended.add(uid)
