"""A proxy before an API server that grants what a Role grants, and remembers what was asked for.

Standalone knows no RBAC; and no API server tells which rights were never used.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from cluster import credentials

Json = dict[str, Any]

WATCH_SECONDS = 400


@dataclass(frozen=True)
class Asked:
    """What one request asks for, in RBAC's words; resource with its subresource."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    @classmethod
    def of(cls, method: str, target: str) -> Asked | None:
        """Read a request; None for what is no resource: discovery and versions."""
        parts = urlsplit(target)
        root, *path = [step for step in parts.path.split("/") if step]
        needed = {"api": 1, "apis": 2}.get(root)
        if needed is None or len(path) <= needed:
            return None
        group = path[0] if root == "apis" else ""
        path = path[needed:]
        namespace = ""
        if path[0] == "namespaces" and len(path) > 2:
            namespace, path = path[1], path[2:]
        resource, name, sub = (*path, "", "")[:3]
        watch = parse_qs(parts.query).get("watch", ["false"])[0] in ("1", "true")
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method)
        if verb is None:
            verb = "get" if name else "watch" if watch else "list"
        return cls(verb, group, f"{resource}/{sub}" if sub else resource, namespace, name)


def grants(rules: Sequence[Json], asked: Asked) -> bool:
    """Whether one of a Role's rules allows it."""
    return any(
        asked.verb in rule["verbs"]
        and asked.group in rule["apiGroups"]
        and asked.resource in rule["resources"]
        and (not rule.get("resourceNames") or asked.name in rule["resourceNames"])
        for rule in rules
    )


class RbacProxy:
    """Serves on loopback while it is entered; `rules` are the Roles' rules by their namespaces.

    alter may change what is sent on; lose tells which answers are lost on their way back.
    """

    def __init__(
        self,
        kubeconfig: Path,
        rules: Mapping[str, Sequence[Json]],
        alter: Callable[[Asked, Json], Json] = lambda _, body: body,
        lose: Callable[[Asked], bool] = lambda _: False,
    ) -> None:
        server, self._token, ca = credentials(kubeconfig)
        self._upstream = urlsplit(server)
        self._context = ssl.create_default_context(cadata=ca)
        self._rules = rules
        self._alter = alter
        self._lose = lose
        self.used: set[tuple[str, str]] = set()
        self.refused: list[Asked] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy._answer(self)

            def do_POST(self) -> None:
                proxy._answer(self)

            def do_PUT(self) -> None:
                proxy._answer(self)

            def do_PATCH(self) -> None:
                proxy._answer(self)

            def do_DELETE(self) -> None:
                proxy._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Watches may still be open at the end.
        self._server.daemon_threads = True
        self._server.block_on_close = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads here."""
        server = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "operator", "user": {"token": self._token}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        asked = Asked.of(request.command, request.path)
        if asked is not None:
            if not grants(self._rules.get(asked.namespace, ()), asked):
                self.refused.append(asked)
                self._refuse(request, asked)
                return
            self.used.add((asked.verb, asked.resource))
            if body:
                body = json.dumps(self._alter(asked, json.loads(body))).encode()
        self._pass_on(request, body, lost=asked is not None and self._lose(asked))

    def _refuse(self, request: BaseHTTPRequestHandler, asked: Asked) -> None:
        message = f"{asked.resource} is forbidden: cannot {asked.verb} in {asked.namespace!r}"
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": "Forbidden",
            "message": message,
            "code": 403,
        }
        request.send_response(403)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(json.dumps(status).encode())

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes, *, lost: bool) -> None:
        upstream = http.client.HTTPSConnection(
            str(self._upstream.hostname),
            self._upstream.port,
            context=self._context,
            timeout=WATCH_SECONDS,
        )
        passed = ("Accept", "Authorization", "Content-Type", "User-Agent")
        headers = {name: value for name, value in request.headers.items() if name in passed}
        try:
            upstream.request(request.command, request.path, body or None, headers)
            answer = upstream.getresponse()
            if lost:
                answer.read()
                return
            request.send_response(answer.status)
            request.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            request.end_headers()
            while chunk := answer.read1(65536):
                request.wfile.write(chunk)
                request.wfile.flush()
        except OSError:
            """One of the two has gone; the other will notice."""
        finally:
            upstream.close()
