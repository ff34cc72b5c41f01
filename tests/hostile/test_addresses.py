"""Every HTTP client of the project refuses every address of one table.

The clients are the loader's (for links, and inside the Hub's own client) and the operator's for
webhooks, each directly and behind a proxy. The fixture `connections` records every address to which
a socket connects.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from devkit.fakefiles import FileServer
from devkit.loopback import Answer, Loopback
from sd_api import netguard
from sd_api.netguard import Address, Guard
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.exchange import Resource
from sd_loader.settings import Settings as LoaderSettings
from sd_operator.base.settings import Settings as OperatorSettings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.reconciler.delivery import Webhooks
from sd_operator.resources.observed import Outcome
from sd_operator.rules.decision import WebhookCall
from tests.support.hostile.addresses import LATER_DIGITS, PRIVATE_LITERALS, PRIVATE_NAMES, PUBLIC
from tests.support.rules.deliveries import entry, no_secret
from tests.support.rules.observed import model, published
from tests.support.servers.tlsname import NAME, make_certificate, speaking_as
from tests.support.tally import Tally

HERE, ELSEWHERE = "127.0.0.2", "127.0.0.1"
"""Two loopback addresses: the first stands for a public address, the second for a private one."""


@dataclass(frozen=True)
class Ends:
    """The hosts and proxies that a client may use besides public addresses."""

    resolver: netguard.Resolver
    allowed: frozenset[str] = frozenset()
    proxy: str | None = None
    no_proxy: str = ""
    ca_file: Path | None = None

    def guard(self) -> Guard:
        """Return the guard for these hosts."""
        return Guard(self.allowed, self.resolver)


@dataclass(frozen=True)
class _NamedSettings(LoaderSettings):
    resolver: netguard.Resolver = netguard.resolve

    def guard(self) -> Guard:
        return replace(super().guard(), resolver=self.resolver)


Caller = Callable[[Ends, Sequence[str]], list[str | None]]
"""A function that calls each url and returns why it was refused, or None if it was not."""


def _loader(ends: Ends) -> httpx2.Client:
    settings = _NamedSettings(
        allowed_hosts=ends.allowed,
        proxy=ends.proxy,
        no_proxy=ends.no_proxy,
        ca_file=ends.ca_file,
        resolver=ends.resolver,
    )
    return HttpClient(settings).session()


def _why(call: Callable[[], object]) -> str | None:
    try:
        call()
    except LoaderError as error:
        return error.message if error.reason is Reason.ADDRESS_REFUSED else None
    except httpx2.InvalidURL as error:
        return str(error)
    except httpx2.RequestError as error:
        return str(error) if "Invalid URL in location header" in str(error) else None
    return None


def call_links(ends: Ends, urls: Sequence[str]) -> list[str | None]:
    """Call each url as a download of the loader does."""

    def get(url: str) -> None:
        with Resource(client, url).get({}) as response:
            if response.status_code == 302:
                raise httpx2.InvalidURL("a redirect that leads nowhere")

    with _loader(ends) as client:
        return [_why(lambda url=url: get(url)) for url in urls]  # type: ignore[misc]


def call_hub(ends: Ends, urls: Sequence[str]) -> list[str | None]:
    """Call each url as `huggingface_hub` does: that client follows redirects by itself."""
    with _loader(ends) as client:
        return [_why(lambda url=url: client.get(url)) for url in urls]  # type: ignore[misc]


def call_webhooks(ends: Ends, urls: Sequence[str]) -> list[str | None]:
    """Call each url as the operator's delivery of webhooks does."""

    async def deliver() -> list[str | None]:
        settings = OperatorSettings(
            https_proxy=ends.proxy, no_proxy=ends.no_proxy, webhook_ca_file=ends.ca_file
        )
        webhooks = Webhooks(settings, ends.guard(), no_secret, SYSTEM_CLOCK)
        try:
            return [await one(webhooks, url) for url in urls]
        finally:
            await webhooks.close()

    async def one(webhooks: Webhooks, url: str) -> str | None:
        resource = model(published(), webhook=url)
        done = await webhooks.deliver(
            WebhookCall(entry(), url, None, None), resource, resource.status
        )
        refused = done.outcome is Outcome.FAILED and (
            "may not be called" in done.error
            or "is not a host name" in done.error
            or "cannot be read" in done.error
            or done.error == "no connection: ValueError"
        )
        return done.error if refused else None

    return asyncio.run(deliver())


