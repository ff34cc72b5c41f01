"""The Lease by which a sweep of a namespace's volume is requested.

Whoever wants a sweep writes the time into `renewTime`. The operator copies this time into
`acquireTime` once it has made a Job, whose name it writes into `holderIdentity` and whose uid it
writes into an annotation. The request is open while the two times differ, so it outlives a lost
watch and a restart of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sd_api import names
from sd_operator.base import times
from sd_operator.resources.observed import JobState, JobView

Json = dict[str, Any]

RECENT = timedelta(minutes=1)
"""A sweep that began within this time fulfils a request even if it has ended: a namespace gets at
most one sweep a minute."""


@dataclass(frozen=True)
class SweepLease:
    """The Lease of a namespace."""

    body: Mapping[str, Any]
    """The Lease in the API server's JSON."""

    @classmethod
    def empty(cls) -> Json:
        """Return a Lease without a request, to be created."""
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": names.SWEEP_LEASE,
                "labels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
            },
        }

    @property
    def is_open(self) -> bool:
        """Whether a sweep is requested and its Job is not made yet."""
        spec = self._spec
        requested = spec.get("renewTime")
        return times.parse(requested) is not None and requested != spec.get("acquireTime")

    def request(self, now: datetime) -> Json:
        """Return the Lease with a request for a sweep."""
        return self._with(renewTime=times.stamp_micro(now))

    @property
    def holder(self) -> str:
        """Name of the newest sweep Job that the operator recorded; empty if it recorded none."""
        return self._spec.get("holderIdentity") or ""

    def is_fulfilled_by(self, job: JobView, now: datetime) -> bool:
        """Whether a Job, made for an earlier request, fulfils this one: it runs, or just began.

        Its name and uid must be those that the operator recorded: anybody who may create Jobs can
        give them any name, labels and owner.
        """
        recorded = (self.holder, self._annotations.get(names.ANNOTATION_SWEEP_UID))
        if (job.name, job.uid) != recorded or job.deleting:
            return False
        runs = job.state is JobState.RUNNING and not job.suspended
        return runs or now - job.created < RECENT

    def answer(self, name: str, uid: str) -> Json:
        """Return the Lease with its request fulfilled by the Job of this name and uid."""
        lease = self._with(acquireTime=self._spec.get("renewTime"), holderIdentity=name)
        annotations = {**self._annotations, names.ANNOTATION_SWEEP_UID: uid}
        return {**lease, "metadata": {**self.body["metadata"], "annotations": annotations}}

    @property
    def _spec(self) -> Mapping[str, Any]:
        return self.body.get("spec") or {}

    @property
    def _annotations(self) -> Mapping[str, str]:
        return self.body["metadata"].get("annotations") or {}

    def _with(self, **fields: object) -> Json:
        return {**self.body, "spec": {**self._spec, **fields}}
