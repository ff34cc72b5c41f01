"""Decides which addresses operator, gateway and loader may call.

`Guard.check_url` checks a url without resolving its host. `Guard.addresses` resolves the host once
and checks every address. The transport must connect only to these addresses, because a second
lookup could return others (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

MAX_REDIRECTS = 5

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; clouds keep metadata services here
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local, metadata services among them
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; some clouds' metadata services
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast among them
        # Everything but 2000::/3, as IANA's registry of the IPv6 address space divides it.
        "::/8",  # IPv4-mapped, IPv4-compatible and NAT64: other spellings of IPv4 addresses
        "100::/8",  # discard
        "200::/7",  # reserved
        "400::/6",  # reserved
        "800::/5",  # reserved
        "1000::/4",  # reserved
        "4000::/3",  # reserved, SRv6 among it
        "6000::/3",  # reserved
        "8000::/3",  # reserved
        "a000::/3",  # reserved
        "c000::/3",  # reserved
        "e000::/4",  # reserved
        "f000::/5",  # reserved
        "f800::/6",  # reserved
        "fc00::/7",  # unique local
        "fe00::/9",  # reserved
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
        # Parts of 2000::/3.
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
"""Every range that is not public. The chart's network policies exclude the same ranges."""
PORTS = (80, 443)
"""The ports that may be called at public hosts."""
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_HOST_MAX_LENGTH = 253
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
_PRIVATE_SUFFIXES = (
    ".home.arpa",
    ".internal",
    ".lan",
    ".local",
    ".localdomain",
    ".localhost",
    ".svc",
)


class AddressRefusedError(ConnectionError):
    """The address may not be called; the message says why."""


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver; raises OSError (socket.gaierror) if the lookup fails."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as error:  # such as UnicodeError: the name cannot be looked up
        raise OSError(f"no host name: {error}") from error
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def refusal(address: Address) -> str | None:
    """Return why this address may not be called, or None if it may."""
    if any(address in network for network in REFUSED if network.version == address.version):
        return f"{address} is not a public address"
    return None


def _lookup_name(host: str) -> str:
    """Return the host as resolvers and HTTP clients read it: ASCII, lower case, no last dot."""
    try:
        if len(host) > _HOST_MAX_LENGTH + 1:
            raise UnicodeError
        return host.encode("idna").decode("ascii").lower().rstrip(".")
    except UnicodeError:
        raise AddressRefusedError("the url's host is not a host name") from None


def _literal(name: str) -> Address | None:
    """Return the address if the host is one, else None. A zone id is ignored."""
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None


def _refusal_of(answer: str) -> str | None:
    """Return why an address from a resolver may not be called, or None if it may."""
    address = _literal(answer)
    return refusal(address) if address else "its address cannot be read"


@dataclass(frozen=True)
class Guard:
    """Decides which hosts and urls may be called, with the administrator's exceptions.

    allowed_hosts: hosts that may have any address and may be called over plain http, in lower case:
    `host` for every port, or `host:port`.
    """

    allowed_hosts: frozenset[str] = frozenset()
    resolver: Resolver = field(default=resolve, repr=False)

    def allows(self, host: str, port: int) -> bool:
        """Return True if `allowed_hosts` has this host, without a port or with this port."""
        name = host.lower().rstrip(".")
        spellings = {name, f"{name}:{port}", f"[{name}]", f"[{name}]:{port}"}
        return not spellings.isdisjoint(self.allowed_hosts)

    def check_url(self, url: str) -> SplitResult:
        """Check scheme, host and port; raises AddressRefusedError. Nothing is resolved."""
        try:
            parts = urlsplit(url)
            port = effective_port(parts)
        except ValueError:
            # Do not show the error: it quotes the port, which is `pa` in user:pa/ssword@host.
            raise AddressRefusedError("the url's host or port cannot be read") from None
        host = parts.hostname
        if parts.scheme not in {"http", "https"} or not host:
            raise AddressRefusedError("the url must be an http(s) link with a host")
        if self.allows(host, port):
            return parts
        if parts.scheme != "https":
            # Name the port: an administrator may have allowed another port of this host.
            place = host if port == default_port(parts) else f"{host}:{port}"
            raise AddressRefusedError(f"{place} may be called over https only")
        self.check_literal(host)
        if port not in PORTS:
            usual = " and ".join(map(str, PORTS))
            raise AddressRefusedError(
                f"{host} may not be called on port {port}, but only on {usual}, unless the"
                f" administrator allows {host}:{port}"
            )
        return parts

    def check_literal(self, host: str) -> None:
        """Refuse an invalid host name, a private name, and an address that may not be called."""
        name = _lookup_name(host)
        address = _literal(name)
        if address is not None:
            why = refusal(address) or ("it has a zone id" if "%" in name else None)
            if why:
                raise AddressRefusedError(f"{host} may not be called: {why}")
        elif not _HOST_NAME.fullmatch(name):
            raise AddressRefusedError("the url's host is not a host name")
        elif _ENDS_IN_NUMBER.fullmatch(name):
            # Resolvers and proxies differ: 0127.0.0.1 is loopback to one and public to another.
            raise AddressRefusedError(
                f"{host} may not be called: an IPv4 address is written as four decimal numbers"
            )
        elif "." not in name or name.endswith(_PRIVATE_SUFFIXES):
            raise AddressRefusedError(f"{host} may not be called: it is a private name")

    def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host and check every address. The caller must connect only to these addresses.

        Raises AddressRefusedError if any address is refused, OSError if the lookup fails.
        """
        allowed = self.allows(host, port)
        if not allowed:
            self.check_literal(host)
        answers = list(self.resolver(host, port))
        if not answers:
            raise OSError(f"{host} has no address")
        if not allowed:
            for answer in answers:
                if why := _refusal_of(answer):
                    raise AddressRefusedError(f"{host} may not be called: {why}")
        return answers

    def check_any_address(self, host: str, port: int) -> None:
        """Resolve a host; raise AddressRefusedError if it has addresses and all are refused.

        For a host that is called later: by then it may have other addresses. Raises OSError if the
        lookup fails.
        """
        if self.allows(host, port):
            return
        reasons = [_refusal_of(answer) for answer in self.resolver(host, port)]
        if reasons and all(reasons):
            raise AddressRefusedError(f"{host} may not be called: {reasons[0]}")

    def with_hosts(self, urls: Iterable[str | None]) -> Guard:
        """Return a guard that also exempts the hosts of these urls, on the urls' ports only."""
        hosts = {
            f"{parts.hostname}:{effective_port(parts)}"
            for parts in (urlsplit(url) for url in urls if url)
            if parts.hostname
        }
        return Guard(self.allowed_hosts | hosts, self.resolver)


def effective_port(parts: SplitResult) -> int:
    """Return the port that a url means; raise ValueError if it is not a number in range."""
    return parts.port if parts.port is not None else default_port(parts)


def default_port(parts: SplitResult) -> int:
    """The port of a url that names none."""
    return 443 if parts.scheme == "https" else 80


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY exempts a host: `*`, names with their subdomains, addresses, networks."""
    for entry in (entry.strip().lower() for entry in no_proxy.split(",")):
        name, _, wanted_port = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
        if wanted_port and wanted_port != str(port):
            continue
        name = name.removeprefix("*").lstrip(".")
        if entry == "*" or (name and (host == name or host.endswith("." + name))):
            return True
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
    return False
