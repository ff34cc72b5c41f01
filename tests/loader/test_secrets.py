"""A failing load leaks no secret, even if a server quotes it.

Every secret contains MARK, and the test searches everything that a container leaves for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sd_api.reasons import Reason
from tests.support.loader.loadercli import Containers, Ended, load_request, safetensors_bytes
from tests.support.servers.quoting import (
    HTML,
    PASSWORD,
    QUERY,
    TOKEN,
    USER,
    Respond,
    Servers,
    leads,
    leaks,
    listing,
    page,
    raw,
    says,
    serves,
)
from tests.support.tally import Tally

LORA = safetensors_bytes({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)})


@dataclass(frozen=True)
class Kind:
    """A way to fail.

    If `userinfo` is true, the url holds a password and the load has no token. If `hub` is true,
    the source is a Hub repo. If `default` is true, the token is the administrator's for the host.
    """

    name: str
    respond: Respond
    reason: Reason
    usual: bool = False
    path: str = "/model"
    userinfo: bool = False
    hub: bool = False
    default: bool = False
    host: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


LONG = f"<html><head><title>{'x' * 60} ECHO</title></head></html>"
ADDRESS = Reason.ADDRESS_REFUSED
KINDS = [
    Kind("401", says(401), Reason.AUTHENTICATION_REQUIRED),
    Kind("403", says(403), Reason.ACCESS_DENIED),
    Kind("404", says(404), Reason.SOURCE_NOT_FOUND),
    Kind("429", says(429, "Retry-After: 999"), Reason.RATE_LIMITED),
    Kind("503", says(503, "Retry-After: 999"), Reason.SOURCE_UNREACHABLE),
    Kind("gated", says(403, "X-Error-Code: GatedRepo"), Reason.ACCESS_DENIED),
    Kind("a page", serves(HTML), Reason.NOT_A_MODEL, usual=True),
    Kind("a page with a long title", serves(LONG), Reason.NOT_A_MODEL),
    Kind("an error in JSON", serves('{"message": "ECHO"}'), Reason.NOT_A_MODEL),
    Kind("a text", serves("ECHO ECHO"), Reason.NOT_A_MODEL),
    Kind("another origin", leads("http://OTHER/ECHO?token=ECHO"), Reason.SOURCE_NOT_FOUND),
    Kind("another place", leads("/ECHO/model"), Reason.SOURCE_NOT_FOUND),
    Kind("an internal host", leads("https://ECHO.internal/x"), ADDRESS, usual=True),
    Kind("plain http", leads("http://ECHO.example.com/x"), ADDRESS),
    Kind("not a link", leads("ftp://ECHO/x"), ADDRESS),
    Kind("a bad header", raw("HTTP/1.1 200 X\r\nECHO\r\n\r\n"), Reason.SOURCE_UNREACHABLE),
    Kind("a bad status line", raw("ECHO\r\n\r\n"), Reason.SOURCE_UNREACHABLE),
    Kind("encoded", says(200, "Content-Encoding: ECHO"), Reason.SOURCE_UNREACHABLE),
    Kind(
        "truncated",
        lambda *_: page(200, "x" * 99, 'ETag: "1"')[:-50],
        Reason.SOURCE_UNREACHABLE,
    ),
    Kind("an internal host, userinfo", leads("https://ECHO.internal/x"), ADDRESS, userinfo=True),
    Kind("a page, userinfo", serves(HTML), Reason.NOT_A_MODEL, usual=True, userinfo=True),
    Kind("401, userinfo", says(401), Reason.AUTHENTICATION_REQUIRED, userinfo=True),
    Kind("a Hub's 401", says(401), Reason.AUTHENTICATION_REQUIRED, hub=True),
    Kind("a gated repo", says(403, "X-Error-Code: GatedRepo"), Reason.ACCESS_DENIED, hub=True),
    Kind(
        "a Hub's warning",
        says(404, "X-Error-Code: RepoNotFound", "X-HF-Warning: a; ECHO"),
        Reason.SOURCE_NOT_FOUND,
        hub=True,
    ),
    Kind("a default token, 401", says(401), Reason.AUTHENTICATION_REQUIRED, default=True),
    Kind("a default token, a page", serves(HTML), Reason.NOT_A_MODEL, default=True, usual=True),
    Kind(
        "a default token, a gated repo",
        says(403, "X-Error-Code: GatedRepo"),
        Reason.ACCESS_DENIED,
        hub=True,
        default=True,
    ),
    Kind("a Hub's rate limit", says(429, "Retry-After: 999"), Reason.RATE_LIMITED, hub=True),
    Kind("not a Hub", serves('{"sha": "ECHO"}'), Reason.SOURCE_UNREACHABLE, hub=True),
    Kind("a Hub's other name", leads("/api/models/ECHO/b"), Reason.SOURCE_NOT_FOUND, hub=True),
    Kind("a Hub's odd names", listing("../ECHO"), Reason.UNSAFE_MODEL, hub=True),
    Kind("a Hub's other files", listing("ECHO.txt"), Reason.UNSUPPORTED_FORMAT, hub=True),
    Kind("wrong host", serves(HTML), Reason.CREDENTIALS_HOST_MISMATCH, host=f"{TOKEN}.example.com"),
    Kind("wrong digest", lambda *_: _model(), Reason.DIGEST_MISMATCH, fields={"sha256": "0" * 64}),
    Kind(
        "a link that cannot be read",
        serves(HTML),
        Reason.INVALID_SPEC,
        path=f":{PASSWORD}/model",
    ),
]


def _model() -> bytes:
    head = f"HTTP/1.1 200 X\r\nContent-Length: {len(LORA)}\r\nConnection: close\r\n\r\n"
    return head.encode() + LORA


@dataclass
class Load:
    """A fetch that uses every kind of secret."""

    containers: Containers
    servers: Servers

    def run(self, kind: Kind) -> Ended:
        """Run the fetch container with the token mounted as a Secret."""
        self.containers.credentials.mkdir(parents=True, exist_ok=True)
        (self.containers.credentials / "token").write_text(TOKEN)
        host = kind.host or self.servers.source.host
        (self.containers.credentials / "host").write_text(host)
        url = f"{self.servers.source.url}{kind.path}?token={QUERY}&x=1#{QUERY}"
        if kind.userinfo:
            url = url.replace("://", f"://{USER}:{PASSWORD}@")
        env = self.keep_default() if kind.default else {}
        if kind.hub:
            url = "org/model"
        model_type = "huggingface" if kind.hub else "custom_ckpt"
        credentials = not kind.userinfo and not kind.default
        fields = {"credentials": credentials, "model_type": model_type, **kind.fields}
        return self.containers.fetch(load_request(url, **fields), **env)

    @property
    def defaults(self) -> Path:
        """Return the folder of the administrator's Secrets."""
        return self.containers.folder / "defaults"

    def keep_default(self) -> dict[str, str]:
        """Mount the token as the administrator's for the source's host; return the variables."""
        host = self.servers.source.host
        self.defaults.mkdir(exist_ok=True)
        (self.defaults / f"{host.replace(':', '_')}.token").write_text(TOKEN)
        return {
            "SD_LOADER_DEFAULT_CREDENTIALS": f"{host}=site-token:private",
            "SD_LOADER_DEFAULT_CREDENTIALS_DIR": str(self.defaults),
        }

    def output(self, ended: Ended) -> str:
        """Return everything that the container left except the Secret's own files."""
        left = [
            f"{path} {path.read_bytes().decode(errors='replace') if path.is_file() else ''}"
            for folder in (self.containers.store, self.containers.folder)
            for path in sorted(folder.rglob("*"))
            if {self.containers.credentials, self.defaults}.isdisjoint((path, *path.parents))
        ]
        return "\n".join((ended.stdout, ended.stderr, str(ended.result), *left))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Kind], Load]]:
    """A function that starts the servers for a kind of failure and returns a load from them."""
    started: list[Servers] = []

    def run(kind: Kind) -> Load:
        servers = Servers(kind.respond).__enter__()
        started.append(servers)
        store = tmp_path / "store"
        store.mkdir()
        env = {"SD_LOADER_ALLOWED_HOSTS": "127.0.0.1", "HF_ENDPOINT": servers.source.url}
        return Load(Containers(store, tmp_path / "container", env), servers)

    yield run
    for servers in started:
        servers.__exit__()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=str(kind), marks=() if kind.usual else pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_failure_leaks_no_secret(start: Callable[[Kind], Load], kind: Kind, tally: Tally) -> None:
    """No secret reaches the log, the result or the volume, whatever the server sends."""
    load = start(kind)
    ended = load.run(kind)
    assert ended.result is not None, ended.stderr
    assert ended.result.reason is kind.reason, ended.stderr
    assert leaks(load.output(ended)) == []
    for received in load.servers.other.requests:
        assert "authorization" not in received.headers
    tally("failures without a leak")


def test_crash_leaks_no_secret(
    start: Callable[[Kind], Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback goes to the log, and its message may contain the url and the headers."""

    def send(_: httpx2.Client, request: httpx2.Request, **_rest: object) -> None:
        raise RuntimeError(f"{request.url} {request.headers} {dict(request.headers)}")

    monkeypatch.setattr(httpx2.Client, "send", send)
    load = start(KINDS[0])
    ended = load.run(KINDS[0])
    assert ended.result is not None
    assert ended.result.reason is Reason.LOADER_CRASHED
    assert "RuntimeError: http://127.0.0.1" in ended.stderr
    assert leaks(load.output(ended)) == []
