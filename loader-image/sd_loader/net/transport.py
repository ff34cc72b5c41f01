"""The loader's HTTP transport: checks every request, and connects only to checked addresses.

All HTTP requests pass through it, also redirects and those of `huggingface_hub`. It checks the url
before it sends a request, and connects to an address that was checked; SNI and Host keep the name.
If there is a proxy, it checks only the names, because the proxy resolves them. The address of the
proxy itself is not checked, because the administrator chose it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import httpcore2
import httpx2

from sd_api import netguard
from sd_api.netguard import (
    AddressRefusedError,
    bypasses_proxy,
    effective_port,
)
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.error_body import FROM_PUBLIC_ADDRESS, MAX_BYTES
from sd_loader.net.exchange import refuse_encoded
from sd_loader.net.patience import Pace
from sd_loader.settings import Settings

LOADER_VERSION = version("sd-operator")
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
TIMEOUT = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
READ_BYTES = 256 << 10
"""Minimum number of bytes that a read asks for. With httpcore's 64 KiB, reads would take as much
time as the digests."""
HEAD_MAX_BYTES = 1 << 20
"""Limit for a response's headers, including interim (1xx) responses, which could be endless."""
MAX_ADDRESSES = 4
"""How many addresses of a host are tried. Each may take CONNECT_SECONDS to fail."""


