"""The Lease by which a sweep of a namespace's volume is requested.

Whoever wants a sweep writes the time into `renewTime`. The operator copies this time into
`acquireTime` once it has made a Job, whose name it writes into `holderIdentity`. The request is
open while the two times differ, so it outlives a lost watch and a restart of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sd_api import names
from sd_operator.base import times

Json = dict[str, Any]


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

    def answer(self, job: str) -> Json:
        """Return the Lease with its request fulfilled by a Job."""
        return self._with(acquireTime=self._spec.get("renewTime"), holderIdentity=job)

    @property
    def _spec(self) -> Mapping[str, Any]:
        return self.body.get("spec") or {}

    def _with(self, **fields: object) -> Json:
        return {**self.body, "spec": {**self._spec, **fields}}
