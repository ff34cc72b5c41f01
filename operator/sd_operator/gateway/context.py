"""The objects that all routes share, and the authentication and counting of callers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.requests import Request

from sd_api.netguard import Resolver, resolve
from sd_operator.base.times import SYSTEM_CLOCK, Clock
from sd_operator.clients.kube import Api
from sd_operator.gateway.errors import RefusedError
from sd_operator.gateway.keys import Key, Keys
from sd_operator.gateway.limits import Limiter, network
from sd_operator.gateway.lookups import Lookups
from sd_operator.gateway.models import Models
from sd_operator.gateway.settings import GatewaySettings

INVALID_KEY = "Invalid API key"


@dataclass(frozen=True)
class Context:
    """The objects that make up a running gateway."""

    settings: GatewaySettings
    api: Api
    models: Models
    lookups: Lookups
    keys: Keys
    calls: Limiter
    """Limits the calls of each key."""
    failures: Limiter
    """Limits the calls with a wrong key or an unreadable body from each address."""
    clock: Clock

    @classmethod
    def of(
        cls,
        settings: GatewaySettings,
        api: Api,
        clock: Clock = SYSTEM_CLOCK,
        resolver: Resolver = resolve,
    ) -> Context:
        """Build the context from the settings."""
        return cls(
            settings=settings,
            api=api,
            models=Models(api, settings, resolver),
            lookups=Lookups(settings, clock, resolver),
            keys=Keys(settings.keys_file),
            calls=Limiter(settings.calls_per_minute, clock.monotonic),
            failures=Limiter(settings.failures_per_minute, clock.monotonic),
            clock=clock,
        )

    async def close(self) -> None:
        """Stop all watches, and close the connections of look-ups."""
        await self.models.close()
        await self.lookups.close()

    def admit(self, key: str, request: Request) -> Key:
        """Return the key and count the call; raise RefusedError if it is wrong or at its limit."""
        match = self.find(key, request)
        self.count(match)
        return match

    def find(self, key: str, request: Request) -> Key:
        """Return the key; if it is wrong, count a failure of the address and raise RefusedError.

        A correct key is accepted even from an address with too many failures: callers can share an
        address.
        """
        match = self.keys.find(key)
        if match is None:
            self.count_failure(request, "Too many wrong API keys")
            raise RefusedError(401, INVALID_KEY)
        return match

    def count_failure(self, request: Request, message: str) -> None:
        """Count a failed call of an address; raise RefusedError if there are too many of them."""
        address = request.client.host if request.client else ""
        _check_limit(self.failures.take(network(address)), message)

    def count(self, key: Key) -> None:
        """Count a call of a key; raise RefusedError if it exceeds the limit."""
        _check_limit(self.calls.take(key.id), "Too many calls")


def _check_limit(wait: float, message: str) -> None:
    if wait:
        raise RefusedError(429, f"{message}; try again later", math.ceil(wait))
