"""Secrets of a link, in the Secret and in the url: where they are sent, and never shown."""

from __future__ import annotations

import traceback

import pytest

from sd_api.reasons import Reason
from sd_loader.settings import Settings
from tests.support.loader import fetches
from tests.support.loader.linkfetches import BODY, load, refusal


def secret(settings: Settings, token: str = "s3cret-token", host: str | None = None) -> None:
    """Mount a credentials Secret; its host ends in a newline, as files do."""
    fetches.secret(settings, token, None if host is None else host + "\n")


def test_the_token_goes_to_its_host_and_no_further(server, settings, into):
    """Sent with each request to the Secret's host; dropped by a redirect to another origin."""
    other = server.add_origin()
    server.serve_file("/file", BODY)
    url = server.serve_file("/model", BODY, token="s3cret-token", redirect=f"http://{other}/file")
    secret(settings, host=server.host)
    load(url, settings, into, credentials=True)
    sent = [(item.path, item.headers.get("authorization")) for item in server.requests]
    assert sent == [("/model", "Bearer s3cret-token"), ("/file", None)]


@pytest.mark.parametrize(
    ("token", "host", "reason"),
    [
        pytest.param(None, None, Reason.SECRET_NOT_FOUND, id="no Secret"),
        pytest.param("", "{host}", Reason.SECRET_NOT_FOUND, id="empty token"),
        pytest.param("two\nlines", "{host}", Reason.SECRET_NOT_FOUND, id="token of two lines"),
        pytest.param("t", None, Reason.CREDENTIALS_HOST_MISMATCH, id="no host"),
        pytest.param("t", "example.com", Reason.CREDENTIALS_HOST_MISMATCH, id="another host"),
        pytest.param("t", "127.0.0.1", Reason.CREDENTIALS_HOST_MISMATCH, id="another port"),
        pytest.param("t", "x{host}", Reason.CREDENTIALS_HOST_MISMATCH, id="a longer host"),
    ],
)
def test_credentials_that_do_not_fit_stop_the_load(server, settings, into, token, host, reason):
    """Before a single request is made, and without showing the Secret."""
    url = server.serve_file("/model", BODY)
    if token is not None:
        secret(settings, token, host and host.format(host=server.host))
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is reason
    assert server.requests == []
    assert "two" not in error.message


def test_a_refused_token_is_named_as_such(server, settings, into):
    """401 means something else once a token was sent."""
    url = server.serve_file("/model", BODY, token="right")
    secret(settings, "wrong", server.host)
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is Reason.AUTHENTICATION_REQUIRED
    assert "token is not valid" in error.message


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://user:hunter2@{host}/model?token=hunter2", id="userinfo and query"),
        pytest.param("http://{host}/model?api_key=hunter2#hunter2", id="query and fragment"),
    ],
)
def test_secrets_in_the_url_are_sent_but_never_shown(server, settings, into, url):
    """The vendor's users put tokens there."""
    server.serve_file("/model", BODY, status=404)
    error = refusal(url.format(host=server.host), settings, into)
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "hunter2" not in error.message
    sent = server.requests[0]
    assert "hunter2" in sent.query
    assert sent.headers.get("authorization", "Basic").startswith("Basic")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://user:hunter2/x@example.com/model", id="slash in the password"),
        pytest.param("https://user:pass:hunter2@example.com:hunter2/model", id="as the port"),
        pytest.param("https://[hunter2]/model", id="as an address"),
    ],
)
def test_a_link_that_cannot_be_read_is_not_quoted(settings, into, url):
    """What went wrong with it may be a secret in the wrong place."""
    error = refusal(url, settings, into)
    assert error.reason is Reason.INVALID_SPEC
    assert "hunter2" not in "".join(traceback.format_exception(error))
