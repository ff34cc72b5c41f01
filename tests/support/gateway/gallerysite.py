"""The gateway with its gallery on loopback, over a test's cluster."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from sd_operator.gateway import keys
from sd_operator.gateway.settings import Settings
from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster


@dataclass
class Answer:
    """What came back."""

    code: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def location(self) -> str:
        """Where it leads."""
        return self.headers.get("Location", "")


class Page(HTMLParser):
    """What a browser would find in a page that matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        given = dict(attrs)
        self.handlers += [name for name in given if name.startswith("on") or name == "style"]
        self.links += [given[name] or "" for name in ("href", "src", "action") if name in given]


@dataclass
class Site:
    """A running gateway; key is good for the cluster's namespace."""

    url: str
    keys_file: Path
    key: str
    cookie: str = ""

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> Answer:
        """Ask as a browser does that has the cookie; a form comes from a page of the gallery."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            connection.request(method, path, *self._request(form, headers))
            response = connection.getresponse()
            return Answer(
                response.status, response.headers, response.read().decode(errors="replace")
            )

    def get(self, path: str, **headers: str) -> Answer:
        """Ask for a page."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> Answer:
        """Send a form."""
        return self.ask("POST", path, form, **headers)

    def login(self, key: str | None = None) -> Answer:
        """Log in, and keep the cookie."""
        answer = self.post("/gallery/login", {"key": key or self.key})
        self.cookie = answer.headers.get("Set-Cookie", "").partition(";")[0]
        return answer

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[Iterator[tuple[str, str]]]:
        """The server-sent events of an address, comments as events without a name."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            connection.request("GET", path, *self._request(None, {}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield _events(response)

    def _request(
        self, form: dict[str, str] | None, headers: dict[str, str]
    ) -> tuple[str | None, dict[str, str]]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Cookie": self.cookie} if self.cookie else {}
        if form is None:
            return None, sent | given
        sent |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.url}
        return urlencode(form), sent | given


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
    """Serve a namespace's gallery until the context ends."""
    key, line = keys.new(cluster.namespace, "painter")
    keys_file = folder / "keys"
    keys_file.write_text(f"{line}\n")
    # Over https only is the default, which this is not.
    given = {"public_url": "http://127.0.0.1", **settings}
    with Gateway(Settings(keys_file, cluster.kubeconfig, **given)) as gateway:
        yield Site(gateway.url, keys_file, key)
