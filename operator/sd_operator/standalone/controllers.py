"""The controllers for Jobs, garbage collection, namespaces and PVCs, as clients of the API."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sd_api import names
from sd_operator.standalone import claims, jobs
from sd_operator.standalone.builtin import PROTECTION
from sd_operator.standalone.client import MERGE, Cache, Client, ignore_gone, object_path
from sd_operator.standalone.errors import ApiError, Json
from sd_operator.standalone.metadata import FOREGROUND, ORPHAN
from sd_operator.standalone.workqueue import Workqueue

JOBS = "/apis/batch/v1/jobs"
PODS = "/api/v1/pods"
CLAIMS = "/api/v1/persistentvolumeclaims"
NAMESPACES = "/api/v1/namespaces"
COLLECTED = (
    JOBS,
    PODS,
    CLAIMS,
    "/api/v1/secrets",
    "/apis/coordination.k8s.io/v1/leases",
    f"/apis/{names.API_VERSION}/{names.PLURAL}",
)
"""The resources whose objects the garbage collector treats as owners and dependents."""
CONTROLLERS = ("job", "collect", "namespace", "claim")
NORMAL_EVENTS = ("SuccessfulCreate", "Completed", "Suspended", "Resumed")
BACKOFF_SECONDS = 1.0
"""The delay before a Job's second attempt. A real cluster waits 10 s."""


