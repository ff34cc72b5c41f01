"""A client of the Kubernetes API for the controllers: requests, and caches kept by watches."""

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
    """Speaks to the API server that a kubeconfig names."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    async def connect(cls, kubeconfig: str) -> Client:
        """Read a kubeconfig; nothing is sent yet."""
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
        """The answer's body; an ApiError for an answer of failure."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(
            method, path, data=data, params=query, headers=headers, timeout=timeout
        ) as response:
            answer: Json = await response.json(content_type=None)
            if response.status >= 400:
                reason, message = answer.get("reason", ""), answer.get("message", "")
                raise ApiError(response.status, reason, message, answer.get("details"))
            return answer

    async def patch(self, path: str, body: Json, content_type: str = MERGE) -> Json:
        """Patch an object."""
        return await self.request("PATCH", path, body, content_type)

    async def delete(self, path: str, uid: str, policy: str = "Background") -> None:
        """Delete exactly this object; one that is gone already is no error."""
        options = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        await ignore_gone(self.request("DELETE", path, options))

    async def watch(self, path: str, since: str, seen: Callable[[str, Json], None]) -> None:
        """Hand on events until the server ends the stream."""
        query = {"watch": "1", "resourceVersion": since, "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=WATCH_SECONDS + 15)
        async with self._session.get(path, params=query, timeout=timeout) as response:
            response.raise_for_status()
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), "Expired", str(event))
                seen(event["type"], event["object"])


async def ignore_gone(request: Awaitable[Json]) -> None:
    """Await a request; that its object is gone, or another by now, is no error."""
    try:
        await request
    except ApiError as error:
        # 422 is a real server's answer to another uid.
        if error.code not in (404, 409, 422):
            raise


class Cache:
    """All objects of one resource by uid, kept current; tells of every change."""

    def __init__(self, client: Client, path: str, changed: Callable[[Json], None]) -> None:
        self.path = path
        self.objects: dict[str, Json] = {}
        self.synced = asyncio.Event()
        self._client = client
        self._changed = changed

    async def run(self) -> None:
        """List, then watch, for ever."""
        while True:
            try:
                listed = await self._client.request("GET", self.path)
                self._replace(listed)
                self.synced.set()
                await self._client.watch(
                    self.path, listed["metadata"]["resourceVersion"], self._seen
                )
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.debug("watch of %s: %s", self.path, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _replace(self, listed: Json) -> None:
        kind = {
            "kind": listed["kind"].removesuffix("List"),
            "apiVersion": listed["apiVersion"],
        }
        old = self.objects
        self.objects = {item["metadata"]["uid"]: kind | item for item in listed["items"]}
        for item in {**old, **self.objects}.values():
            self._changed(item)

    def _seen(self, kind: str, item: Json) -> None:
        if kind == "DELETED":
            self.objects.pop(item["metadata"]["uid"], None)
        else:
            self.objects[item["metadata"]["uid"]] = item
        self._changed(item)


def object_path(item: Json, subresource: str = "") -> str:
    """The path of an object."""
    meta, version = item["metadata"], item["apiVersion"]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = item["kind"].lower() + "s"
    space = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    return f"{prefix}{space}/{plural}/{meta['name']}" + (f"/{subresource}" if subresource else "")
