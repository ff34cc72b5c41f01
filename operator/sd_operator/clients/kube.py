"""The client of the Kubernetes API: JSON in, JSON out, typed errors.

A request that fails raises ApiError. While the API server is unavailable, a request is repeated a
few times before it fails; a watch is not repeated.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from sd_api import names
from sd_api.redaction import redact_text
from sd_operator.base.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

log = logging.getLogger(__name__)

Json = dict[str, Any]
Count = Callable[[str, str, str], None]

REQUEST_TIMEOUT_SECONDS = 15.0
CONNECT_TIMEOUT_SECONDS = 5.0
REQUESTS_AT_ONCE = 50
ATTEMPTS = 3
RETRY_SECONDS = 0.3
RETRY_AFTER_MAX_SECONDS = 5.0
PAGE_SIZE = 500
LOG_LINE_MAX_BYTES = 4096
WATCH_SECONDS = 300
"""After this time the server ends a watch; the client ends it a little later."""

_MERGE_PATCH = "application/merge-patch+json"
_METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT"}


@dataclass(frozen=True)
class Resource:
    """A kind of objects, by the parts of its path in the API."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """Path of the collection, of an object, or of an object's subresource."""
        for part in (namespace, name):
            # HTTP clients take these out of a path, quoted or not: `models/.` is the collection.
            if part in (".", ".."):
                raise NotFoundError(f"{part!r} is not a valid object name", 404)
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        tail = f"/{quote(name, safe='')}" if name else ""
        return f"{root}{scope}/{self.plural}{tail}" + (f"/{sub}" if sub else "")


MODELS = Resource(names.GROUP, names.VERSION, names.PLURAL)
JOBS = Resource("batch", "v1", "jobs")
PODS = Resource("", "v1", "pods")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
SECRETS = Resource("", "v1", "secrets")
EVENTS = Resource("", "v1", "events")
NAMESPACES = Resource("", "v1", "namespaces")
LEASES = Resource("coordination.k8s.io", "v1", "leases")


@dataclass(frozen=True)
class Listing:
    """The objects of a LIST."""

    items: list[Json]
    version: str
    """The resourceVersion of the list, to start a watch from."""