CALLERS = [
    pytest.param(call_links, id="links"),
    pytest.param(call_hub, id="the Hub's client"),
    pytest.param(call_webhooks, id="webhooks"),
]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Record where sockets connect to, and allow only loopback."""
    connected: list[tuple[str, int]] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address[:2])
        if not str(address[0]).startswith("127."):
            raise ConnectionRefusedError(f"the test connects to nothing like {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect, raising=False)
    return connected


def no_lookup(host: str, _port: int) -> list[str]:
    """A resolver that must not be called."""
    pytest.fail(f"{host} was looked up")


def urls_of(hosts: Sequence[str]) -> list[str]:
    """Return two links to each host: a plain one, and one with a login and another port."""
    bracketed = [f"[{host}]" if ":" in host else host for host in hosts]
    return [
        f"https://{user}{host}{port}/x"
        for host in bracketed
        for user, port in (("", ""), ("public.example.com:pw@", ":8443"))
    ]


def all_refused(urls: Sequence[str], whys: Sequence[str | None]) -> bool:
    """Fail if a url was not refused, and name the url; otherwise return True."""
    let_through = [url for url, why in zip(urls, whys, strict=True) if why is None]
    assert let_through == []
    return True


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "behind a proxy"])
@pytest.mark.parametrize("call", CALLERS)
def test_no_client_calls_a_forbidden_address(
    call: Caller, proxied: bool, connections: Any, tally: Tally
) -> None:
    """Every spelling of an address is refused before a resolver or a proxy is asked."""
    urls = urls_of([*PRIVATE_LITERALS, *PRIVATE_NAMES])
    ends = Ends(no_lookup, proxy="http://127.0.0.1:9" if proxied else None)
    assert all_refused(urls, call(ends, urls))
    assert connections == []
    tally("addresses refused", len(urls))


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "behind a proxy"])
@pytest.mark.parametrize("call", CALLERS)
def test_the_library_calls_the_checked_address(
    call: Caller, proxied: bool, connections: Any
) -> None:
    """A host is refused whose digits are 127.0.0.1 to some libraries, and a name to older ones."""
    ends = Ends(no_lookup, proxy="http://127.0.0.1:9" if proxied else None)
    [why] = call(ends, [f"https://{LATER_DIGITS}/x"])
    assert why is not None
    assert connections == []


@pytest.mark.parametrize("call", CALLERS)
def test_a_name_with_a_forbidden_address_is_not_called(
    call: Caller, connections: Any, tally: Tally
) -> None:
    """The forbidden address may be the only one, or stand before or after public ones."""
    usual = [literal for literal in PRIVATE_LITERALS if netguard._literal(literal) is not None]
    answers = [*([one] for one in usual), *([PUBLIC, one] for one in usual)]
    answers += [[one, "2606:4700::1111"] for one in usual]
    urls = [f"https://n{number}.example.com/x" for number in range(len(answers))]
    told = {f"n{number}.example.com": answer for number, answer in enumerate(answers)}
    # A zone id does not make a public address private.
    for name in [name for name, answer in told.items() if "2606:4700::1111%" in str(answer)]:
        urls.remove(f"https://{name}/x")
    assert all_refused(urls, call(Ends(lambda host, _port: told[host]), urls))
    assert connections == []
    tally("addresses refused", len(urls))


@pytest.mark.parametrize("call", CALLERS[:2])
def test_no_redirect_leads_to_a_forbidden_address(
    call: Caller, connections: Any, tally: Tally
) -> None:
    """The client connects only to the redirecting server, which is allowed."""
    targets = urls_of([*PRIVATE_LITERALS, *PRIVATE_NAMES])
    with FileServer() as server:
        urls = [
            server.serve_file(f"/{number}", b"", redirect=target)
            for number, target in enumerate(targets)
            if target.isascii()  # as a header must be
        ]
        ends = Ends(no_lookup, allowed=frozenset({server.host}))
        looked_up = replace(ends, resolver=lambda _host, _port: ["127.0.0.1"])
        whys = call(looked_up, urls)
    assert all_refused(urls, whys)
    assert {port for _, port in connections} == {int(server.host.rpartition(":")[2])}
    tally("addresses refused", len(urls))


class Server(Loopback):
    """A server that answers every request with 204; with a certificate it speaks TLS as NAME."""

    def __init__(
        self, address: str = ELSEWHERE, port: int = 0, certificate: Path | None = None
    ) -> None:
        tls, self.names = speaking_as(certificate) if certificate else (None, [])
        super().__init__(lambda _: Answer(204), address=address, port=port, tls=tls)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for NAME with its key, which is its own CA."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def servers(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """Two servers of one name and port, at HERE and ELSEWHERE; the guard permits HERE only."""
    real = netguard.refusal

    def refusal(address: Address) -> str | None:
        return None if str(address) == HERE else real(address)

    monkeypatch.setattr(netguard, "refusal", refusal)
    for _ in range(20):
        with ExitStack() as stack:
            one = stack.enter_context(Server(HERE, 0, certificate))
            try:
                other = stack.enter_context(Server(ELSEWHERE, one.port, certificate))
            except OSError:
                continue  # another process uses this port at ELSEWHERE
            monkeypatch.setattr(netguard, "PORTS", (one.port,))
            yield one, other
            return
    pytest.fail("no port is free at both addresses")


@pytest.mark.parametrize("call", CALLERS)
def test_a_name_that_moves_inside_is_not_followed(
    call: Caller, servers: tuple[Server, Server], certificate: Path, connections: Any
) -> None:
    """DNS rebinding fails: each call looks the name up once, and checks all its addresses."""
    public, private = servers
    answers = iter([[HERE], [ELSEWHERE], [HERE, ELSEWHERE]])
    ends = Ends(lambda _host, _port: next(answers), ca_file=certificate)
    url = f"https://{NAME}:{public.port}/x"
    assert call(ends, [url]) == [None]
    assert (public.names, connections) == ([NAME], [(HERE, public.port)])
    for _ in range(2):  # each with a new client, since a client may keep a connection open
        [why] = call(ends, [url])
        assert why is not None
        assert ELSEWHERE in why
    assert private.names == []
    assert connections == [(HERE, public.port)]


@pytest.mark.parametrize("call", CALLERS)
def test_the_certificate_is_that_of_the_name(
    call: Caller, servers: tuple[Server, Server], certificate: Path, connections: Any
) -> None:
    """The client connects to an address, but sends the name of the url as SNI.

    The server has a certificate for NAME only, so it gets no request under another name.
    """
    public, _ = servers
    heard: list[str] = []
    ends = Ends(lambda host, _port: [heard.append(host), HERE][1:], ca_file=certificate)
    assert call(ends, [f"https://other.example.com:{public.port}/x"]) == [None]
    assert heard == ["other.example.com"]
    assert public.names == ["other.example.com"]
    assert connections == [(HERE, public.port)]
    assert public.requests == []
    assert call(ends, [f"https://{NAME}:{public.port}/x"]) == [None]
    assert [request.path for request in public.requests] == ["/x"]


@pytest.mark.parametrize("call", CALLERS)
def test_every_client_reads_no_proxy_in_the_same_way(call: Caller, connections: Any) -> None:
    """A client uses no proxy for a host whose network, or address and port, is in NO_PROXY."""
    with FileServer() as server, Server() as proxy:
        at = f"http://{ELSEWHERE}:{proxy.port}"
        port = int(server.host.rpartition(":")[2])
        for no_proxy in ("127.0.0.0/8", f"x, 127.0.0.1:{port}"):
            direct = Ends(netguard.resolve, frozenset({server.host}), at, no_proxy)
            call(direct, [server.url])
        assert {address[1] for address in connections} == {port}
        connections.clear()
        for no_proxy in ("127.0.0.2", "10.0.0.0/8, 127.0.0.1:1"):
            proxied = Ends(netguard.resolve, frozenset({server.host}), at, no_proxy)
            call(proxied, [server.url])
        assert {address[1] for address in connections} == {proxy.port}
