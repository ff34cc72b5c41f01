"""Finds, creates, changes, deletes and reloads StableDiffusionModel resources for the gateway."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

from sd_api import names
from sd_api.netguard import Resolver, resolve
from sd_api.status import ConditionType
from sd_operator.base.errors import AlreadyExistsError, ConflictError, NotFoundError
from sd_operator.clients.kube import EVENTS, MODELS, Api, Json
from sd_operator.gateway import claims
from sd_operator.gateway.errors import RefusedError
from sd_operator.gateway.feed import Change, Feed
from sd_operator.gateway.naming import resource_name
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.gateway.webhooks import WebhookCheck

ATTEMPTS = 5
"""How often a change is tried when other callers change the model at the same time."""
SOURCE_FIELDS = ("sha256", "gitRevision", "baseModel", "predictionType", "originalConfig")
"""Fields of the spec that are removed when the url changes: they describe the old url's content."""
NAMING_FIELDS = frozenset({"url", "vae", "components", "originalConfig"})
"""Fields of the spec that name the hosts of a load."""
HOST_FIELDS = ("credentialsSecretRef",)
"""Fields of the spec that are removed when the host of the url changes."""
_BY_GATEWAY = {names.ANNOTATION_REQUESTED_BY: names.REQUESTED_BY_GATEWAY}
"""Marks a model of which a gateway caller chose a source. Its loads get only the default tokens
that the administrator allows for such models."""


class Models:
    """The models of all namespaces. Every method takes the namespace of the caller's key."""

    def __init__(self, api: Api, settings: GatewaySettings, resolver: Resolver = resolve) -> None:
        self._api = api
        self._settings = settings
        self._webhook_check = WebhookCheck(settings, resolver)
        self._feeds: dict[str, Feed] = {}

    async def close(self) -> None:
        """Stop all watches, and the webhooks' DNS lookups that have not started."""
        self._webhook_check.close()
        for feed in self._feeds.values():
            await feed.close()

    async def all(self, namespace: str) -> list[Json]:
        """Return all models of a namespace."""
        return (await self._api.list(MODELS, namespace)).items

    async def get(self, namespace: str, name: str) -> Json:
        """Return the model with this resource name; raise NotFoundError if it does not exist."""
        return await self._api.get(MODELS, namespace, name)

    async def find(self, namespace: str, model_id: str) -> Json | None:
        """Return the model with this effective id; None if no model has it.

        If several models have this id, prefer the model whose resource name is the one that the
        gateway would give, then a Ready model, because it has the files, then the oldest model.
        """
        # Only a model that the gateway did not create can have another name than this.
        try:
            body = await self._api.get(MODELS, namespace, resource_name(model_id))
        except NotFoundError:
            pass
        else:
            if effective_id(body) == model_id:
                return body
        matches = [body for body in await self.all(namespace) if effective_id(body) == model_id]
        matches.sort(key=lambda body: (not is_ready(body), body["metadata"]["creationTimestamp"]))
        return matches[0] if matches else None

    async def create(self, namespace: str, body: Json, *, dry_run: bool) -> None:
        """Create a model, or only validate it.

        Raise FieldRefusedError if its PVC or its webhook is refused.
        """
        await self._webhook_check.check(body["spec"].get("webhook"))
        await claims.check(self._api, self._settings, namespace, body)
        body = {**body, "metadata": {**body["metadata"], "annotations": dict(_BY_GATEWAY)}}
        await self._api.create(MODELS, namespace, body, dry_run=dry_run)

    async def apply(self, namespace: str, model_id: str, wanted: Mapping[str, Any]) -> Json:
        """Create the model, or patch the fields that differ from `wanted` (see `spec_patch`).

        If no field differs but the model is stalled, load it again. Raise RefusedError if the model
        is being deleted, if a model with another id has its resource name, if its PVC is refused,
        if the webhook could never be called, or if other callers keep changing the model.
        """
        await self._webhook_check.check(wanted.get("webhook"))
        for _ in range(ATTEMPTS):
            body = await self.find(namespace, model_id)
            try:
                if body is None:
                    return await self._create(namespace, model_id, wanted)
                return await self._change(namespace, body, wanted)
            except (AlreadyExistsError, ConflictError, NotFoundError) as error:
                # Another caller changed the model in between: read it again and retry. A creation
                # that fails with NotFoundError is not retried: usually, the namespace is missing.
                if isinstance(error, NotFoundError) and body is None:
                    raise
        text = f"Other callers keep changing model {model_id}; try again"
        raise RefusedError(409, text)

    async def _create(self, namespace: str, model_id: str, wanted: Mapping[str, Any]) -> Json:
        name = resource_name(model_id)
        spec = {key: value for key, value in wanted.items() if value is not None}
        if name != model_id:
            spec["modelId"] = model_id
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "annotations": dict(_BY_GATEWAY)},
            "spec": spec,
        }
        try:
            return await self._api.create(MODELS, namespace, body)
        except AlreadyExistsError as taken:
            try:
                other = await self._api.get(MODELS, namespace, name)
            except NotFoundError:
                # The other model is gone: `apply` tries again.
                raise taken from None
            if effective_id(other) != model_id:
                text = (
                    f"The resource name {name} belongs to model {effective_id(other)};"
                    " use another id, or delete that model"
                )
                raise RefusedError(409, text) from None
            raise

    async def _change(self, namespace: str, body: Json, wanted: Mapping[str, Any]) -> Json:
        _refuse_if_deleting(body)
        patch = spec_patch(body.get("spec") or {}, wanted)
        if not patch:
            stalled = condition(body, ConditionType.STALLED).get("status") == "True"
            return await self.reload(namespace, body) if stalled else body
        return await self._patch(namespace, body, patch, dry_run=False)

    async def edit(
        self, namespace: str, body: Json, patch: Mapping[str, Any], *, dry_run: bool = False
    ) -> Json:
        """Patch the spec of the model with the uid of `body`, or only validate the patch.

        Raise RefusedError if the model is being deleted, and FieldRefusedError if its PVC or its
        webhook is refused.
        """
        _refuse_if_deleting(body)
        await self._webhook_check.check(patch.get("webhook"))
        return await self._patch(namespace, body, patch, dry_run=dry_run)

    async def _patch(
        self, namespace: str, body: Json, patch: Mapping[str, Any], *, dry_run: bool
    ) -> Json:
        metadata = body["metadata"]
        await claims.check(self._api, self._settings, namespace, body)
        mark = {"annotations": dict(_BY_GATEWAY)} if NAMING_FIELDS & patch.keys() else {}
        change = {"metadata": {"uid": metadata["uid"], **mark}, "spec": patch}
        return await self._api.patch(MODELS, namespace, metadata["name"], change, dry_run=dry_run)

    async def delete(self, namespace: str, body: Json) -> None:
        """Delete the model with the uid of `body`; do nothing if it no longer exists."""
        metadata = body["metadata"]
        try:
            await self._api.delete(MODELS, namespace, metadata["name"], metadata["uid"])
        except (NotFoundError, ConflictError):
            return

    async def reload(self, namespace: str, body: Json) -> Json:
        """Set the reload annotation, so that the operator loads the model again."""
        metadata = body["metadata"]
        annotations = {names.ANNOTATION_RELOAD: secrets.token_hex(8)}
        change = {"metadata": {"uid": metadata["uid"], "annotations": annotations}}
        return await self._api.patch(MODELS, namespace, metadata["name"], change)

    async def events(self, namespace: str, body: Json) -> list[Json]:
        """Return the Events about a model, newest first."""
        fields = f"involvedObject.uid={body['metadata']['uid']}"
        events = (await self._api.list(EVENTS, namespace, fields=fields)).items
        return sorted(events, key=lambda event: event.get("lastTimestamp") or "", reverse=True)

    async def watch(self, namespace: str) -> AsyncGenerator[Change, None]:
        """Yield all models of a namespace, then the changes, until the caller closes the generator.

        All callers for a namespace share one watch on the API server.
        """
        feed = self._feeds.setdefault(namespace, Feed(self._api, namespace))
        try:
            # Leaving an `async for` does not close its generator, which would keep the watch open.
            async with contextlib.aclosing(feed.listen()) as changes:
                async for change in changes:
                    yield change
        finally:
            if not feed.has_listeners and self._feeds.get(namespace) is feed:
                del self._feeds[namespace]


