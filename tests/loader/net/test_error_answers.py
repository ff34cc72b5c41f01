"""Error responses of a source: their reasons, and what is quoted of their bodies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from devkit.fakefiles import FileServer
from devkit.loopback import Answer, Loopback, Request
from sd_api import netguard
from sd_api.netguard import Address
from sd_api.reasons import Reason
from sd_api.wire import MESSAGE_MAX_LENGTH
from sd_loader.net.client import HttpClient
from sd_loader.net.error_body import MAX_BYTES
from sd_loader.settings import Settings
from tests.support.loader.linkfetches import BODY, refusal

HERE, INSIDE = "127.0.0.1", "127.0.0.2"
"""Two loopback addresses. The fixture `public` lets the first count as public."""
EARLY = {"error": "Early Access", "message": "This asset is in Early Access until tomorrow"}
SAID = "; the source says: "


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A file server on loopback."""
    with FileServer() as server:
        yield server


@pytest.fixture
def settings() -> Settings:
    """Settings that allow both addresses."""
    return Settings(allowed_hosts=frozenset({HERE, INSIDE}))


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's address count as public."""
    real = netguard.refusal

    def refusal(address: Address) -> str | None:
        return None if str(address) == HERE else real(address)

    monkeypatch.setattr(netguard, "refusal", refusal)


def failing(server: FileServer, status: int, body: object, **headers: str) -> str:
    """Serve an error at a link and return the link."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.serve_file("/model", b"", status=status, body=text, headers=named)


def instead(server: FileServer, body: object) -> str:
    """Serve this with status 200 at the link of a model and return the link."""
    return server.serve_file(
        "/model", body if isinstance(body, bytes) else json.dumps(body).encode()
    )


@pytest.mark.parametrize(
    ("status", "body", "reason", "words"),
    [
        (403, EARLY, Reason.ACCESS_DENIED, f"access is denied{SAID}{EARLY['message']}"),
        (402, {"error": "Pay first"}, Reason.ACCESS_DENIED, f"access is denied{SAID}Pay first"),
        (451, {"message": "Not here"}, Reason.ACCESS_DENIED, f"access is denied{SAID}Not here"),
        (401, {"message": "Log in"}, Reason.AUTHENTICATION_REQUIRED, f"a token{SAID}Log in"),
        (
            410,
            {"error": "Model archived, not available for download"},
            Reason.SOURCE_NOT_FOUND,
            f"410: it was removed{SAID}Model archived, not available for download",
        ),
        (
            404,
            {"error": "Not Found", "message": "File was removed by its owner"},
            Reason.SOURCE_NOT_FOUND,
            f"answered 404{SAID}File was removed by its owner",
        ),
        (400, {"error": "Bad id"}, Reason.REQUEST_REJECTED, f"the request{SAID}Bad id"),
        (422, {"message": "No"}, Reason.REQUEST_REJECTED, f"the request{SAID}No"),
        (429, {"message": "Slow down"}, Reason.RATE_LIMITED, f"too many requests{SAID}Slow down"),
        (500, {"error": "Broken"}, Reason.SOURCE_UNREACHABLE, f"answered 500{SAID}Broken"),
    ],
)
@pytest.mark.usefixtures("public")
def test_error_has_its_reason_and_the_words_of_the_source(
    server, settings, into, status, body, reason, words
):
    """The words stand at the end of the message."""
    error = refusal(failing(server, status, body), settings, into)
    assert error.reason is reason
    assert error.message.endswith(words)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500])
def test_nothing_is_quoted_from_a_private_address(server, settings, into, status):
    """An allowed host may be inside the cluster's network, whose messages are not for users."""
    url = failing(server, status, EARLY, X_Error_Message="secret words")
    error = refusal(url, settings, into)
    assert "says" not in error.message
    assert "Early" not in error.message
    assert "secret" not in error.message


LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Sign in \u00b7 Civitai</title></head></html>"
INSTEAD = [
    pytest.param(EARLY, "a JSON document", EARLY["message"], id="JSON"),
    pytest.param({"error": "secret"}, "a JSON document", "secret", id="short JSON"),
    pytest.param(LOGIN_PAGE.encode(), "an HTML page", "Sign in · Civitai", id="a page"),
    pytest.param(
        {"error": "internal words see http://10.0.0.1/admin", "x": "y" * 99},
        "a JSON document",
        "internal words see",
        id="JSON with a link",
    ),
    pytest.param(
        f"<html><title>\x1b[31mred\nalert {'!' * 500}</title>".encode(),
        "an HTML page",
        f"[31mred alert {'!' * 145}…",
        id="a long title",
    ),
    pytest.param(b"<html>no title</html>", "an HTML page", "", id="no title"),
    pytest.param(b"secret", "plain text of 6 bytes", "", id="text"),
]
"""What a source sends with status 200 instead of the file, its kind, and what is quoted of it."""


@pytest.mark.parametrize(("body", "kind", "quoted"), INSTEAD)
@pytest.mark.usefixtures("public")
def test_a_body_that_is_not_the_file_is_quoted_like_an_error(
    server, settings, into, body, kind, quoted
):
    """Some sources answer with status 200 and say in the body why they send no file."""
    url = instead(server, body)
    error = refusal(url, settings, into)
    assert error.reason is Reason.NOT_A_MODEL
    assert error.message == f"{url}: the file is {kind}" + (f"{SAID}{quoted}" if quoted else "")


@pytest.mark.parametrize(("body", "kind", "quoted"), INSTEAD)
def test_a_body_that_is_not_the_file_is_not_quoted_from_a_private_address(
    server, settings, into, body, kind, quoted
):
    """The message names only its kind."""
    url = instead(server, body)
    error = refusal(url, settings, into)
    assert error.reason is Reason.NOT_A_MODEL
    assert error.message == f"{url}: the file is {kind}", quoted


@pytest.mark.usefixtures("public")
def test_a_body_that_is_not_the_file_is_not_quoted_through_a_proxy(settings, into):
    """A proxy resolves the name, so the loader does not know the address behind it."""
    answer = Answer(200, json.dumps(EARLY).encode(), {"Connection": "close"})
    with Loopback(lambda _: answer) as proxy:
        proxied = replace(settings, proxy=proxy.url)
        error = refusal(f"http://{INSIDE}:9/model", proxied, into)
    assert error.message.endswith("the file is a JSON document")


@pytest.mark.usefixtures("public")
def test_nothing_is_quoted_from_a_private_address_behind_a_redirect(server, settings, into):
    """The address of the last host counts."""
    answer = Answer(403, json.dumps(EARLY).encode())
    with Loopback(lambda _: answer, address=INSIDE) as inside:
        url = server.serve_file("/model", b"", redirect=f"{inside.url}/x?signature=s")
        error = refusal(url, settings, into)
    assert error.reason is Reason.ACCESS_DENIED
    assert error.message == (
        f"{url} redirects to {inside.host}, which answered 403: access is denied"
    )


