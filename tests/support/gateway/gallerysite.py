"""Serves the gallery on loopback and calls it as a browser does."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from sd_operator.gateway import keys
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster

Form = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass
class Response:
    """A response of the gallery."""

    code: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def location(self) -> str:
        """The URL that the response redirects to; empty if it does not redirect."""
        return self.headers.get("Location", "")


class Page(HTMLParser):
    """The tags, links and inline code of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        """Attributes that browsers would execute or apply: event handlers and styles."""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append(tag)
        values = dict(attrs)
        self.handlers += [name for name in values if name.startswith("on") or name == "style"]
        self.links += [values[name] or "" for name in ("href", "src", "action") if name in values]


@dataclass
class Site:
    """A running gallery, called as by one browser.

    >>> site.login()
    >>> site.get("/gallery/models/sketch").text
    """

    url: str
    keys_file: Path
    key: str
    """An API key for the cluster's namespace."""
    cookie: str = ""
    """The session cookie; empty before the login."""

    @property
    def host(self) -> str:
        """The host and port of the gallery."""
        return urlsplit(self.url).netloc

    def request(self, method: str, path: str, form: Form | None = None, **headers: str) -> Response:
        """Send a request with the cookie; a form has the headers that browsers send with it."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            connection.request(method, path, *self._request(form, headers))
            response = connection.getresponse()
            return Response(
                response.status, response.headers, response.read().decode(errors="replace")
            )

    def get(self, path: str, **headers: str) -> Response:
        """Get a page."""
        return self.request("GET", path, **headers)

    def post(self, path: str, form: Form, **headers: str) -> Response:
        """Submit a form. Pairs can repeat a field, as check boxes do."""
        return self.request("POST", path, form, **headers)

    def login(self, key: str | None = None) -> Response:
        """Log in and store the cookie."""
        response = self.post("/gallery/login", {"key": key or self.key})
        self.cookie = response.headers.get("Set-Cookie", "").partition(";")[0]
        return response

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[Iterator[tuple[str, str]]]:
        """Open a stream of server-sent events; a comment is an event without a name."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            connection.request("GET", path, *self._request(None, {}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield _events(response)

    def _request(
        self, form: Form | None, headers: dict[str, str]
    ) -> tuple[str | None, dict[str, str]]:
        overrides = {name.replace("_", "-"): value for name, value in headers.items()}
        defaults = {"Cookie": self.cookie} if self.cookie else {}
        if form is None:
            return None, defaults | overrides
        defaults |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.url}
        return urlencode(form), defaults | overrides


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    name, data = "", []
    while line := response.readline().decode():
        field, _, value = line.rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "":
            if value:
                yield "", value
            elif data:
                yield name, "\n".join(data)
                name, data = "", []


@contextlib.contextmanager
def serve(cluster: Cluster, folder: Path, **settings: object) -> Iterator[Site]:
    """Serve the gallery of a cluster's namespace until the context ends."""
    key, line = keys.new(cluster.namespace, "painter")
    keys_file = folder / "keys"
    keys_file.write_text(f"{line}\n")
    # By default cookies need https, which this gateway does not have.
    options = {"public_url": "http://127.0.0.1", **settings}
    with Gateway(GatewaySettings(keys_file, cluster.kubeconfig, **options)) as gateway:
        yield Site(gateway.url, keys_file, key)


@contextlib.contextmanager
def serve_again(cluster: Cluster, site: Site) -> Iterator[None]:
    """Serve a gallery again after its end, at the same address and with the same keys."""
    settings = GatewaySettings(site.keys_file, cluster.kubeconfig, public_url="http://127.0.0.1")
    with Gateway(settings, port=urlsplit(site.url).port or 0):
        yield
