"""The guarded HTTP client connects only to checked addresses and keeps the host name for TLS."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpcore2
import httpx2
import pytest

from devkit.fakefiles import FileServer
from devkit.loopback import Answer, Loopback
from sd_api.logins import basic
from sd_api.netguard import Guard, Resolver, bypasses_proxy
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.exchange import Resource
from sd_loader.settings import Settings
from tests.support.servers.tlsname import NAME, make_certificate, speaking_as


@dataclass(frozen=True)
class NamedSettings(Settings):
    """Settings that let a test replace the guard's resolver."""

    resolver: Resolver = lambda _host, _port: []

    def guard(self) -> Guard:
        """Return the usual guard with the test's resolver."""
        return replace(super().guard(), resolver=self.resolver)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and key for NAME."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[FileServer]:
    """A file server that speaks TLS as NAME."""
    with FileServer(tls=speaking_as(certificate)[0]) as server:
        yield server


def named(certificate: Path) -> NamedSettings:
    """Settings that allow NAME and resolve every name to loopback."""
    return NamedSettings(
        allowed_hosts=frozenset({NAME, "127.0.0.1"}),
        resolver=lambda _host, _port: ["127.0.0.1"],
        ca_file=certificate,
    )


def test_sni_host_header_and_certificate_use_the_host_name(tls_server, certificate):
    """The client connects to a checked address but uses the host name for TLS and HTTP.

    Only the guard's resolver knows NAME.
    """
    port = tls_server.port
    tls_server.serve_file("/x", b"content")
    with HttpClient(named(certificate)).session() as client:
        assert client.get(f"https://{NAME}:{port}/x").content == b"content"
        assert tls_server.requests[0].headers["host"] == f"{NAME}:{port}"
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(f"https://127.0.0.1:{port}/x")


def test_redirect_from_https_to_http_is_refused(tls_server, certificate):
    """The client refuses the redirect even if the target is an allowed host."""
    port = tls_server.port
    tls_server.serve_file("/x", b"", redirect=f"http://127.0.0.1:{port}/y")
    with (
        HttpClient(named(certificate)).session() as client,
        pytest.raises(LoaderError, match="from https to http") as caught,
    ):
        client.get(f"https://{NAME}:{port}/x")
    assert caught.value.reason is Reason.ADDRESS_REFUSED
    assert [request.path for request in tls_server.requests] == ["/x"]


def test_client_tries_each_checked_address_in_turn(monkeypatch):
    """The client resolves the name once per connection. The socket does not resolve it again."""
    addresses = ["93.184.216.34", "2606:4700::1111"]
    lookups: list[str] = []
    connections: list[str] = []

    def resolver(host: str, _port: int) -> list[str]:
        lookups.append(host)
        return addresses

    def connect(_self: object, host: str, *_rest: object) -> None:
        connections.append(host)
        raise httpcore2.ConnectError(f"{host} is away")

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    with (
        HttpClient(NamedSettings(resolver=resolver)).session() as client,
        pytest.raises(httpx2.ConnectError, match="1111 is away"),
    ):
        client.get("https://models.example.com/x")
    assert connections == addresses
    assert lookups == ["models.example.com"]


def test_private_address_is_refused_before_connecting(monkeypatch):
    """The guard's LoaderError reaches the caller unchanged by the HTTP libraries."""
    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", lambda *_: pytest.fail("connected"))
    settings = NamedSettings(resolver=lambda _host, _port: ["93.184.216.34", "10.0.0.1"])
    with (
        HttpClient(settings).session() as client,
        pytest.raises(LoaderError, match=r"10\.0\.0\.1") as caught,
    ):
        client.get("https://models.example.com/x")
    assert caught.value.reason is Reason.ADDRESS_REFUSED


def test_each_redirect_target_is_checked():
    """A redirect from an allowed host to a private address is refused."""
    with FileServer() as server:
        url = server.serve_file("/x", b"", redirect="https://[fd00:ec2::254]/latest")
        with (
            HttpClient(Settings(allowed_hosts=frozenset({server.host}))).session() as client,
            pytest.raises(LoaderError, match="fd00:ec2::254"),
        ):
            client.get(url)


class Proxy(Loopback):
    """A forward proxy that answers plain HTTP requests itself and rejects CONNECT."""

    def __init__(self) -> None:
        super().__init__(
            lambda request: Answer(403) if request.method == "CONNECT" else Answer(200, b"proxy")
        )

    @property
    def targets(self) -> list[str]:
        """The requests that the proxy received, in order."""
        return [
            f"CONNECT {request.target}" if request.method == "CONNECT" else request.target
            for request in self.requests
        ]


def no_lookup(_host: str, _port: int) -> list[str]:
    """Fail the test: a client behind a proxy must not resolve names."""
    raise AssertionError("a name was resolved")


def test_proxy_resolves_names_and_may_have_a_private_address():
    """The administrator configures the proxy, so the guard does not check its address."""
    with Proxy() as proxy:
        settings = NamedSettings(
            proxy=proxy.url, allowed_hosts=frozenset({NAME}), resolver=no_lookup
        )
        with HttpClient(settings).session() as client:
            assert client.get(f"http://{NAME}/x").content == b"proxy"
            with pytest.raises(httpx2.ProxyError):
                client.get("https://public.example.com/x")
        assert proxy.targets == [f"http://{NAME}/x", "CONNECT public.example.com:443"]


