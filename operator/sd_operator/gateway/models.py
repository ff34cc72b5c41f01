"""Everything that the gateway does with StableDiffusionModels: look up, apply, delete, reload."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

from sd_api import names
from sd_api.status import ConditionType
from sd_operator.base.errors import AlreadyExistsError, ConflictError, NotFoundError
from sd_operator.clients.kube import EVENTS, MODELS, Api, Json
from sd_operator.gateway.errors import RefusedError
from sd_operator.gateway.feed import Change, Feed
from sd_operator.gateway.naming import resource_name

ATTEMPTS = 5
OF_A_SOURCE = ("sha256", "gitRevision", "baseModel", "predictionType", "originalConfig")
"""Fields that describe what one url leads to."""
OF_A_HOST = ("credentialsSecretRef",)
"""Fields that are for the host of one url."""


class Models:
    """The models of all namespaces; each call names the one that the caller's key is for."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._feeds: dict[str, Feed] = {}

    async def close(self) -> None:
        """End all watches."""
        for feed in self._feeds.values():
            await feed.close()

    async def all(self, namespace: str) -> list[Json]:
        """All models of a namespace."""
        return (await self._api.list(MODELS, namespace)).items

    async def get(self, namespace: str, name: str) -> Json:
        """The model of this resource name; raises NotFoundError."""
        return await self._api.get(MODELS, namespace, name)

    async def find(self, namespace: str, model_id: str) -> Json | None:
        """The model of this effective model id; of several, the one that has the files."""
        # What the gateway made has this name; only kubectl's models must be looked for.
        try:
            body = await self._api.get(MODELS, namespace, resource_name(model_id))
        except NotFoundError:
            pass
        else:
            if effective_id(body) == model_id:
                return body
        found = [body for body in await self.all(namespace) if effective_id(body) == model_id]
        found.sort(key=lambda body: (not is_ready(body), body["metadata"]["creationTimestamp"]))
        return found[0] if found else None

    async def apply(self, namespace: str, model_id: str, wanted: Mapping[str, Any]) -> Json:
        """Create the model, or change what differs from what is wanted (see `spec_patch`).

        What is as wanted and does not load (Stalled) is tried again. Raises RefusedError where the
        model of this id is being deleted, or its name is taken.
        """
        for _ in range(ATTEMPTS):
            body = await self.find(namespace, model_id)
            try:
                if body is None:
                    return await self._create(namespace, model_id, wanted)
                return await self._change(namespace, body, wanted)
            except (AlreadyExistsError, ConflictError, NotFoundError) as error:
                # Somebody was faster: what they made is looked at anew.
                if isinstance(error, NotFoundError) and body is None:
                    raise
        raise RefusedError(409, f"Model {model_id} is being changed by others; try again")

    async def _create(self, namespace: str, model_id: str, wanted: Mapping[str, Any]) -> Json:
        name = resource_name(model_id)
        spec = {key: value for key, value in wanted.items() if value is not None}
        if name != model_id:
            spec["modelId"] = model_id
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": spec,
        }
        try:
            return await self._api.create(MODELS, namespace, body)
        except AlreadyExistsError:
            other = await self._api.get(MODELS, namespace, name)
            if effective_id(other) != model_id:
                text = f"Resource {name} exists, and is model {effective_id(other)}"
                raise RefusedError(409, text) from None
            raise

    async def _change(self, namespace: str, body: Json, wanted: Mapping[str, Any]) -> Json:
        metadata = body["metadata"]
        if metadata.get("deletionTimestamp"):
            text = f"Model {effective_id(body)} is being deleted; try again when it is gone"
            raise RefusedError(409, text)
        patch = spec_patch(body.get("spec") or {}, wanted)
        if not patch:
            stalled = condition(body, ConditionType.STALLED).get("status") == "True"
            return await self.reload(namespace, body) if stalled else body
        change = {"metadata": {"uid": metadata["uid"]}, "spec": patch}
        return await self._api.patch(MODELS, namespace, metadata["name"], change)

    async def delete(self, namespace: str, body: Json) -> None:
        """Delete a model, and nothing that was made in its place since; gone already is fine."""
        metadata = body["metadata"]
        try:
            await self._api.delete(MODELS, namespace, metadata["name"], metadata["uid"])
        except (NotFoundError, ConflictError):
            return

    async def reload(self, namespace: str, body: Json) -> Json:
        """Ask for the same source to be loaded again."""
        metadata = body["metadata"]
        annotations = {names.ANNOTATION_RELOAD: secrets.token_hex(8)}
        change = {"metadata": {"uid": metadata["uid"], "annotations": annotations}}
        return await self._api.patch(MODELS, namespace, metadata["name"], change)

    async def events(self, namespace: str, body: Json) -> list[Json]:
        """The Events about a model, the newest first."""
        fields = f"involvedObject.uid={body['metadata']['uid']}"
        events = (await self._api.list(EVENTS, namespace, fields=fields)).items
        return sorted(events, key=lambda event: event.get("lastTimestamp") or "", reverse=True)

    async def watch(self, namespace: str) -> AsyncGenerator[Change, None]:
        """Yield all models of a namespace, then every change, until the listener leaves.

        However many listen, the API server sees one watch of a namespace.
        """
        feed = self._feeds.setdefault(namespace, Feed(self._api, namespace))
        try:
            # A loop that is left does not close its generator by itself, nor in time.
            async with contextlib.aclosing(feed.listen()) as changes:
                async for change in changes:
                    yield change
        finally:
            if not feed.heard and self._feeds.get(namespace) is feed:
                del self._feeds[namespace]


def spec_patch(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch of a spec; empty where it is as wanted. None means: without the field.

    What is not spoken of stays; but another url ends what was said of the former source.
    """
    url = wanted.get("url", spec.get("url"))
    if url != spec.get("url"):
        kept = OF_A_HOST if _host(url) == _host(spec.get("url")) else ()
        ended = {key: None for key in (*OF_A_SOURCE, *OF_A_HOST) if key not in kept}
        wanted = {**ended, **wanted}
    return {key: value for key, value in wanted.items() if spec.get(key) != value}


def _host(url: str | None) -> str | None:
    """The host of a link; None for the Hub's repos."""
    with contextlib.suppress(ValueError):
        return urlsplit(url or "").hostname
    return None


def effective_id(body: Json) -> str:
    """The id that a model is published under."""
    return str((body.get("spec") or {}).get("modelId") or body["metadata"]["name"])


def condition(body: Json, kind: str) -> Json:
    """A condition of a model; empty where it has none of this kind."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})


def is_ready(body: Json) -> bool:
    """Whether a model is served."""
    return condition(body, ConditionType.READY).get("status") == "True"