class Controllers:
    """Runs all controllers against one API server."""

    def __init__(self, client: Client, backoff: float = BACKOFF_SECONDS) -> None:
        self._client = client
        self._backoff = backoff
        self._created: dict[str, str] = {}
        """The uid of the last Pod created for each Job, by the Job's uid.

        It prevents a second Pod while the cache does not have the first one yet.
        """
        self._queues = {
            "job": Workqueue("job", self._reconcile_job),
            "collect": Workqueue("collect", self._collect),
            "namespace": Workqueue("namespace", self._reconcile_namespace),
            "claim": Workqueue("claim", self._reconcile_claim),
        }
        self._caches = {path: Cache(client, path, self._changed) for path in COLLECTED}
        self._caches[NAMESPACES] = Cache(client, NAMESPACES, self._changed)

    async def run(self, only: Iterable[str] = CONTROLLERS) -> None:
        """Run the controllers named in `only` for ever."""
        async with asyncio.TaskGroup() as group:
            for cache in self._caches.values():
                group.create_task(cache.run())
            for cache in self._caches.values():
                await cache.synced.wait()
            for name in only:
                group.create_task(self._queues[name].run())

    def _changed(self, item: Json) -> None:
        uid, kind = item["metadata"]["uid"], item["kind"]
        self._queues["collect"].add(uid)
        if kind == "Job":
            self._queues["job"].add(uid)
        elif kind == "Namespace":
            self._queues["namespace"].add(uid)
        elif kind == "PersistentVolumeClaim":
            self._queues["claim"].add(uid)
        for owner in item["metadata"].get("ownerReferences", ()):
            self._queues["collect"].add(owner["uid"])
            if owner.get("kind") == "Job":
                self._queues["job"].add(owner["uid"])
        if kind == "Pod":
            for claim in self._caches[CLAIMS].objects:
                self._queues["claim"].add(claim)

    def _objects(self) -> Iterable[Json]:
        return (item for path in COLLECTED for item in self._caches[path].objects.values())

    def _dependents(self, uid: str) -> list[Json]:
        return [item for item in self._objects() if uid in _owners(item)]

    # Jobs

    async def _reconcile_job(self, uid: str) -> float | None:
        job = self._caches[JOBS].objects.get(uid)
        if job is None or "deletionTimestamp" in job["metadata"]:
            self._created.pop(uid, None)
            return None
        cache = self._caches[PODS].objects
        pods = [pod for pod in cache.values() if uid in _owners(pod)]
        created = self._created.get(uid)
        if created is not None and created not in cache:
            try:
                await self._find_pod(job, created)
            except LookupError:
                del self._created[uid]
            else:
                return 0.05
        plan = jobs.plan(job, pods, datetime.now(UTC), self._backoff)
        for pod in plan.delete:
            await self._client.delete(object_path(pod), pod["metadata"]["uid"])
        if plan.expired:
            await self._client.delete(object_path(job), uid, "Foreground")
            return None
        if plan.status != job.get("status", {}):
            body = {"metadata": {"resourceVersion": job["metadata"]["resourceVersion"]}}
            removed = dict.fromkeys(job.get("status", {}).keys() - plan.status.keys())
            body["status"] = plan.status | removed
            await self._client.patch(object_path(job, "status"), body)
            for reason, message in plan.events:
                await self._record(job, reason, message)
        if plan.create:
            pod = await self._client.request(
                "POST", f"/api/v1/namespaces/{job['metadata']['namespace']}/pods", job_pod(job)
            )
            self._created[uid] = pod["metadata"]["uid"]
            text = f"Created pod: {pod['metadata']['name']}"
            await self._record(job, "SuccessfulCreate", text)
        return plan.again

    async def _find_pod(self, job: Json, uid: str) -> None:
        """Raise LookupError if the Pod with this uid does not exist on the server."""
        namespace = job["metadata"]["namespace"]
        listing = await self._client.request("GET", f"/api/v1/namespaces/{namespace}/pods")
        if uid not in {item["metadata"]["uid"] for item in listing["items"]}:
            raise LookupError(uid)

    async def _record(self, job: Json, reason: str, message: str) -> None:
        kind = "Normal" if reason in NORMAL_EVENTS else "Warning"
        path = f"/api/v1/namespaces/{job['metadata']['namespace']}/events"
        body = event(job, reason, message, "job-controller", kind)
        await self._client.request("POST", path, body)

    # Garbage collection

    async def _collect(self, uid: str) -> float | None:
        """Delete an object whose owners are gone; if it is being deleted, handle its dependents.

        Return the seconds until the object is due again; None if only a change makes it due.
        """
        item = next((i for i in self._objects() if i["metadata"]["uid"] == uid), None)
        if item is None:
            for dependent in self._dependents(uid):
                await self._collect_dependent(dependent)
            return None
        await self._collect_dependent(item)
        if "deletionTimestamp" not in item["metadata"]:
            return None
        finalizers = item["metadata"].get("finalizers", ())
        if ORPHAN in finalizers:
            for dependent in self._dependents(uid):
                owners = dependent["metadata"]["ownerReferences"]
                kept = [owner for owner in owners if owner["uid"] != uid]
                await self._client.patch(
                    object_path(dependent),
                    {"metadata": {"uid": dependent["metadata"]["uid"], "ownerReferences": kept}},
                )
            await self._drop_finalizer(item, ORPHAN)
        if FOREGROUND in finalizers:
            blocking = False
            for dependent in self._dependents(uid):
                blocking |= bool(_owners(dependent)[uid].get("blockOwnerDeletion"))
                if "deletionTimestamp" not in dependent["metadata"]:
                    meta = dependent["metadata"]
                    policy = "Foreground" if self._dependents(meta["uid"]) else "Background"
                    await self._client.delete(object_path(dependent), meta["uid"], policy)
            if not blocking:
                await self._drop_finalizer(item, FOREGROUND)
        return None

    async def _collect_dependent(self, item: Json) -> None:
        """Delete an object whose owners are all gone.

        Caches can be late, so an owner counts as gone only if the server does not have it.
        """
        owners = _owners(item)
        if not owners or "deletionTimestamp" in item["metadata"]:
            return
        existing = {i["metadata"]["uid"] for i in self._objects()}
        for uid, owner in owners.items():
            if uid in existing or await self._exists(item, owner):
                return
        finalizers = item["metadata"].get("finalizers", ())
        policy = "Orphan" if ORPHAN in finalizers else "Background"
        await self._client.delete(object_path(item), item["metadata"]["uid"], policy)

    async def _exists(self, item: Json, owner: Json) -> bool:
        meta = {"name": owner["name"], "namespace": item["metadata"].get("namespace")}
        path = object_path(
            {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "metadata": meta}
        )
        try:
            body = await self._client.request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return bool(body["metadata"]["uid"] == owner["uid"])

    async def _drop_finalizer(self, item: Json, finalizer: str) -> None:
        meta = item["metadata"]
        kept = [name for name in meta.get("finalizers", ()) if name != finalizer]
        change = {"finalizers": kept or None, "resourceVersion": meta["resourceVersion"]}
        await ignore_gone(self._client.patch(object_path(item), {"metadata": change}))

    # Namespaces and PVCs

    async def _reconcile_namespace(self, uid: str) -> float | None:
        """Delete the objects in a namespace that is being deleted, then remove its finalizer."""
        namespace = self._caches[NAMESPACES].objects.get(uid)
        if namespace is None or "deletionTimestamp" not in namespace["metadata"]:
            return None
        name = namespace["metadata"]["name"]
        left = 0
        for path in (*COLLECTED, "/api/v1/events"):
            root, _, plural = path.rpartition("/")
            collection = f"{root}/namespaces/{name}/{plural}"
            await self._client.request("DELETE", collection, {"propagationPolicy": "Background"})
            left += len((await self._client.request("GET", collection))["items"])
        if left:
            return 0.2
        body = copy.deepcopy(namespace) | {"spec": {"finalizers": []}}
        await ignore_gone(self._client.request("PUT", object_path(namespace, "finalize"), body))
        return None

    async def _reconcile_claim(self, uid: str) -> float | None:
        """Bind a new PVC; keep a PVC that is being deleted while a Pod uses it."""
        claim = self._caches[CLAIMS].objects.get(uid)
        if claim is None:
            return None
        meta = claim["metadata"]
        if "deletionTimestamp" in meta:
            if PROTECTION in meta.get("finalizers", ()) and not self._is_used(claim):
                await self._drop_finalizer(claim, PROTECTION)
        elif (status := claims.bound_status(claim)) is not None:
            await self._client.patch(object_path(claim, "status"), {"status": status}, MERGE)
        return None

    def _is_used(self, claim: Json) -> bool:
        meta = claim["metadata"]
        return any(
            volume.get("persistentVolumeClaim", {}).get("claimName") == meta["name"]
            for pod in self._caches[PODS].objects.values()
            if pod["metadata"]["namespace"] == meta["namespace"]
            and jobs.phase(pod) not in jobs.ENDED
            for volume in pod["spec"].get("volumes", ())
        )


def _owners(item: Json) -> dict[str, Json]:
    return {owner["uid"]: owner for owner in item["metadata"].get("ownerReferences", ())}


def job_pod(job: Json) -> Json:
    """Return the Pod to create for a Job."""
    meta = job["metadata"]
    template: dict[str, Any] = job["spec"]["template"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    pod_meta = template.get("metadata", {}) | {
        "generateName": f"{meta['name']}-",
        "ownerReferences": [owner],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": template["spec"]}


def event(item: Json, reason: str, message: str, source: str, kind: str = "Normal") -> Json:
    """Return an Event about an object."""
    meta, time = item["metadata"], jobs.show(datetime.now(UTC))
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": item["apiVersion"],
            "kind": item["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "reason": reason,
        "message": message[:1024],
        "type": kind,
        "source": {"component": source},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
