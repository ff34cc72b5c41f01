"""The vendor's ten endpoints: POST, JSON, under /api/v1/enterprise/, shapes to the letter."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError

from sd_operator.base import times
from sd_operator.gateway import bodies, cache, examples, sync, vendor
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import RefusedError
from sd_operator.gateway.keys import Key
from sd_operator.gateway.models import effective_id, is_ready

log = logging.getLogger(__name__)

PREFIX = "/api/v1/enterprise"
NOT_FOUND = "Model does not exist on server"
SYNC_RETRY_SECONDS = 10
STARTED = {"message": "model load started", "status": "success"}

Answer = dict[str, Any]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="The key, where the body has none.")),
]
CallT = TypeVar("CallT", bound=vendor.Call)


@dataclass(frozen=True)
class Vendor:
    """What the endpoints do, for a caller whose key is good."""

    context: Context
    syncing: set[str] = field(default_factory=set)
    """Namespaces whose sources are being asked: one round at a time, for it calls others' hosts."""

    async def load_model(self, key: Key, call: vendor.LoadModel) -> Answer:
        """Load a model, or load it anew where the request differs from the one before."""
        await self.context.models.apply(key.namespace, call.model_id, call.spec())
        return STARTED

    async def load_model_v2(self, key: Key, call: vendor.LoadModelV2) -> Answer:
        """Load a model whose type and format are told apart."""
        await self.context.models.apply(key.namespace, call.model_id, call.spec())
        return STARTED

    async def load_vae(self, key: Key, call: vendor.LoadVae) -> Answer:
        """Load a VAE."""
        await self.context.models.apply(key.namespace, call.vae_id, call.spec())
        return {"status": "success", "message": "VAE load started"}

    async def verify_model(self, key: Key, call: vendor.OneModel) -> Answer:
        """Say whether a model is there, complete and verified."""
        body = await self.context.models.find(key.namespace, call.model_id)
        if body is None:
            raise RefusedError(404, NOT_FOUND)
        if not is_ready(body):
            raise RefusedError(404, vendor.not_ready(body))
        return {"status": "success", "message": "Model exists on server"}

    async def get_all_models(self, key: Key, _: vendor.Call) -> Answer:
        """List the models that are there."""
        found = vendor.loaded(await self.context.models.all(key.namespace))
        return {"models": found, "status": "success"}

    async def delete_model(self, key: Key, call: vendor.OneModel) -> Answer:
        """Delete a model and its files."""
        body = await self.context.models.find(key.namespace, call.model_id)
        if body is None:
            raise RefusedError(404, NOT_FOUND)
        await self.context.models.delete(key.namespace, body)
        return {"status": "success", "message": "Model deleted on server"}

    async def sync_models(self, key: Key, _: vendor.SyncModels) -> Answer:
        """Load anew what has changed at its source since."""
        if key.namespace in self.syncing:
            raise RefusedError(429, "The models are being synced already", SYNC_RETRY_SECONDS)
        self.syncing.add(key.namespace)
        try:
            known = await self.context.models.all(key.namespace)
            moved = await sync.moved(known, self.context.settings)
            for body in moved:
                await self.context.models.reload(key.namespace, body)
        finally:
            self.syncing.discard(key.namespace)
        ids = [effective_id(body) for body in moved]
        message = f"{len(ids)} Models synced successfully"
        return {"status": "success", "message": message, "model_list": ids}

    async def schedulers_list(self, _key: Key, _: vendor.Call) -> Answer:
        """List the names of the schedulers that models can be used with."""
        return {"schedulers": list(vendor.SCHEDULERS)}

    async def clear_cache(self, key: Key, _: vendor.Call) -> Answer:
        """Remove from the volume what no model needs."""
        await cache.clear(self.context.api, self.context.settings, key.namespace)
        return {"status": "success", "message": "Cache cleared successfully"}

    async def system_details(self, key: Key, _: vendor.Call) -> Answer:
        """Count the models that are there, and say how long the next one waits."""
        known = await self.context.models.all(key.namespace)
        return {
            "model_count": sum(map(is_ready, known)),
            "queue_time": vendor.queue_seconds(known, times.now()),
            "status": "ok",
        }


def router(context: Context) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix=PREFIX, tags=["The vendor's API"])
    served = Vendor(context)
    _add(made, context, vendor.LoadModel, served.load_model)
    _add(made, context, vendor.LoadModelV2, served.load_model_v2)
    _add(made, context, vendor.LoadVae, served.load_vae)
    _add(made, context, vendor.OneModel, served.verify_model)
    _add(made, context, vendor.Call, served.get_all_models)
    _add(made, context, vendor.OneModel, served.delete_model)
    _add(made, context, vendor.SyncModels, served.sync_models)
    _add(made, context, vendor.Call, served.schedulers_list)
    _add(made, context, vendor.Call, served.clear_cache)
    _add(made, context, vendor.Call, served.system_details)
    return made


def _add(
    made: APIRouter,
    context: Context,
    kind: type[CallT],
    act: Callable[[Key, CallT], Awaitable[Answer]],
) -> None:
    name = act.__name__

    async def endpoint(request: Request, bearer: Bearer) -> Answer:
        fields = bodies.parse(await request.body(), request.headers.get("Content-Type", ""))
        key = context.admit(_key(fields, bearer), request)
        log.info("%s, by key %s of namespace %s", name, key.id, key.namespace)
        try:
            call = kind.model_validate(fields)
        except ValidationError as error:
            raise RefusedError(400, vendor.complaint(error)) from None
        return await act(key, call)

    made.add_api_route(
        f"/{name}",
        endpoint,
        methods=["POST"],
        name=name,
        operation_id=name,
        summary=act.__doc__,
        response_model=None,
        responses=examples.responses(name),
        openapi_extra=examples.request(name, kind),
    )


def _key(fields: Answer, bearer: HTTPAuthorizationCredentials | None) -> str:
    """The key of the body, the vendor's way; else that of the header."""
    key = fields.get("key")
    if isinstance(key, str) and key:
        return key
    return bearer.credentials if bearer else ""
