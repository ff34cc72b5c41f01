"""Bounds the server's connections: how many are open, and how long they wait for their client.

A client without a key can hold a connection only while the gateway waits for this client: for the
head or the body of a request, for the next request, or until the client reads the response. The
gateway closes the connection at a deadline, or earlier if there are too many connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from sd_operator.gateway.limits import network

REQUEST_SECONDS = 10.0
"""How long the head of a request may take to arrive, and how long the body may take after it."""
READ_SECONDS = 60.0
"""How long a client may take to read a response."""
LATE_BODY = "The request body did not arrive in time; send the call again"


class Awaited(Enum):
    """What a connection waits for from its client."""

    HEAD = auto()
    BODY = auto()
    READ = auto()
    """The client has to read the response. When it has done so, it may send another request, for
    which uvicorn waits a shorter time than READ_SECONDS."""

    @property
    def seconds(self) -> float:
        """How long a connection waits before the gateway closes it."""
        return READ_SECONDS if self is Awaited.READ else REQUEST_SECONDS


class Bounds:
    """Counts the open connections, and knows which of them wait for their client.

    If a new connection exceeds a limit, the connection that has waited longest for its client is
    closed, so clients that never finish their requests do not keep other clients out. If the
    gateway is at work for all other connections, the new connection is closed. The limit per
    address is applied in the same way to the connections of one address.
    """

    def __init__(self, most: int, most_per_address: int, trusted_proxies: Sequence[str]) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._trusted = [ipaddress.ip_network(proxies) for proxies in trusted_proxies]
        self._addresses: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}
        """The connections that wait for their client; the longest wait comes first."""

    def add(self, connection: Connection, peer: str) -> None:
        """Count a new connection, which waits for its client; close one if there are too many."""
        address = network(peer)
        self._addresses[connection] = address
        self._counts[address] += 1
        self._waiting[connection] = None
        if not self._is_trusted(peer) and self._counts[address] > self._most_per_address:
            self._close(next(c for c in self._waiting if self._addresses[c] == address))
        elif len(self._addresses) > self._most:
            self._close(next(iter(self._waiting)))

    def waits(self, connection: Connection, *, waits: bool) -> None:
        """Record that a connection begins to wait for its client, or no longer waits."""
        self._waiting.pop(connection, None)
        if waits and connection in self._addresses:
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._waiting.pop(connection, None)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def _close(self, connection: Connection) -> None:
        self.remove(connection)
        connection.transport.abort()

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in proxies for proxies in self._trusted)


class Connection(H11Protocol):
    """A connection with deadlines for its client. It counts towards the bounds of its server."""

    bounds: Bounds
    _awaited: Awaited | None = None
    _request: RequestResponseCycle | None = None
    """The request whose body the gateway waits for."""
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and start the deadline for the head of its first request."""
        super().connection_made(transport)
        self.bounds.add(self, self.client[0] if self.client else "")
        self._wait_for(Awaited.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self._wait_for(None)
        self.bounds.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        if self._awaited is Awaited.READ and self.conn.their_state is h11.IDLE:
            self._wait_for(Awaited.HEAD)
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Start the deadline for the client's next step.

        The client has to read the response, or to send the rest of its request's body.
        """
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        """Start the deadline for reading, because the client reads more slowly than we write."""
        super().pause_writing()
        self._follow()

    def resume_writing(self) -> None:
        """Stop the deadline for reading, and start that of the client's next step, if any."""
        super().resume_writing()
        self._follow()

    def _follow(self) -> None:
        """Start the deadline for the client's next step; stop it while the gateway is at work."""
        state = self.conn.their_state
        if self.flow.write_paused:
            self._wait_for(Awaited.READ)
        elif state is h11.SEND_BODY:
            self._wait_for(Awaited.BODY, self.cycle)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._wait_for(None)
        elif self._awaited is not Awaited.HEAD or state is not h11.IDLE:
            self._wait_for(Awaited.READ)

    def _wait_for(
        self, awaited: Awaited | None, request: RequestResponseCycle | None = None
    ) -> None:
        """Start the deadline for the client's next step, unless this deadline runs already.

        awaited: None stops the deadline.
        """
        if (awaited, request) == (self._awaited, self._request):
            return
        self._awaited, self._request = awaited, request
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if awaited is not None:
            self._deadline = self.loop.call_later(awaited.seconds, self._expire)
        self.bounds.waits(self, waits=awaited is not None)

    def _expire(self) -> None:
        if self._awaited is Awaited.BODY and not self.cycle.response_started:
            self._refuse()
        else:
            self.transport.abort()

    def _refuse(self) -> None:
        """Answer that the body came too late, and close the connection."""
        # The application still waits for the body; it must not answer as well.
        self.cycle.disconnected = True
        body = json.dumps({"status": "error", "message": LATE_BODY}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        events: list[Any] = [
            h11.Response(status_code=408, headers=[*headers.items(), ("Connection", "close")]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event))
        self.transport.close()
        self._wait_for(Awaited.READ)