def test_login_of_the_proxy_comes_from_the_administrators_logins(tmp_path):
    """The login is sent in Proxy-Authorization, and never in Authorization."""
    (tmp_path / "proxy").write_text("user:p@ss/word\n")
    with Proxy() as proxy:
        env = {"HTTPS_PROXY": proxy.url, "SD_LOADER_LOGINS_DIR": str(tmp_path)}
        settings = Settings.from_env(env | {"SD_LOADER_ALLOWED_HOSTS": NAME})
        with HttpClient(settings).session() as client:
            assert client.get(f"http://{NAME}/x").content == b"proxy"
            with pytest.raises(httpx2.ProxyError):
                client.get("https://public.example.com/x")
        for request in proxy.requests:
            assert request.headers["proxy-authorization"] == basic("user:p@ss/word")
            assert "authorization" not in request.headers


@pytest.mark.parametrize("host", ["10.0.0.1", "127.1", "[::1]", "metadata.google.internal"])
def test_private_hosts_are_refused_before_the_proxy_is_called(host):
    """The proxy receives no request for an address literal or a private name."""
    with Proxy() as proxy:
        with (
            HttpClient(NamedSettings(proxy=proxy.url, resolver=no_lookup)).session() as client,
            pytest.raises(LoaderError),
        ):
            client.get(f"https://{host}/x")
        assert proxy.targets == []


def test_no_proxy_hosts_bypass_the_proxy():
    """The client connects directly to a host that NO_PROXY lists."""
    with FileServer() as server, Proxy() as proxy:
        url = server.serve_file("/x", b"direct")
        settings = Settings(
            proxy=proxy.url, no_proxy=".svc, 127.0.0.0/8", allowed_hosts=frozenset({server.host})
        )
        with HttpClient(settings).session() as client:
            assert client.get(url).content == b"direct"
        assert proxy.targets == []


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "a.example.com", False),
        ("*", "a.example.com", True),
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", True),
        (".example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("Example.COM", "a.example.com", True),
        ("example.com", "badexample.com", False),
        ("x, example.com ,y", "example.com", True),
        ("example.com:443", "example.com", True),
        ("example.com:80", "example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::/8", "fd00::1", True),
        ("::1", "::1", True),
        ("10.0.0.0/8", "a.example.com", False),
        (",", "a.example.com", False),
    ],
)
def test_no_proxy_accepts_names_ports_addresses_and_networks(no_proxy, host, direct):
    """A name in NO_PROXY also matches its subdomains."""
    assert bypasses_proxy(host, 443, no_proxy) is direct


def test_missing_ca_file_is_named_in_the_error(tmp_path):
    """The error is a LoaderError that names the file."""
    with pytest.raises(LoaderError, match="nothing-here"):
        HttpClient(Settings(ca_file=tmp_path / "nothing-here")).session()


@pytest.mark.parametrize("by_hand", [True, False], ids=["links", "the Hub's client"])
@pytest.mark.parametrize(
    ("place", "has_token"),
    [
        pytest.param("/there", True, id="same origin"),
        pytest.param("//a.test:{port}/there", True, id="same origin, named by host"),
        pytest.param("http://A.TEST:{port}/there", True, id="same origin, in capitals"),
        pytest.param("http://a.test:{other}/there", False, id="another port"),
        pytest.param("http://sub.a.test:{port}/there", False, id="a subdomain"),
        pytest.param("http://test.a:{port}/there", False, id="another host"),
        pytest.param("http://127.0.0.1:{port}/there", False, id="the address of the host"),
        pytest.param("http://x:y@sub.a.test:{port}/there", False, id="with a password"),
        pytest.param("http://a.test@sub.a.test:{port}/there", False, id="host name as the user"),
    ],
)
def test_redirect_to_another_origin_drops_the_token(place, has_token, by_hand):
    """The token stays dropped even if a later redirect returns to the first origin."""
    with FileServer() as server:
        other = server.add_origin()
        port = server.host.rpartition(":")[2]
        target = place.format(port=port, other=other.rpartition(":")[2])
        server.serve_file("/here", b"", redirect=target)
        server.serve_file("/there", b"", redirect=f"http://a.test:{port}/back")
        server.serve_file("/back", b"content")
        hosts = frozenset({"a.test", "sub.a.test", "test.a", "127.0.0.1"})
        settings = NamedSettings(allowed_hosts=hosts, resolver=lambda _host, _port: ["127.0.0.1"])
        url = f"http://a.test:{port}/here"
        with HttpClient(settings).session() as client:
            if by_hand:
                with Resource(client, url, "s3cret").get({}) as response:
                    assert response.read() == b"content"
            else:
                authorized = {"Authorization": "Bearer s3cret"}
                assert client.get(url, headers=authorized).content == b"content"
    sent = {
        request.path: request.headers.get("authorization") == "Bearer s3cret"
        for request in server.requests
    }
    assert sent == {"/here": True, "/there": has_token, "/back": has_token}
