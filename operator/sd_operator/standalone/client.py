"""The controllers' client of the Kubernetes API: requests, watches, and caches."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config

from sd_operator.standalone.errors import ApiError, Json

log = logging.getLogger(__name__)

JSON = "application/json"
MERGE = "application/merge-patch+json"
REQUEST_SECONDS = 30
WATCH_SECONDS = 300
RETRY_SECONDS = 1.0


class Client:
    """A connection to the API server of a kubeconfig."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    async def connect(cls, kubeconfig: str) -> Client:
        """Read a kubeconfig and return a client; nothing is sent yet."""
        config = Configuration()
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, client_configuration=config, persist_config=False
        )
        api = ApiClient(config)
        headers: dict[str, str] = {}
        await api.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        tls = api.rest_client.ssl_context
        await api.close()  # type: ignore[no-untyped-call]
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        session = aiohttp.ClientSession(
            base_url=config.host, connector=connector, headers=headers, read_bufsize=2**21
        )
        return cls(session)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        content_type: str = JSON,
        **query: str,
    ) -> Json:
        """Send a request and return the response's body; raise ApiError if it failed."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(
            method, path, data=data, params=query, headers=headers, timeout=timeout
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise _error(response.status, text)
            result: Json = json.loads(text)
            return result

    async def patch(self, path: str, body: Json, content_type: str = MERGE) -> Json:
        """Patch an object and return it."""
        return await self.request("PATCH", path, body, content_type)

    async def delete(self, path: str, uid: str, policy: str = "Background") -> None:
        """Delete the object with this uid; do nothing if it no longer exists."""
        options = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        await ignore_gone(self.request("DELETE", path, options))

    async def watch(self, path: str, since: str, handle: Callable[[str, Json], None]) -> None:
        """Pass each event's type and object to `handle` until the server ends the watch."""
        query = {"watch": "1", "resourceVersion": since, "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=WATCH_SECONDS + 15)
        async with self._session.get(path, params=query, timeout=timeout) as response:
            response.raise_for_status()
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), "Expired", str(event))
                handle(event["type"], event["object"])


def _error(code: int, text: str) -> ApiError:
    """Return the error of a response, whose body is a Status or, for some paths, plain text."""
    try:
        status: Json = json.loads(text)
    except ValueError:
        status = {"message": text}
    reason, message = status.get("reason", ""), status.get("message", "")
    return ApiError(code, reason, message, status.get("details"))


async def ignore_gone(request: Awaitable[Json]) -> None:
    """Await a request; ignore the error that the object is gone, has changed or already exists."""
    try:
        await request
    except ApiError as error:
        # A real API server answers 422 to a patch with the uid of another object.
        if error.code not in (404, 409, 422):
            raise


class Cache:
    """The current objects of one resource, by uid.

    It calls `changed` with every object that is added, changed or deleted, and after each list with
    all objects.
    """

    def __init__(self, client: Client, path: str, changed: Callable[[Json], None]) -> None:
        self.path = path
        self.objects: dict[str, Json] = {}
        self.synced = asyncio.Event()
        """Set once the first list is in the cache."""
        self._client = client
        self._changed = changed

    async def run(self) -> None:
        """List and watch the resource for ever."""
        while True:
            try:
                listing = await self._client.request("GET", self.path)
                self._replace(listing)
                self.synced.set()
                await self._client.watch(
                    self.path, listing["metadata"]["resourceVersion"], self._seen
                )
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.debug("watch of %s: %s", self.path, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _replace(self, listing: Json) -> None:
        kind = {
            "kind": listing["kind"].removesuffix("List"),
            "apiVersion": listing["apiVersion"],
        }
        old = self.objects
        self.objects = {item["metadata"]["uid"]: kind | item for item in listing["items"]}
        for item in {**old, **self.objects}.values():
            self._changed(item)

    def _seen(self, kind: str, item: Json) -> None:
        if kind == "DELETED":
            self.objects.pop(item["metadata"]["uid"], None)
        else:
            self.objects[item["metadata"]["uid"]] = item
        self._changed(item)


def object_path(item: Json, subresource: str = "") -> str:
    """Return the path of an object or of its subresource."""
    meta, version = item["metadata"], item["apiVersion"]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = item["kind"].lower() + "s"
    namespace = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    path = f"{prefix}{namespace}/{plural}/{meta['name']}"
    return f"{path}/{subresource}" if subresource else path