def spec_patch(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch that gives a spec the wanted fields; empty if it has them.

    The value None removes a field. Fields that are not in `wanted` stay, except that a new url
    removes SOURCE_FIELDS, and also HOST_FIELDS if its host differs from the old url's host.
    """
    url = wanted.get("url", spec.get("url"))
    if url != spec.get("url"):
        kept = HOST_FIELDS if _host(url) == _host(spec.get("url")) else ()
        removed = {key: None for key in (*SOURCE_FIELDS, *HOST_FIELDS) if key not in kept}
        wanted = {**removed, **wanted}
    return {key: value for key, value in wanted.items() if spec.get(key) != value}


def _refuse_if_deleting(body: Json) -> None:
    if body["metadata"].get("deletionTimestamp"):
        text = f"Model {effective_id(body)} is being deleted; try again when it is gone"
        raise RefusedError(409, text)


def _host(url: str | None) -> str | None:
    """Return the host of a link; None for a Hub repo id, and for a url that cannot be read."""
    with contextlib.suppress(ValueError):
        return urlsplit(url or "").hostname
    return None


def effective_id(body: Json) -> str:
    """Return the id under which a model is published."""
    return str((body.get("spec") or {}).get("modelId") or body["metadata"]["name"])


def condition(body: Json, kind: str) -> Json:
    """Return a model's condition of this type; an empty mapping if it has none."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((item for item in conditions if item.get("type") == kind), {})


def is_ready(body: Json) -> bool:
    """Return whether a model is loaded and published."""
    return condition(body, ConditionType.READY).get("status") == "True"
