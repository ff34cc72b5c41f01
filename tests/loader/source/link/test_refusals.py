"""Links that the loader refuses because of their address or the server's response."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.patience import Retries
from tests.support.loader.fetches import fetch
from tests.support.loader.linkfetches import BODY, SHA256, load, refusal, request


@pytest.mark.parametrize(
    ("faults", "reason", "words"),
    [
        pytest.param({"status": 401}, Reason.AUTHENTICATION_REQUIRED, "requires a token", id="401"),
        pytest.param({"status": 403}, Reason.ACCESS_DENIED, "403", id="403"),
        pytest.param({"status": 404}, Reason.SOURCE_NOT_FOUND, "404", id="404"),
        pytest.param({"status": 410}, Reason.SOURCE_NOT_FOUND, "410", id="410"),
        pytest.param({"status": 500}, Reason.SOURCE_UNREACHABLE, "500", id="500"),
        pytest.param({"status": 429}, Reason.RATE_LIMITED, "429", id="429"),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "3600"}},
            Reason.RATE_LIMITED,
            "429",
            id="429 for an hour",
        ),
        pytest.param(
            {
                "status": 429,
                "headers": {"Retry-After": "Mon, 01 Jan 99999999999999999999 0:0:0 GMT"},
            },
            Reason.RATE_LIMITED,
            "429",
            id="429 until a day that never comes",
        ),
        pytest.param(
            {"cut_at": 5_000, "range_limit": 10},
            Reason.SOURCE_UNREACHABLE,
            f"of {len(BODY)} bytes",
            id="never the whole range",
        ),
        pytest.param({"status": 204}, Reason.SOURCE_UNREACHABLE, "204", id="no content"),
        pytest.param(
            {"cut_at": 5_000, "cuts": 99, "ignore_range": True},
            Reason.SOURCE_UNREACHABLE,
            "closed",
            id="cut for ever",
        ),
        pytest.param(
            {"length": len(BODY) + 100, "ignore_range": True},
            Reason.SOURCE_UNREACHABLE,
            "closed",
            id="lying length",
        ),
        pytest.param(
            {"headers": {"Content-Encoding": "gzip"}},
            Reason.SOURCE_UNREACHABLE,
            "compressed",
            id="compressed unasked",
        ),
        pytest.param(
            {"redirect": "http://127.0.0.1:1/x"}, Reason.SOURCE_UNREACHABLE, "", id="dead redirect"
        ),
        pytest.param(
            {"redirect": "/model"}, Reason.SOURCE_UNREACHABLE, "more than 5 times", id="loop"
        ),
        pytest.param(
            {"redirect": "http://169.254.169.254/latest"},
            Reason.ADDRESS_REFUSED,
            "https only",
            id="redirect to metadata",
        ),
        pytest.param(
            {"redirect": "https://10.0.0.1/x"},
            Reason.ADDRESS_REFUSED,
            "10.0.0.1",
            id="redirect to a private address",
        ),
        pytest.param(
            {"redirect": "file:///etc/passwd"}, Reason.ADDRESS_REFUSED, "http(s)", id="to a file"
        ),
    ],
)
def test_server_failures_have_their_reasons(server, settings, into, faults, reason, words):
    """The message quotes the status or the problem."""
    url = server.serve_file("/model", BODY, **faults)
    error = refusal(url, settings, into)
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert not (into / "download").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(
            b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 9,
            "HTML page",
            id="login page",
        ),
        pytest.param(b'{"error": "Unauthorized", "x": "' + b"y" * 99 + b'"}', "JSON", id="JSON"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
            "LFS pointer",
            id="LFS pointer",
        ),
    ],
)
def test_response_that_is_not_a_model_is_refused(server, settings, into, body, words):
    """The usual case is a login page with status 200. The volume stays empty."""
    url = server.serve_file("/model", body)
    error = refusal(url + "?token=hunter2", settings, into)
    assert (error.reason, words in error.message) == (Reason.NOT_A_MODEL, True), error.message
    assert "hunter2" not in error.message
    assert list(into.iterdir()) == []


def test_html_page_is_refused_at_its_first_bytes(server, settings, into):
    """The loader stops an endless page early."""
    url = server.serve_file("/model", b"<html><body>" + b"x" * 10_000, endless=True)
    assert refusal(url, settings, into).reason is Reason.NOT_A_MODEL
    assert server.bytes_served < 20_000_000  # as much as socket buffers may hold


def test_from_safetensors_refuses_a_pickle_at_its_first_bytes(server, settings, into):
    """The loader does not download gigabytes before it refuses the file."""
    url = server.serve_file("/model", b"PK\x03\x04" + bytes(1000), endless=True)
    error = refusal(url, settings, into, from_safetensors=True)
    assert error.reason is Reason.UNSAFE_MODEL
    assert "spec.fromSafetensors is true" in error.message


def test_expected_digest_is_enforced(server, settings, into):
    """A wrong digest fails the load and frees the space. The right one passes."""
    url = server.serve_file("/model", BODY)
    error = refusal(url, settings, into, sha256="0" * 64)
    assert error.reason is Reason.DIGEST_MISMATCH
    assert SHA256 in error.message
    assert list(into.iterdir()) == []
    assert load(url, settings, into, sha256=SHA256).source.sha256 == SHA256


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param("http://example.com/x", Reason.ADDRESS_REFUSED, id="plain http"),
        pytest.param("https://localhost/x", Reason.ADDRESS_REFUSED, id="localhost"),
        pytest.param("https://[::1]/x", Reason.ADDRESS_REFUSED, id="loopback"),
        pytest.param("https://169.254.169.254/x", Reason.ADDRESS_REFUSED, id="metadata"),
        pytest.param("ftp://example.com/x", Reason.ADDRESS_REFUSED, id="ftp"),
        pytest.param("file:///etc/passwd", Reason.ADDRESS_REFUSED, id="file"),
        pytest.param("/etc/passwd", Reason.INVALID_SPEC, id="a path"),
        pytest.param("stabilityai/sdxl", Reason.INVALID_SPEC, id="a repo id"),
        pytest.param("https://exa\x00mple.com/x", Reason.INVALID_SPEC, id="NUL"),
        pytest.param("https://name.invalid/x", Reason.SOURCE_UNREACHABLE, id="unknown name"),
    ],
)
def test_url_outside_the_policy_is_refused(settings, into, url, reason):
    """The loader never reads a local path for an operator's request."""
    with pytest.raises(LoaderError) as caught:
        load(url, settings, into, Retries(delays=()))
    assert caught.value.reason is reason
    assert list(into.glob("download")) == []


def test_local_file_is_accepted_only_by_hand(settings, into, tmp_path):
    """The same url fails in a request and loads from the command line."""
    origin = tmp_path / "model.safetensors"
    origin.write_bytes(BODY)
    with pytest.raises(LoaderError) as caught:
        fetch(request(str(origin)), settings, into, lambda _: None)
    assert caught.value.reason is Reason.INVALID_SPEC
    fetched = fetch(request(str(origin)), settings, into, lambda _: None, allow_local=True)
    assert (fetched.source.sha256, fetched.source.sha256_missing) == (None, "RangesOnly")
    assert (into / fetched.path).read_bytes() == BODY
    assert fetched.source.format == "safetensors"
    wrong = request(str(origin), sha256="0" * 64)
    with pytest.raises(LoaderError) as caught:
        fetch(wrong, settings, into, lambda _: None, allow_local=True)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_git_revision_for_a_link_is_refused(server, settings, into):
    """The message points to sha256, because a digest pins a link."""
    url = server.serve_file("/model", BODY)
    with pytest.raises(LoaderError, match="sha256") as caught:
        fetch(request(url, gitRevision="main"), settings, into)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert server.requests == []
