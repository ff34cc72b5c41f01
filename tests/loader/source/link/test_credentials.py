"""Secrets for a link, in the Secret or in the url, are sent to their host and never shown."""

from __future__ import annotations

import base64
import json
import traceback

import pytest

from sd_api.reasons import Reason
from sd_loader.settings import Settings
from tests.support.loader import fetches
from tests.support.loader.linkfetches import BODY, load, refusal


def secret(settings: Settings, token: str = "s3cret-token", host: str | None = None) -> None:
    """Mount a credentials Secret whose host ends in a newline, as files often do."""
    fetches.secret(settings, token, None if host is None else host + "\n")


def test_redirect_to_another_origin_gets_no_token(server, settings, into):
    """The token is sent to the Secret's host only."""
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
def test_unusable_credentials_fail_the_load(server, settings, into, token, host, reason):
    """The load sends no request and does not show the Secret."""
    url = server.serve_file("/model", BODY)
    if token is not None:
        secret(settings, token, host and host.format(host=server.host))
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is reason
    assert server.requests == []
    assert "two" not in error.message


def jwt(claims: object) -> str:
    """Return a token in the form of a JWT."""
    parts = (json.dumps(part).encode() for part in ({"alg": "RS256"}, claims, "signature"))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


SUBJECT = "system:serviceaccount:art:default"


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"iss": "kubernetes/serviceaccount", "sub": SUBJECT}, id="of a Secret"),
        pytest.param({"kubernetes.io/serviceaccount/namespace": "art"}, id="without a subject"),
        pytest.param({"kubernetes.io": {"namespace": "art"}, "aud": ["x"]}, id="of a Pod"),
        pytest.param({"sub": SUBJECT, "aud": ["sts.example.com"]}, id="for a cloud"),
    ],
)
def test_token_of_a_service_account_is_sent_nowhere(server, settings, into, claims):
    """Whoever may create models must not have an account's token sent to a host."""
    url = server.serve_file("/model", BODY)
    token = jwt(claims)
    secret(settings, token, server.host)
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is Reason.SECRET_NOT_FOUND
    assert "token of a Kubernetes service account" in error.message
    assert token not in error.message
    assert server.requests == []


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt({"sub": "alice", "iss": "https://models.example.com"}), id="of a person"),
        pytest.param(jwt(["sub", SUBJECT]), id="no claims"),
        pytest.param("a.b.c", id="dots"),
        pytest.param(f"{SUBJECT}.x", id="the name of an account"),
        pytest.param("." * 100, id="only dots"),
    ],
)
def test_other_token_is_sent(server, settings, into, token):
    """Sources may have tokens of any form."""
    url = server.serve_file("/model", BODY, token=token)
    secret(settings, token, server.host)
    load(url, settings, into, credentials=True)


def test_rejected_token_is_reported(server, settings, into):
    """The message says that the token is not valid, not that a token is missing."""
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
    """Some vendors put tokens into the links for their users."""
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
def test_malformed_link_is_not_quoted(settings, into, url):
    """A malformed link may hold a secret in the wrong place."""
    error = refusal(url, settings, into)
    assert error.reason is Reason.INVALID_SPEC
    assert "hunter2" not in "".join(traceback.format_exception(error))
