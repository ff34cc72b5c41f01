"""What is known of Jobs, Pods and claims: one LIST at start-up, then events and our own writes.

A watch that had a gap reports no deletions, so an entry may outlive its object; `replace_jobs` and
`replace_pods` take what a real look at the API server gave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol, TypeVar

from sd_api import names
from sd_operator.resources.observed import ClaimView, JobView, PodView


class _Versioned(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


V = TypeVar("V", bound=_Versioned)


def is_newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is newer; what cannot be compared counts as newer."""
    if not (version.isdecimal() and than.isdecimal()):
        return True
    return int(version) > int(than)


class Cache:
    """Jobs and Pods by model uid, claims by namespace and name."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, dict[str, JobView]] = defaultdict(dict)
        self._pods: defaultdict[str, dict[str, PodView]] = defaultdict(dict)
        self._claims: dict[tuple[str, str], ClaimView] = {}

    def jobs(self, namespace: str, model_uid: str) -> tuple[JobView, ...]:
        """The Jobs of one model; labels alone make none of another namespace its own."""
        found = self._jobs.get(model_uid, {}).values()
        return tuple(job for job in found if job.namespace == namespace)

    def pods(self, namespace: str, model_uid: str) -> tuple[PodView, ...]:
        """The Pods of one model's Jobs, likewise."""
        found = self._pods.get(model_uid, {}).values()
        return tuple(pod for pod in found if pod.namespace == namespace)

    def claim(self, namespace: str, name: str) -> ClaimView | None:
        """A claim, or None where there is none."""
        return self._claims.get((namespace, name))

    def active_jobs(self) -> int:
        """How many loader Jobs are at work."""
        return sum(not job.suspended for job in self._loads())

    def suspended_jobs(self) -> int:
        """How many loader Jobs wait for Kueue."""
        return sum(job.suspended for job in self._loads())

    def active_loads(self) -> dict[str, str]:
        """The namespaces of the models whose loader Jobs have not ended, by the models' uids."""
        return {job.model_uid: job.namespace for job in self._loads()}

    def _loads(self) -> list[JobView]:
        # The scrape runs in another thread: list() copies in one step.
        return [
            job
            for of_model in list(self._jobs.values())
            for job in list(of_model.values())
            if job.ended is None and job.role == names.ROLE_LOAD
        ]

    def put_job(self, job: JobView) -> bool:
        """Note a Job, unless that or something newer is known; tells whether it was news."""
        return _put(self._jobs[job.model_uid], job)

    def put_pod(self, pod: PodView) -> bool:
        """Note a Pod, likewise."""
        return _put(self._pods[pod.model_uid], pod)

    def put_claim(self, claim: ClaimView) -> bool:
        """Note a claim, unless something newer is known; tells whether that wakes its models.

        Its existence, its identity and its end do.
        """
        key = (claim.namespace, claim.name)
        known = self._claims.get(key)
        if known is not None and not is_newer(claim.resource_version, known.resource_version):
            return False  # news of a former claim of this name may come late
        self._claims[key] = claim
        return known is None or (known.uid, known.deleting) != (claim.uid, claim.deleting)

    def drop_job(self, job: JobView) -> None:
        """Forget a deleted Job."""
        _drop(self._jobs, job.model_uid, job.uid)

    def drop_pod(self, pod: PodView) -> None:
        """Forget a deleted Pod."""
        _drop(self._pods, pod.model_uid, pod.uid)

    def drop_claim(self, claim: ClaimView) -> None:
        """Forget a deleted claim, but not its namesake made since."""
        key = (claim.namespace, claim.name)
        known = self._claims.get(key)
        if known is not None and known.uid == claim.uid:
            del self._claims[key]

    def replace_jobs(self, model_uid: str, jobs: Iterable[JobView], version: str) -> None:
        """Take the Jobs listed for one model as all there were at this resourceVersion.

        What is newer stays: the answer was on its way meanwhile, or comes from an old copy.
        """
        _replace(self._jobs, model_uid, jobs, version)

    def replace_pods(self, model_uid: str, pods: Iterable[PodView], version: str) -> None:
        """Likewise the Pods."""
        _replace(self._pods, model_uid, pods, version)

    def forget(self, model_uid: str) -> None:
        """Forget a model that is gone."""
        self._jobs.pop(model_uid, None)
        self._pods.pop(model_uid, None)


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
