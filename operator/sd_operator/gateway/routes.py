"""The ten endpoints of the vendor's API (see gateway/vendor.py), and our own GET `status`.

The ten are called by POST, and their JSON is exactly that of the vendor.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from sd_operator.base.errors import ApiError
from sd_operator.gateway import bodies, cache, examples, sync, vendor
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import RefusedError, map_error
from sd_operator.gateway.keys import Key
from sd_operator.gateway.models import effective_id, is_ready

log = logging.getLogger(__name__)

PREFIX = "/api/v1/enterprise"
NOT_FOUND = "Model does not exist on server"
OTHER_ENDPOINT = (
    "This gateway has no such endpoint: it loads models. Images come from an inference server that"
    " opens the published folder; docs/gateway.md lists the endpoints"
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
SYNC_RETRY_SECONDS = 10
STARTED = {"message": "model load started", "status": "success"}

Json = dict[str, Any]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="The API key, if the body has no `key`.")),
]
CallT = TypeVar("CallT", bound=vendor.Call)


@dataclass(frozen=True)
class Vendor:
    """The endpoints' actions, for callers with a valid key.

    An action's docstring is the summary of its endpoint in the OpenAPI document.
    """

    context: Context
    syncing: set[str] = field(default_factory=set)
    """Namespaces with a sync in progress. A namespace has at most one: a sync calls many hosts."""

    async def load_model(self, key: Key, call: vendor.LoadModel) -> Json:
        """Load a model; load it again if the request differs from the previous one."""
        await self.context.models.apply(key.namespace, call.model_id, call.spec())
        return STARTED

    async def load_model_v2(self, key: Key, call: vendor.LoadModelV2) -> Json:
        """Load a model; category and format are separate fields."""
        await self.context.models.apply(key.namespace, call.model_id, call.spec())
        return STARTED

    async def load_vae(self, key: Key, call: vendor.LoadVae) -> Json:
        """Load a VAE."""
        await self.context.models.apply(key.namespace, call.vae_id, call.spec())
        return {"status": "success", "message": "VAE load started"}

    async def verify_model(self, key: Key, call: vendor.OneModel) -> Json:
        """Check whether a model is loaded and verified."""
        body = await self.context.models.find(key.namespace, call.model_id)
        if body is None:
            raise RefusedError(404, NOT_FOUND)
        if not is_ready(body):
            raise RefusedError(404, vendor.not_ready(body), details=vendor.progress(body))
        return {"status": "success", "message": "Model exists on server"}

    async def get_all_models(self, key: Key, _: vendor.Call) -> Json:
        """List the loaded models."""
        models = vendor.loaded(await self.context.models.all(key.namespace))
        return {"models": models, "status": "success"}

    async def delete_model(self, key: Key, call: vendor.OneModel) -> Json:
        """Delete a model and its files."""
        body = await self.context.models.find(key.namespace, call.model_id)
        if body is None:
            raise RefusedError(404, NOT_FOUND)
        await self.context.models.delete(key.namespace, body)
        return {"status": "success", "message": "Model deleted on server"}

    async def sync_models(self, key: Key, _: vendor.SyncModels) -> Json:
        """Load every model again whose source has changed since it was loaded."""
        if key.namespace in self.syncing:
            raise RefusedError(429, "A sync of the models is already running", SYNC_RETRY_SECONDS)
        self.syncing.add(key.namespace)
        try:
            models = await self.context.models.all(key.namespace)
            moved = await sync.moved(models, self.context.settings)
            for body in moved:
                await self.context.models.reload(key.namespace, body)
        finally:
            self.syncing.discard(key.namespace)
        ids = [effective_id(body) for body in moved]
        message = f"{len(ids)} Models synced successfully"
        return {"status": "success", "message": message, "model_list": ids}

    async def schedulers_list(self, _key: Key, _: vendor.Call) -> Json:
        """List the names of the supported schedulers."""
        return {"schedulers": list(vendor.SCHEDULERS)}

    async def clear_cache(self, key: Key, _: vendor.Call) -> Json:
        """Remove files that no model needs from the volume."""
        await cache.clear(self.context, key.namespace)
        return {"status": "success", "message": "Cache cleared successfully"}

    async def system_details(self, key: Key, _: vendor.Call) -> Json:
        """Count the loaded models, and report how long the oldest queued model has waited."""
        models = await self.context.models.all(key.namespace)
        return {
            "model_count": sum(map(is_ready, models)),
            "queue_time": vendor.queue_seconds(models, self.context.clock.now()),
            "status": "ok",
        }


def router(context: Context) -> APIRouter:
    """Return the routes of all endpoints."""
    routes = APIRouter(prefix=PREFIX, tags=["The vendor's API"])
    actions = Vendor(context)
    _add(routes, context, vendor.LoadModel, actions.load_model)
    _add(routes, context, vendor.LoadModelV2, actions.load_model_v2)
    _add(routes, context, vendor.LoadVae, actions.load_vae)
    _add(routes, context, vendor.OneModel, actions.verify_model)
    _add_status(routes, context, actions)
    _add(routes, context, vendor.Call, actions.get_all_models)
    _add(routes, context, vendor.OneModel, actions.delete_model)
    _add(routes, context, vendor.SyncModels, actions.sync_models)
    _add(routes, context, vendor.Call, actions.schedulers_list)
    _add(routes, context, vendor.Call, actions.clear_cache)
    _add(routes, context, vendor.Call, actions.system_details)
    return routes


def others(endpoints: APIRouter) -> APIRouter:
    """Return a route that refuses all other requests under /api.

    These are requests for the vendor's other endpoints and APIs, and requests for `endpoints` with
    a method that the endpoint does not have.
    """
    routes = APIRouter(prefix="/api")

    @routes.api_route("/{name:path}", methods=_METHODS, include_in_schema=False)
    async def other(request: Request) -> Json:
        """Refuse the call: 405 for a wrong method, 404 for an unknown endpoint."""
        for route in endpoints.routes:
            if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL:
                methods = sorted(route.methods or ())
                message = f"This endpoint takes only {' or '.join(methods)} requests"
                raise HTTPException(405, message, {"Allow": ", ".join(methods)})
        raise RefusedError(404, OTHER_ENDPOINT)

    return routes


def _add(
    routes: APIRouter,
    context: Context,
    kind: type[CallT],
    act: Callable[[Key, CallT], Awaitable[Json]],
) -> None:
    """Add the endpoint that reads a request as `kind` and passes it to `act`."""
    name = act.__name__

    async def endpoint(request: Request, bearer: Bearer) -> Json:
        if bearer is not None:
            # A wrong key in the header is refused before the body is read.
            context.find(bearer.credentials, request)
        try:
            fields = bodies.parse(await request.body(), request.headers.get("Content-Type", ""))
        except bodies.BodyError:
            context.count_failure(request, "Too many unreadable bodies")
            raise
        key = context.admit(_key(fields, bearer), request)
        log.info("%s called with key %s for namespace %s", name, key.id, key.namespace)
        return {**await _answer(kind, act, key, fields), **vendor.warnings(kind, fields)}

    routes.add_api_route(
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
    routes.add_api_route(f"/{name}/", endpoint, methods=["POST"], include_in_schema=False)


def _add_status(routes: APIRouter, context: Context, actions: Vendor) -> None:
    """Add the endpoint `status`: it responds as verify_model does, but is a GET without a body."""

    async def status(request: Request, bearer: Bearer) -> Json:
        key = context.admit(bearer.credentials if bearer else "", request)
        log.info("status called with key %s for namespace %s", key.id, key.namespace)
        fields = {"model_id": request.path_params["model_id"]}
        return await _answer(vendor.OneModel, actions.verify_model, key, fields)

    routes.add_api_route(
        "/status/{model_id}",
        status,
        methods=["GET"],
        name="status",
        operation_id="status",
        summary="Report how far a model's load is; the responses are those of verify_model.",
        response_model=None,
        responses=examples.responses("status", without=(409, 413)),
        openapi_extra={"parameters": [examples.MODEL_ID]},
    )
    routes.add_api_route(
        "/status/{model_id}/", status, methods=["GET"], response_model=None, include_in_schema=False
    )


async def _answer(
    kind: type[CallT], act: Callable[[Key, CallT], Awaitable[Json]], key: Key, fields: Json
) -> Json:
    """Validate a request and pass it to `act`. Messages of a RefusedError name request fields."""
    try:
        call = kind.model_validate(fields)
    except ValidationError as error:
        raise RefusedError(400, vendor.complaint(error)) from None
    try:
        return await act(key, call)
    except (ApiError, RefusedError) as error:
        refused = map_error(error)
        message = vendor.in_callers_words(kind, refused.message)
        raise RefusedError(refused.status, message, refused.retry_after, refused.details) from None


def _key(fields: Json, bearer: HTTPAuthorizationCredentials | None) -> str:
    """Return the key from the body, where the vendor's clients send it, or from the header."""
    key = fields.get("key")
    if isinstance(key, str) and key:
        return key
    return bearer.credentials if bearer else ""