class GuardedTransport(httpx2.BaseTransport):
    """Sends a request if the guard allows it. Otherwise raises LoaderError (AddressRefused).

    max_bytes: largest response body. None if it is not limited.
    """

    def __init__(self, settings: Settings, pace: Pace, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._guard = settings.guard()
        self._no_proxy = settings.no_proxy
        tls = _tls_context(settings)
        self._direct = httpcore2.ConnectionPool(
            ssl_context=tls, network_backend=_Backend(self._guard.addresses, pace)
        )
        self._proxied = _proxy_pool(settings.proxy, tls, pace) if settings.proxy else None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Check and send a request. Refuse a redirect from https to http."""
        with _refusals():
            parts = self._guard.check_url(str(request.url))
        pool = self._direct
        if self._proxied is not None and not bypasses_proxy(
            parts.hostname or "", effective_port(parts), self._no_proxy
        ):
            pool = self._proxied
        url = request.url
        with _httpx_errors():
            received = pool.handle_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    # Set here because callers (huggingface_hub) may turn timeouts off.
                    extensions={**request.extensions, "timeout": TIMEOUT.as_dict()},
                )
            )
        stream = received.extensions.get("network_stream")
        is_public = False
        if isinstance(stream, _PacedStream):
            stream.head_is_over()
            # A proxy resolves the name, so nobody here knows the address behind it.
            is_public = pool is self._direct and stream.is_public
        response = httpx2.Response(
            received.status,
            headers=received.headers,
            stream=_Body(received, url.host, self._max_bytes),
            extensions={**received.extensions, FROM_PUBLIC_ADDRESS: is_public},
            request=request,
        )
        if self._max_bytes is not None:
            refuse_encoded(response)  # A small compressed body can become a large one.
        if url.scheme == "https" and _target_scheme(url, response) == "http":
            response.close()
            raise LoaderError(
                Reason.ADDRESS_REFUSED,
                f"{url.host} redirects from https to http, which is not allowed",
            )
        return response

    def close(self) -> None:
        """Close all connections."""
        self._direct.close()
        if self._proxied is not None:
            self._proxied.close()


def _tls_context(settings: Settings) -> ssl.SSLContext:
    if settings.ca_file is None:
        return _public_tls_context()
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE, f"the CA file {settings.ca_file} cannot be read: {error}"
        ) from error


@cache
def _public_tls_context() -> ssl.SSLContext:
    """Return the context for public servers, which every session of a load can share.

    Reading the certificates takes 0.1 s.
    """
    return httpx2.create_ssl_context(trust_env=False)


def _proxy_pool(url: str, tls: ssl.SSLContext, pace: Pace) -> httpcore2.ConnectionPool:
    proxy = httpx2.Proxy(url)
    return httpcore2.HTTPProxy(
        proxy_url=httpcore2.URL(
            scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/"
        ),
        proxy_auth=proxy.raw_auth,
        ssl_context=tls,
        proxy_ssl_context=tls if proxy.url.scheme == "https" else None,
        network_backend=_Backend(lambda host, _port: [host], pace),
    )


def _target_scheme(url: httpx2.URL, response: httpx2.Response) -> str | None:
    if not response.has_redirect_location:
        return None
    try:
        return url.join(response.headers["Location"]).scheme
    except httpx2.InvalidURL:
        return None  # The client refuses to follow an invalid url.


class _Backend(httpcore2.NetworkBackend):
    """Connects to a host: tries the addresses that `addresses` returns for it in turn."""

    def __init__(self, addresses: Callable[[str, int], Sequence[str]], pace: Pace) -> None:
        self._addresses = addresses
        self._pace = pace
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            with _refusals():
                addresses = self._addresses(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"the name cannot be resolved: {error}") from error
        failure: Exception = httpcore2.ConnectError("the name has no address")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                stream = self._plain.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _PacedStream(stream, self._pace, is_public=_is_public(address))
        raise failure


def _is_public(address: str) -> bool:
    try:
        return netguard.refusal(ipaddress.ip_address(address)) is None
    except ValueError:  # the name of a proxy
        return False


class _PacedStream(httpcore2.NetworkStream):
    """A connection to a server that must send at a minimum speed.

    With a read timeout alone, a server could send one byte at a time for ever. Only the time spent
    waiting for the server counts, not the time that this side needs to write to disk. The size of
    the response's headers is limited, too.
    """

    def __init__(self, stream: httpcore2.NetworkStream, pace: Pace, *, is_public: bool) -> None:
        self.is_public = is_public
        """Whether the connection leads to a public address."""
        self._stream = stream
        self._pace = pace
        self._head_bytes: int | None = 0
        self._start_window()

    def _start_window(self) -> None:
        self._waited = 0.0
        self._received = 0

    def head_is_over(self) -> None:
        """Stop counting header bytes: the body follows, which may be long."""
        self._head_bytes = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        start = time.monotonic()
        data = self._stream.read(max(max_bytes, READ_BYTES), timeout)
        self._waited += time.monotonic() - start
        self._received += len(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                raise LoaderError(
                    Reason.SOURCE_UNREACHABLE,
                    f"the source sent {self._head_bytes} bytes of headers and no end of them",
                )
        if self._waited >= self._pace.window_seconds:
            if self._received < self._pace.bytes_per_second * self._waited:
                raise LoaderError(
                    Reason.SOURCE_UNREACHABLE,
                    f"the source is too slow: {self._received} bytes in {self._waited:.0f} seconds",
                )
            self._start_window()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._start_window()
        self._head_bytes = 0
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        return _PacedStream(
            self._stream.start_tls(ssl_context, server_hostname, timeout),
            self._pace,
            is_public=self.is_public,
        )

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's interface
        return self._stream.get_extra_info(info)


class _Body(httpx2.SyncByteStream):
    """A response's body. An error's body may be endless, so only its beginning is read."""

    def __init__(self, response: httpcore2.Response, host: str, max_bytes: int | None) -> None:
        self._response = response
        self._host = host
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        with _httpx_errors():
            for chunk in self._response.iter_stream():
                received += len(chunk)
                if self._response.status >= 400 and received > MAX_BYTES:
                    yield chunk[: len(chunk) - (received - MAX_BYTES)]
                    return
                if self._max_bytes is not None and received > self._max_bytes:
                    raise LoaderError(
                        Reason.SOURCE_UNREACHABLE,
                        f"{self._host} sent a response of more than {self._max_bytes} bytes",
                    )
                yield chunk

    def close(self) -> None:
        self._response.close()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except AddressRefusedError as error:
        raise LoaderError(Reason.ADDRESS_REFUSED, str(error)) from error


_CORE_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
)


@contextlib.contextmanager
def _httpx_errors() -> Iterator[None]:
    """Raise errors of httpcore2 as the errors of httpx2 that have the same names."""
    try:
        yield
    except _CORE_ERRORS as error:
        wrapped: type[httpx2.TransportError] = getattr(httpx2, type(error).__name__)
        raise wrapped(str(error)) from error