@pytest.mark.usefixtures("public")
def test_nothing_is_quoted_through_a_proxy(settings, into):
    """A proxy resolves the name, so the loader does not know the address behind it."""
    answer = Answer(403, json.dumps(EARLY).encode(), {"Connection": "close"})
    with Loopback(lambda _: answer) as proxy:
        proxied = replace(settings, proxy=proxy.url)
        error = refusal(f"http://{INSIDE}:9/model", proxied, into)
    assert error.message.endswith("answered 403: access is denied")


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (401, Reason.ACCESS_DENIED, "access is denied"),
        (403, Reason.ACCESS_DENIED, "access is denied"),
        (404, Reason.SOURCE_NOT_FOUND, "which answered 404"),
        (400, Reason.SOURCE_UNREACHABLE, "it does not accept the link that led to it"),
        (503, Reason.SOURCE_UNREACHABLE, "which answered 503"),
    ],
)
def test_error_of_a_storage_host_names_the_link_and_the_host(
    server, settings, into, status, reason, words
):
    """The user knows the link only. The storage host received no token."""
    with Loopback(lambda _: Answer(status, b"<Error><Code>X</Code></Error>")) as storage:
        url = server.serve_file("/model", b"", redirect=f"{storage.url}/x?signature=s")
        error = refusal(url, settings, into)
    assert error.reason is reason
    assert error.message.startswith(f"{url} redirects to {storage.host}, which answered {status}")
    assert error.message.endswith(words)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>", {}),
        (b"<html><title>Attention Required! | Cloudflare</title></html>", {}),
        (b"error code: 1020", {}),
        (b"<html></html>", {"cf_mitigated": "challenge"}),
        (b"<html><script src='https://ct.captcha-delivery.com/c.js'></script></html>", {}),
    ],
)
@pytest.mark.parametrize("status", [403, 503])
def test_bot_protection_is_not_a_missing_licence(server, settings, into, body, headers, status):
    """No token helps against it, and it may let the next request through."""
    error = refusal(failing(server, status, body, **headers), settings, into)
    assert error.reason is Reason.SOURCE_UNREACHABLE
    assert error.message.endswith(
        f"answered {status}: its bot protection lets only browsers through"
    )


@pytest.mark.parametrize(
    "query",
    ["X-Amz-Algorithm=a&X-Amz-Signature=s", "X-Goog-Signature=s", "sv=1&sig=s", "Signature=s"],
)
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.usefixtures("public")
def test_expired_signature_of_a_link_is_not_a_missing_licence(
    server, settings, into, query, status
):
    """The user needs a new link; neither a token nor an accepted licence helps."""
    body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    error = refusal(f"{failing(server, status, body)}?{query}", settings, into)
    assert error.reason is Reason.REQUEST_REJECTED
    assert error.message.endswith(
        f"answered {status}: it does not accept the link's signature, which may have expired"
        f"{SAID}Request has expired"
    )


@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        pytest.param({"message": "m", "error": "e"}, "m", id="message first"),
        pytest.param({"message": 7, "error": "e"}, "e", id="a number"),
        pytest.param({"message": " ", "error": "e"}, "e", id="blank"),
        pytest.param({"message": {"error": "e"}}, "", id="an object"),
        pytest.param({"error": {"code": 403, "message": "m"}}, "m", id="a message in the error"),
        pytest.param({"error": {"message": {}}}, "", id="an object in the error"),
        pytest.param({"detail": "d"}, "d", id="detail"),
        pytest.param(["message"], "", id="a list"),
        pytest.param([{"error": {"message": "m"}}], "m", id="an object in a list"),
        pytest.param([{"message": "m"}, {"message": "n"}], "", id="objects in a list"),
        pytest.param({"title": "t", "status": 403}, "t", id="a problem's title"),
        pytest.param({"title": "t", "detail": "d"}, "d", id="a problem's detail"),
        pytest.param({"errors": [{"message": "m"}, {"message": "n"}]}, "m", id="errors"),
        pytest.param({"errors": ["e"]}, "e", id="errors as text"),
        pytest.param({"errors": [7], "error": {"json": {"message": "m"}}}, "m", id="tRPC"),
        pytest.param({"error": "code", "error_description": "d"}, "d", id="OAuth"),
        pytest.param({"Code": 1, "Message": "m"}, "m", id="capitals"),
        pytest.param({"msg": "m", "code": 1}, "m", id="msg"),
        pytest.param({"success": False, "reason": "r"}, "r", id="reason"),
        pytest.param(b"<?xml version='1.0'?><Error><Message>a &amp; b</Message>", "a & b", id="S3"),
        pytest.param(b"\xef\xbb\xbf<?xml ?><Error><Message>m</Message>", "m", id="Azure"),
        pytest.param(b"<Error><Code>X</Code><Message>m</Message>", "m", id="XML alone"),
        pytest.param(b"<html><Message>m</Message>", "", id="a message in a page"),
        pytest.param("message", "", id="a string"),
        pytest.param(b'{"message": "cut', "", id="incomplete"),
        pytest.param(b"[" * 9000, "", id="nested"),
        pytest.param(b'{"message": ' + b"1" * 9000 + b"}", "", id="a long number"),
        pytest.param(b"<html>message</html>", "", id="HTML"),
        pytest.param(gzip.compress(b'{"message": "m"}'), "", id="compressed"),
        pytest.param(b"\xef\xbb\xbf" + b'{"message": "m"}', "m", id="a byte order mark"),
        pytest.param({"message": "see https://evil.example/x now"}, "see now", id="a link"),
        pytest.param({"message": "see www.evil.example now"}, "see now", id="www"),
        pytest.param({"message": "see evil.example/pay?x=1 now"}, "see now", id="no scheme"),
        pytest.param({"message": "[see](http://evil.example)"}, "", id="Markdown"),
        pytest.param({"message": "see ht\u200btps://evil.example"}, "see", id="a hidden link"),
        pytest.param({"message": "a\nb\x1b[31m\u202ec\x00"}, "a b[31mc", id="unprintable"),
        pytest.param({"message": "your token hf_abcdefghijkl"}, "your token hf_…", id="a token"),
        pytest.param({"message": "File model.safetensors is gone"}, None, id="a file name"),
        pytest.param({"message": "x" * 160}, "x" * 160, id="long"),
        pytest.param({"message": "x" * 161}, "x" * 159 + "…", id="too long"),
        pytest.param({"message": "m", "x": "y" * MAX_BYTES}, "", id="more than is read"),
    ],
)
@pytest.mark.usefixtures("public")
def test_quotation_is_short_and_harmless(server, settings, into, body, quoted):
    """At most 160 printable characters of a JSON or XML message are quoted, without links."""
    message = refusal(failing(server, 403, body), settings, into).message
    expected = body["message"] if quoted is None else quoted
    assert message.partition(SAID)[2] == expected
    assert (SAID in message) == bool(expected)


