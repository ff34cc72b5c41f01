"""Changes of models that meet the changes of other callers, with an API server in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typing_extensions import override

from sd_operator.base.errors import AlreadyExistsError, NotFoundError
from sd_operator.clients.kube import Api, Json, Listing, Resource
from sd_operator.gateway.models import Models
from sd_operator.gateway.settings import GatewaySettings


class Vanishing(Api):
    """An API server without models: one that had the name is deleted after the first creation."""

    def __init__(self) -> None:
        super().__init__(None)
        self.creations = 0

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        raise NotFoundError(f"{name} not found", 404)

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        return Listing([], "1")

    @override
    async def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False
    ) -> Json:
        self.creations += 1
        if self.creations == 1:
            raise AlreadyExistsError("it exists", 409)
        return body


def test_model_is_created_if_the_one_with_its_name_vanishes() -> None:
    """The caller does not see that another model had the name for a moment."""
    api = Vanishing()

    async def apply() -> Json:
        models = Models(api, GatewaySettings(Path("keys")))
        try:
            return await models.apply("art", "sketch", {"url": "org/sketch"})
        finally:
            await models.close()

    created = asyncio.run(apply())
    assert (created["metadata"]["name"], created["spec"]) == ("sketch", {"url": "org/sketch"})
    assert api.creations == 2
