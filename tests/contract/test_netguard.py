"""Tests of which addresses may be called; a mistake would expose a private network to users."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.netguard import REFUSED, AddressRefusedError, Guard, refusal, resolve
from tests.support.hostile.addresses import PRIVATE_LITERALS, PRIVATE_NAMES, PUBLIC


def guard(*answers: str, allowed: tuple[str, ...] = ()) -> Guard:
    """Return a guard whose resolver always gives these addresses."""
    return Guard(frozenset(allowed), lambda _host, _port: list(answers))


@pytest.mark.parametrize("literal", PRIVATE_LITERALS)
def test_private_literals_are_refused_in_every_spelling(literal):
    """The guard refuses a private address in a url, and as a host to resolve."""
    host = f"[{literal}]" if ":" in literal else literal
    with pytest.raises(AddressRefusedError, match="may not be called"):
        guard().check_url(f"https://{host}/x")
    with pytest.raises(AddressRefusedError, match="may not be called"):
        guard(PUBLIC).addresses(literal, 443)


@pytest.mark.parametrize("literal", ["127.0.0.1", "10.0.0.1", "::1", "fe80::1%2", "fd00::1"])
def test_a_name_with_one_private_address_is_refused(literal):
    """A name is refused if any of its addresses is private, in any position."""
    for answers in ((PUBLIC, literal), (literal, PUBLIC)):
        with pytest.raises(AddressRefusedError, match=r"example\.com"):
            guard(*answers).addresses("example.com", 443)


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        (["10.0.0.1"], True),
        (["10.0.0.1", "fd00::1", "odd"], True),
        (["10.0.0.1", PUBLIC], False),
        ([PUBLIC], False),
        ([], False),
    ],
)
def test_a_host_to_call_later_is_refused_if_all_its_addresses_are(answers, refused):
    """The guard checks all addresses when the host is called. An allowed host is not refused."""
    expected = pytest.raises(
        AddressRefusedError, match=r"example\.com may not be called: 10\.0\.0\.1"
    )
    with expected if refused else contextlib.nullcontext():
        guard(*answers).check_any_address("example.com", 443)
    guard(*answers, allowed=("example.com",)).check_any_address("example.com", 443)


@pytest.mark.parametrize("host", PRIVATE_NAMES)
def test_private_names_are_refused_without_asking_a_resolver(host):
    """Names such as `localhost` are refused by the name alone, as is needed behind a proxy."""
    with pytest.raises(AddressRefusedError):
        guard().check_url(f"https://{host}/x")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/x",
        "https://example.com:443/x",
        "https://example.com:80/x",
        "https://user:pw@example.com/x?y#z",
        "https://münchen.example.com/",
        "https://xn--mnchen-3ya.example.com/",
        "https://under_score.example.com/",
        "https://93.184.216.34/x",
        "https://[2606:4700::1111]/x",
        "https://EXAMPLE.com./x",
        "https://internal.example.com/",
        "https://localhost.example.com/",
    ],
)
def test_public_links_pass(url):
    """Public links pass the guard, whatever their path and query."""
    assert guard().check_url(url).scheme == "https"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/x", "^example.com may be called over https only"),
        ("http://example.com:8080/x", "^example.com:8080 may be called over https only"),
        ("HTTP://93.184.216.34/", "https only"),
        ("ftp://example.com/x", "http"),
        ("file:///etc/passwd", "http"),
        ("//example.com/x", "http"),
        ("example.com/x", "http"),
        ("https:///x", "host"),
        ("https://?x", "host"),
        ("https://example.com:8443/x", "may not be called on port 8443, but only on 80 and 443"),
        ("https://example.com:22/x", r"unless the administrator allows example\.com:22"),
        ("https://93.184.216.34:6443/", "may not be called on port 6443"),
        ("https://example.com:0/", "may not be called on port 0"),
        ("https://example.com:99999/", "cannot be read"),
        ("https://example.com:x/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https://good.example.com@127.0.0.1/", "127.0.0.1"),
        ("https://good.example.com\\@127.0.0.1/", "127.0.0.1"),
        ("", "http"),
    ],
)
def test_other_urls_are_refused_with_a_cause(url, words):
    """Other urls are refused by AddressRefusedError, whose message has the cause."""
    with pytest.raises(AddressRefusedError, match=words):
        guard().check_url(url)


@pytest.mark.parametrize(
    ("allowed", "url", "passes"),
    [
        pytest.param("10.0.0.5", "http://10.0.0.5/x", True, id="any port"),
        pytest.param("10.0.0.5", "http://10.0.0.5:9000/x", True, id="another port"),
        pytest.param("10.0.0.5:9000", "http://10.0.0.5:9000/x", True, id="this port"),
        pytest.param("10.0.0.5:9000", "http://10.0.0.5/x", False, id="not the default port"),
        pytest.param("minio.ns.svc", "http://MINIO.ns.svc/x", True, id="a name, any case"),
        pytest.param("minio.ns.svc", "http://minio.ns.svc./x", True, id="a name with its dot"),
        pytest.param("minio.ns.svc", "http://evil.minio.ns.svc/x", False, id="not its subdomains"),
        pytest.param("::1", "http://[::1]:80/x", True, id="IPv6"),
        pytest.param("[::1]:8080", "http://[::1]:8080/x", True, id="IPv6 with port"),
        pytest.param("[::1]", "http://[::1]/x", True, id="IPv6 in brackets"),
        pytest.param("127.0.0.1", "http://127.1/x", False, id="another spelling"),
        pytest.param("example.com", "https://10.0.0.1/x", False, id="nothing else"),
    ],
)
def test_only_allowed_hosts_are_exempt(allowed, url, passes):
    """Allowed hosts may have private addresses and use plain http."""
    it = guard("10.1.2.3", allowed=(allowed,))
    if not passes:
        with pytest.raises(AddressRefusedError):
            it.check_url(url)
        return
    parts = it.check_url(url)
    port = parts.port or 80
    assert it.addresses(parts.hostname, port) == ["10.1.2.3"]


@pytest.mark.parametrize("port", [8443, 22])
def test_an_allowed_host_may_have_any_port(port):
    """An entry with a port allows that port, and an entry without one allows all ports."""
    for allowed in ("example.com", f"example.com:{port}"):
        guard(PUBLIC, allowed=(allowed,)).check_url(f"https://example.com:{port}/x")
    with pytest.raises(AddressRefusedError, match="on port"):
        guard(PUBLIC, allowed=("example.com:1",)).check_url(f"https://example.com:{port}/x")


ADDRESSES = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.sampled_from([edge for network in REFUSED for edge in (network[0], network[-1])]),
)


@given(ADDRESSES)
def test_every_address_that_the_standard_library_knows_as_special_is_refused(address):
    """The list of ranges is our own, so that the chart can have the same one."""
    special = (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    listed = any(address in network for network in REFUSED if network.version == address.version)
    assert (refusal(address) is not None) is listed
    assert listed or not special


def test_no_range_contains_another():
    """The list of refused ranges has no range that another range contains."""
    for network in REFUSED:
        others = [other for other in REFUSED if other.version == network.version]
        assert [other for other in others if other.overlaps(network)] == [network]


def test_hosts_of_settings_are_exempt_with_their_port():
    """The hosts of endpoints in the settings may be private, with the port of the endpoint."""
    it = guard("10.1.2.3").with_hosts(["http://mirror.ns.svc:8080", None])
    it.check_url("http://mirror.ns.svc:8080/x")
    with pytest.raises(AddressRefusedError):
        it.check_url("http://mirror.ns.svc:8081/x")


def test_a_name_is_resolved_once_and_the_checked_addresses_are_returned():
    """The transport connects to these addresses; a second look-up could differ (DNS rebinding)."""
    answers = iter([[PUBLIC, "2606:4700::1111"], ["127.0.0.1"]])
    it = Guard(resolver=lambda _host, _port: next(answers))
    assert it.addresses("example.com", 443) == [PUBLIC, "2606:4700::1111"]
    with pytest.raises(AddressRefusedError):
        it.addresses("example.com", 443)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".example", "a..b", "\0"])
def test_a_name_without_an_address_is_an_os_error(host):
    """The error is the same if the resolver raises for an odd spelling."""
    with pytest.raises(OSError) as caught:
        resolve(host, 443)
    assert not isinstance(caught.value, AddressRefusedError)
    with pytest.raises(OSError, match="has no address"):
        guard().addresses("example.com", 443)


def test_resolver_results_that_are_not_addresses_are_refused():
    """A result of the resolver that is not an address is refused."""
    with pytest.raises(AddressRefusedError):
        guard("nonsense").addresses("example.com", 443)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_has_one_spelling(number):
    """Other spellings of an IPv4 address are refused: a proxy may read 010.0.0.1 differently."""
    dotted = socket.inet_ntoa(number.to_bytes(4, "big"))
    first, rest = number >> 24, number & 0xFFFFFF
    others = [
        str(number),
        hex(number),
        f"0{number:o}",
        f"{first}.{rest}",
        f"0{dotted}",
        f"0x{first:x}.{dotted.partition('.')[2]}",
        f"{dotted}.0",
        f"[::ffff:{dotted}]",
        f"[::{dotted}]",
        f"[64:ff9b::{dotted}]",
    ]
    for host in others:
        with pytest.raises(AddressRefusedError):
            guard().check_url(f"https://{host}/")


@given(st.text(max_size=60))
def test_any_text_is_either_a_checked_url_or_refused(text):
    """No input makes the guard raise any other error."""
    for url in (text, f"https://{text}", f"https://{text}/x", f"https://h:{text}/"):
        with contextlib.suppress(AddressRefusedError):
            guard(PUBLIC).check_url(url)
