"""The Lease that decides which operator works, by the kubernetes client's election.

The client's own lock waits up to five minutes for a response, raises transport errors, and never
gives the Lease back; its loop goes on after the leader's work has ended. So each attempt here soon
returns True or False, and the loop is in `runtime.election`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Self

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from sd_api import names
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.clients.kube import Count, load_configuration

log = logging.getLogger(__name__)

DURATION_SECONDS = 9
"""How long other candidates wait after the last renewal before they take the Lease."""
RENEW_SECONDS = 6.0
"""A leader that could not renew the Lease for this long stops, before another may take it."""
RETRY_SECONDS = 2.0
REQUEST_SECONDS = 2.0

Found = tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]


class Lease:
    """One candidate for the Lease; used as a context manager, by one task at a time."""

    lapses_in = 0.0
    """Seconds from the last attempt until the Lease of another holder lapses. 0 if the Lease has
    lapsed or is ours, if the attempt had a `problem`, or if no holder is known."""

    def __init__(self, client: ApiClient, namespace: str, count: Count) -> None:
        self.identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self._client = client
        self._lock = _Lock(names.FIELD_MANAGER, namespace, self.identity, client, count)
        self._election = LeaderElection(
            Config(
                self._lock,
                DURATION_SECONDS,
                RENEW_SECONDS,
                RETRY_SECONDS,
                onstarted_leading=_nothing,
                onstopped_leading=_nothing,
            )
        )
        # The client logs a traceback whenever another candidate was faster, which is not an error.
        logging.getLogger("kubernetes.aio.leaderelection").setLevel(logging.CRITICAL)

    @classmethod
    async def open(cls, kubeconfig: Path | None, namespace: str, count: Count) -> Self:
        """Make a client; nothing is sent yet."""
        client = ApiClient(await load_configuration(kubeconfig))
        client.user_agent = names.FIELD_MANAGER  # the API server takes the field manager from it
        return cls(client, namespace, count)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    @property
    def problem(self) -> str:
        """Why the last completed request failed; empty if it succeeded.

        It is also empty if the Lease does not exist, or if another candidate was faster.
        """
        return self._lock.problem

    @property
    def holder(self) -> str:
        """The last known holder of the Lease; empty if none is known."""
        record = self._election.observed_record
        return (record.holder_identity if record else None) or ""

    async def hold(self) -> bool:
        """Take or renew the Lease; return whether it is ours now."""
        held = await self._election.try_acquire_or_renew()
        awaited = not held and not self.problem and self.holder
        self.lapses_in = self._remaining() if awaited else 0.0
        return held

    def _remaining(self) -> float:
        """Return the seconds until the election treats the other holder's Lease as lapsed."""
        # The election stores the time of day of the last renewal that it saw.
        seen = self._election.observed_time_milliseconds / 1000
        return max(0.0, seen + DURATION_SECONDS - SYSTEM_CLOCK.now().timestamp())

    async def release(self) -> None:
        """Release the Lease if this process holds it, so that another can take it at once."""
        if await self._lock.release():
            log.info("the Lease is given back")


async def _nothing() -> None:
    """Do nothing: the client's callbacks are not used."""


class _Lock(LeaseLock):
    """The client's lock with short timeouts and counted requests; returns errors, raises none."""

    def __init__(
        self, name: str, namespace: str, identity: str, client: ApiClient, count: Count
    ) -> None:
        super().__init__(name, namespace, identity, client)
        self._count = count
        self.problem = ""

    async def get(self, name: str, namespace: str) -> Found:
        """Read the Lease."""
        answer = await self._ask("get", self.api_instance.read_namespaced_lease(name, namespace))
        if isinstance(answer, ApiException):
            return False, answer
        self.lease_reference = answer
        return True, self.election_record(answer)

    async def create(
        self, name: str, namespace: str, election_record: LeaderElectionRecord
    ) -> bool:
        """Create the Lease, held by this candidate."""
        body = V1Lease(
            api_version="coordination.k8s.io/v1",
            kind="Lease",
            metadata=V1ObjectMeta(name=name),
            spec=self.update_lease(election_record),
        )
        request = self.api_instance.create_namespaced_lease(namespace, body)
        return isinstance(await self._ask("create", request), V1Lease)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Take or renew the Lease, unless it has changed since it was read."""
        lease = self.lease_reference
        if lease is None:
            return False
        lease.spec = self.update_lease(updated_record, lease.spec)
        request = self.api_instance.replace_namespaced_lease(name, namespace, lease)
        return isinstance(await self._ask("update", request), V1Lease)

    async def release(self) -> bool:
        """Give the Lease back if this candidate holds it; return whether that succeeded."""
        _, record = await self.get(self.name, self.namespace)
        ours = isinstance(record, LeaderElectionRecord) and record.holder_identity == self.identity
        lease = self.lease_reference
        if not ours or lease is None or lease.spec is None:
            return False
        lease.spec.holder_identity = None
        request = self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
        return isinstance(await self._ask("update", request), V1Lease)

    async def _ask(self, verb: str, request: Awaitable[V1Lease]) -> V1Lease | ApiException:
        """Await a request; return the Lease or the error."""
        what = f"{verb} Lease {self.namespace}/{self.name}"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                lease = await request
        except ApiException as refused:
            self._count(verb, "leases", str(refused.status))
            # A missing Lease and a faster candidate are part of every election.
            expected = (verb, refused.status) == ("get", 404) or refused.status == 409
            self.problem = "" if expected else f"{what}: {_message(refused)}"
            return refused
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._count(verb, "leases", "error")
            self.problem = f"{what}: {str(error) or f'no response within {REQUEST_SECONDS:g} s'}"
            return ApiException(reason=self.problem)
        self._count(verb, "leases", "201" if verb == "create" else "200")
        self.problem = ""
        return lease


def _message(refused: ApiException) -> str:
    """Return the API server's own message, or else the HTTP status."""
    try:
        return str(json.loads(refused.body or "")["message"])
    except (KeyError, TypeError, ValueError):
        return f"HTTP {refused.status} {refused.reason}"