@pytest.mark.usefixtures("public")
def test_long_link_leaves_room_for_the_words_of_the_source(server, settings, into):
    """A result's message has at most 512 characters."""
    path = "/" + "x" * 1500
    body = json.dumps({"message": "y" * 200}).encode()
    error = refusal(server.serve_file(path, b"", status=403, body=body), settings, into)
    assert len(error.message) <= MESSAGE_MAX_LENGTH
    assert SAID in error.message


def endless(status: int) -> Callable[[Request], Iterable[bytes]]:
    """Return a function that responds with this status and a body that never ends."""

    def respond(_: Request) -> Iterable[bytes]:
        yield b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
        piece = b"{" + b" " * (1 << 16)
        while True:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)

    return respond


@pytest.mark.parametrize("streamed", [True, False])
def test_only_the_beginning_of_an_error_is_read(settings, streamed):
    """The rest would cost time and memory; a response may be endless."""
    with Loopback(endless(403)) as server, HttpClient(settings).session() as client:
        request = client.build_request("GET", server.url)
        response = client.send(request, stream=streamed)
        assert len(response.read()) == MAX_BYTES


@pytest.mark.parametrize(
    ("status", "reason"), [(403, Reason.ACCESS_DENIED), (203, Reason.SOURCE_UNREACHABLE)]
)
def test_endless_response_that_is_not_the_file_is_given_up(settings, into, status, reason):
    """The transport cuts only errors, so the reader of other responses has its own limit."""
    with Loopback(endless(status)) as server:
        assert refusal(f"{server.url}/model", settings, into).reason is reason


def test_error_that_cannot_be_read_keeps_its_reason(settings, into):
    """The connection may break inside the body."""
    head = b"HTTP/1.1 403 X\r\nContent-Length: 99\r\nConnection: close\r\n\r\n{"
    with Loopback(lambda _: head) as broken:
        error = refusal(f"{broken.url}/model", settings, into)
    assert error.reason is Reason.ACCESS_DENIED


def test_success_is_not_cut(server, settings):
    """The limit is for errors only."""
    assert len(BODY) > MAX_BYTES
    with HttpClient(settings).session() as client:
        assert client.get(server.serve_file("/model", BODY)).content == BODY
