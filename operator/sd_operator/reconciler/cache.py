"""Caches Jobs, Pods and PVCs: from one LIST at start-up, then from events and our own writes.

A Job counts as a load only if the status of a model records its uid.
A watch that had a gap reports no deletions, so the cache may keep an object that no longer exists;
`replace_jobs` and `replace_pods` correct that with a list from the API server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from sd_api import names
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import JobView, PodView


class _Versioned(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


V = TypeVar("V", bound=_Versioned)


def lean(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body without managedFields, which only take memory."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}


def is_newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is newer; versions that cannot be compared count as newer."""
    if not (version.isdecimal() and than.isdecimal()):
        return True
    return int(version) > int(than)


class ObjectCache:
    """Jobs and Pods by the uid of their model, PVCs by namespace and name."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, dict[str, JobView]] = defaultdict(dict)
        self._pods: defaultdict[str, dict[str, PodView]] = defaultdict(dict)
        self._claims: dict[tuple[str, str], ClaimView] = {}
        self._recorded: dict[str, str] = {}
        """The uids of the load Jobs that the models' statuses record, by the model's uid."""

    def record(self, model_uid: str, job_uid: str) -> None:
        """Remember the uid of a model's load Job; only Jobs with such a uid count as loads."""
        self._recorded[model_uid] = job_uid

    def jobs(self, namespace: str, model_uid: str) -> tuple[JobView, ...]:
        """Return the Jobs with the model's label in its namespace; they may be forged."""
        jobs = self._jobs.get(model_uid, {}).values()
        return tuple(job for job in jobs if job.namespace == namespace)

    def pods(self, namespace: str, model_uid: str) -> tuple[PodView, ...]:
        """Return the Pods with the model's label in its namespace; they may be forged, too."""
        pods = self._pods.get(model_uid, {}).values()
        return tuple(pod for pod in pods if pod.namespace == namespace)

    def claim(self, namespace: str, name: str) -> ClaimView | None:
        """Return a PVC, or None if none with this name is known."""
        return self._claims.get((namespace, name))

    def active_jobs(self) -> int:
        """Return how many load Jobs run."""
        return sum(not job.suspended for job in self._loads())

    def suspended_jobs(self) -> int:
        """Return how many load Jobs wait for Kueue."""
        return sum(job.suspended for job in self._loads())

    def active_loads(self) -> dict[str, str]:
        """Return the namespaces of the models whose load Jobs have not ended, by model uid."""
        return {job.model_uid: job.namespace for job in self._loads()}

    def _loads(self) -> list[JobView]:
        # The scrape runs in another thread: list() copies in one step.
        recorded = (
            of_model.get(self._recorded.get(model_uid, ""))
            for model_uid, of_model in list(self._jobs.items())
        )
        return [
            job
            for job in recorded
            if job is not None and job.ended is None and job.role == names.ROLE_LOAD
        ]

    def put_job(self, job: JobView) -> bool:
        """Store a Job unless this version or a newer one is known; return whether it was stored."""
        return _put(self._jobs[job.model_uid], job)

    def put_pod(self, pod: PodView) -> bool:
        """Store a Pod unless this version or a newer one is known; return whether it was stored."""
        return _put(self._pods[pod.model_uid], pod)

    def put_claim(self, claim: ClaimView) -> bool:
        """Store a PVC unless this version or a newer one is known.

        Return whether the models that use the PVC need a pass: it is new, or a field that the rules
        read changed, such as its volume or whether models may use it.
        """
        key = (claim.namespace, claim.name)
        known = self._claims.get(key)
        if known is not None and not is_newer(claim.resource_version, known.resource_version):
            return False  # an event of an earlier PVC of this name may come late
        self._claims[key] = claim
        return known is None or _state(known) != _state(claim)

    def drop_job(self, job: JobView) -> None:
        """Forget a deleted Job."""
        _drop(self._jobs, job.model_uid, job.uid)

    def drop_pod(self, pod: PodView) -> None:
        """Forget a deleted Pod."""
        _drop(self._pods, pod.model_uid, pod.uid)

    def drop_claim(self, claim: ClaimView) -> None:
        """Forget a deleted PVC, but not a newer one of the same name."""
        key = (claim.namespace, claim.name)
        known = self._claims.get(key)
        if known is not None and known.uid == claim.uid:
            del self._claims[key]

    def replace_jobs(self, model_uid: str, jobs: Iterable[JobView], version: str) -> None:
        """Replace the model's Jobs by the list that the API server gave at this resourceVersion.

        Jobs that are newer in the cache stay: an event may overtake the list, or the list may come
        from an old copy.
        """
        _replace(self._jobs, model_uid, jobs, version)

    def replace_pods(self, model_uid: str, pods: Iterable[PodView], version: str) -> None:
        """Replace the model's Pods in the same way as `replace_jobs` does the Jobs."""
        _replace(self._pods, model_uid, pods, version)

    def forget(self, model_uid: str) -> None:
        """Forget the Jobs and Pods of a model that is gone."""
        self._jobs.pop(model_uid, None)
        self._pods.pop(model_uid, None)
        self._recorded.pop(model_uid, None)


def _state(claim: ClaimView) -> ClaimView:
    """Return the PVC without its resourceVersion, which the rules do not read."""
    return replace(claim, resource_version="")


def _put(table: dict[str, V], view: V) -> bool:
    known = table.get(view.uid)
    if known is not None and not is_newer(view.resource_version, known.resource_version):
        return False
    table[view.uid] = view
    return True


def _drop(table: dict[str, dict[str, V]], model_uid: str, uid: str) -> None:
    of_model = table.get(model_uid, {})
    of_model.pop(uid, None)
    if not of_model:
        table.pop(model_uid, None)


def _replace(
    table: defaultdict[str, dict[str, V]], model_uid: str, views: Iterable[V], version: str
) -> None:
    listed = {view.uid: view for view in views}
    for uid, known in table.pop(model_uid, {}).items():
        if uid in listed or not is_newer(version, known.resource_version):
            table[model_uid][uid] = known
    for view in listed.values():
        _put(table[model_uid], view)
