"""What all routes share, and the one place where callers are let in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.requests import Request

from sd_operator.clients.kube import Api
from sd_operator.gateway.errors import RefusedError
from sd_operator.gateway.keys import Key, Keys
from sd_operator.gateway.limits import Limiter, network
from sd_operator.gateway.models import Models
from sd_operator.gateway.settings import Settings

INVALID_KEY = "Invalid API key"


@dataclass(frozen=True)
class Context:
    """The parts of a running gateway."""

    settings: Settings
    api: Api
    models: Models
    keys: Keys
    calls: Limiter
    failures: Limiter

    @classmethod
    def of(cls, settings: Settings, api: Api) -> Context:
        """The parts that these settings ask for."""
        return cls(
            settings=settings,
            api=api,
            models=Models(api),
            keys=Keys(settings.keys_file),
            calls=Limiter(settings.calls_per_minute),
            failures=Limiter(settings.failures_per_minute),
        )

    def admit(self, key: str, request: Request) -> Key:
        """Whose key it is; raises RefusedError for a wrong key, and for calls that are too many.

        A good key is let in from an address with too many failures too: others may share it.
        """
        found = self.keys.find(key)
        if found is None:
            address = request.client.host if request.client else ""
            _within(self.failures.take(network(address)), "Too many wrong API keys")
            raise RefusedError(401, INVALID_KEY)
        self.count(found)
        return found

    def count(self, key: Key) -> None:
        """Count a call of a key that is known; raises RefusedError for one too many."""
        _within(self.calls.take(key.id), "Too many calls")


def _within(wait: float, otherwise: str) -> None:
    if wait:
        raise RefusedError(429, f"{otherwise}; try again later", math.ceil(wait))