OURS = f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER},{names.LABEL_NAME}={names.LOADER_NAME}"


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Read the API server's address and our credentials: from a kubeconfig or the Pod's account."""
    # Without this the client reads proxies and .netrc from the environment for each request.
    configuration = Configuration(client_session_kwargs={"trust_env": False})
    if kubeconfig is None:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
        )
    return configuration


class Api:
    """A connection to the API server.

    count is called with verb, resource and code of every request except watches; manager is our
    user agent and field manager.
    """

    def __init__(
        self,
        kubeconfig: Path | None,
        count: Count = lambda *_: None,
        manager: str = names.FIELD_MANAGER,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._count = count
        self._manager = manager
        self._client: ApiClient | None = None
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._former: ApiClient | None = None

    async def __aenter__(self) -> Self:
        self._client = ApiClient(await load_configuration(self._kubeconfig))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections."""
        for client in (self._former, self._client):
            if client is not None:
                await client.close()  # type: ignore[no-untyped-call]

    async def _reconnect(self, refused: ApiClient) -> None:
        """Read the credentials again, unless another request has just done so."""
        configuration = await load_configuration(self._kubeconfig)
        if self._client is not refused:
            return
        # The old client may have requests under way; they end long before the next reconnect.
        former, self._former = self._former, refused
        self._client = ApiClient(configuration)
        if former is not None:
            await former.close()  # type: ignore[no-untyped-call]

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Read one object. The namespace is empty for a kind without namespaces."""
        return await self._json("get", resource, resource.path(namespace, name))

    async def check(self, resource: Resource, namespace: str | None = None) -> None:
        """Raise ApiError if this kind cannot be listed."""
        await self._json("list", resource, resource.path(namespace), {"limit": "1"})

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> Listing:
        """Read all objects of a selection, page by page."""
        query = {"limit": str(PAGE_SIZE), "labelSelector": labels, "fieldSelector": fields}
        items: list[Json] = []
        while True:
            page = await self._json("list", resource, resource.path(namespace), query)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                return Listing(items, str(metadata.get("resourceVersion") or ""))
            query["continue"] = token

    async def watch(
        self, resource: Resource, namespace: str, since: str
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """Yield type and object of every change after a version, until the server ends the watch.

        Raise ApiError if the watch cannot go on; the caller must start again with a list.
        """
        client = self._connected()
        query = {"watch": "true", "resourceVersion": since, "timeoutSeconds": str(WATCH_SECONDS)}
        path = resource.path(namespace)
        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=WATCH_SECONDS + 15
        )
        try:
            response = await self._send(client, "watch", path, query, None, patience)
            async with response:
                if response.status == 401:
                    await self._reconnect(client)
                if response.status != 200:
                    raise _error("watch", path, response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _error("watch", path, int(status.get("code") or 500), line)
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            # A ValueError is a line cut short.
            raise UnavailableError(f"watch {path}: {problem or 'no answer'}") from None

    async def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False
    ) -> Json:
        """Create an object and return it; with dry_run, only let the API server check it."""
        query = {"fieldManager": self._manager, "dryRun": "All" if dry_run else ""}
        return await self._json("create", resource, resource.path(namespace), query, body)

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Json,
        sub: str = "",
        *,
        dry_run: bool = False,
    ) -> Json:
        """Change an object, or its subresource, by a JSON merge patch.

        With dry_run, only let the API server check the patch.
        """
        query = {"fieldManager": self._manager, "dryRun": "All" if dry_run else ""}
        return await self._json("patch", resource, resource.path(namespace, name, sub), query, body)

    async def update(self, resource: Resource, namespace: str, name: str, body: Json) -> Json:
        """Replace an object; raise ConflictError if it has changed since the body was read."""
        query = {"fieldManager": self._manager}
        return await self._json("update", resource, resource.path(namespace, name), query, body)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete an object if it has this uid; its dependents are deleted in the background."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        await self._json("delete", resource, resource.path(namespace, name), body=body)

    async def last_log_line(self, namespace: str, pod: str, container: str) -> str:
        """Return the last line of a container's log; empty if there is none."""
        query = {"container": container, "tailLines": "1", "limitBytes": str(LOG_LINE_MAX_BYTES)}
        path = PODS.path(namespace, pod, "log")
        raw = await self._request("get", "pods/log", path, query)
        return raw.decode(errors="replace")

    async def _json(
        self,
        verb: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
    ) -> Json:
        raw = await self._request(verb, resource.plural, path, query, body)
        try:
            answer = json.loads(raw)
        except ValueError:
            raise UnavailableError(f"{verb} {path}: the response is not JSON") from None
        return answer if isinstance(answer, dict) else {}

    async def _request(
        self,
        verb: str,
        resource: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
    ) -> bytes:
        """Send a request; repeat it if the server is unavailable, or once with new credentials."""
        for attempt in range(1, ATTEMPTS + 1):
            client = self._connected()
            try:
                # Wait here, not in the client's own queue. There the timeout already runs, so of
                # thousands of requests many would time out unsent, and be repeated.
                async with self._slots:
                    response = await self._send(client, verb, path, query, body, _patience())
                    raw = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as problem:
                self._count(verb, resource, "error")
                error: ApiError = UnavailableError(f"{verb} {path}: {problem or 'no answer'}")
                retry_after = None
            else:
                status, retry_after = response.status, _retry_after(response.headers)
                self._count(verb, resource, str(status))
                if 200 <= status < 300:
                    return raw
                if status == 401 and attempt == 1:
                    await self._reconnect(client)
                    continue
                error = _error(verb, path, status, raw)
            if not isinstance(error, UnavailableError) or attempt == ATTEMPTS:
                raise error
            pause = retry_after or RETRY_SECONDS * attempt
            await asyncio.sleep(min(pause, RETRY_AFTER_MAX_SECONDS))
        raise AssertionError("the last attempt returns or raises")

    def _connected(self) -> ApiClient:
        if self._client is None:
            raise RuntimeError("the connection is not open")
        return self._client

    async def _send(
        self,
        client: ApiClient,
        verb: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Json | None,
        patience: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send one request; the caller reads the body of the response."""
        given = {key: value for key, value in (query or {}).items() if value}
        method = _METHODS.get(verb, verb.upper())
        headers = {"Accept": "application/json, */*", "User-Agent": self._manager}
        headers["Content-Type"] = _MERGE_PATCH if verb == "patch" else "application/json"
        await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = client.configuration.host + path + (f"?{urlencode(given)}" if given else "")
        answer = await client.call_api(
            method, url, header_params=headers, body=body, _request_timeout=patience
        )
        response: aiohttp.ClientResponse = answer.response
        return response


def _patience() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _error(verb: str, path: str, status: int, raw: bytes) -> ApiError:
    """Return the error for a response, with the message of its Status object if it has one."""
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = {}
    answer = answer if isinstance(answer, dict) else {}
    # An admission webhook may quote the Job that it rejects, and with it the source's link.
    message = redact_text(str(answer.get("message") or f"{verb} {path}: HTTP {status}"))[:2000]
    if status == 404:
        return NotFoundError(message, status)
    if status == 409:
        exists = answer.get("reason") == "AlreadyExists"
        return (AlreadyExistsError if exists else ConflictError)(message, status)
    causes = (answer.get("details") or {}).get("causes") or ()
    if status == 403:
        terminating = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
        return ForbiddenError(message, status, namespace_terminating=terminating)
    if status in (401, 429) or status >= 500:
        return UnavailableError(message, status)
    fields = (
        (str(cause.get("field") or ""), str(cause.get("message") or "")[:1000]) for cause in causes
    )
    return InvalidError(message, status, tuple(fields))
