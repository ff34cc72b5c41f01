"""The HTTP client sends the token only to the host that the Secret names."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.exchange import origin
from sd_loader.settings import Settings
from tests.support.loader.fetches import TOKEN, secret

OWN, OTHER = "https://own.example/x", "https://other.example/x"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a mirror in the cluster, over plain http."""
    return Settings(
        credentials_dir=tmp_path / "secret", allowed_hosts=frozenset({"mirror.cluster:8080"})
    )


@pytest.mark.parametrize(
    ("host", "url", "is_default_host", "why_not"),
    [
        pytest.param("own.example", OWN, False, None, id="same host"),
        pytest.param("own.example:443", OWN, False, None, id="its host and port"),
        pytest.param("OWN.example", OWN, False, None, id="host in capitals"),
        pytest.param("own.example", OTHER, False, "another host", id="another host"),
        pytest.param(
            "own.example", "https://own.example:8443/x", False, "another host", id="another port"
        ),
        pytest.param(
            "own.example", "https://a.own.example/x", False, "another host", id="subdomain"
        ),
        pytest.param("own.example", "http://own.example/x", False, "plain http", id="plain http"),
        pytest.param(
            "mirror.cluster:8080", "http://mirror.cluster:8080/x", False, None, id="allowed host"
        ),
        pytest.param(None, OWN, False, "no key `host`", id="no host"),
        pytest.param(None, OWN, True, None, id="no host, default host"),
        pytest.param(
            "other.example", OWN, True, "another host", id="another host than the default"
        ),
    ],
)
def test_token_is_sent_only_to_its_host(
    settings: Settings, host: str | None, url: str, is_default_host: bool, why_not: str | None
) -> None:
    """For another host, a required token fails the load and an optional token is left out."""
    secret(settings, host=host)
    client = HttpClient(settings, has_token=True)

    def token(*, required: bool) -> str | None:
        return client.token(url, "spec.url", required=required, is_default_host=is_default_host)

    if why_not is None:
        assert token(required=True) == token(required=False) == TOKEN
        return
    assert token(required=False) is None
    with pytest.raises(LoaderError, match=why_not) as caught:
        token(required=True)
    assert caught.value.reason is Reason.CREDENTIALS_HOST_MISMATCH
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("https://a.example/x", "https://a.example:443/y", True),
        ("https://a.example/x", "HTTPS://A.example:443/y", True),
        ("http://a.example/x", "HTTP://a.example:80/y", True),
        ("https://a.example/x", "https://a.example:80/x", False),
        ("https://a.example/x", "http://a.example/x", False),
        ("http://a.example:443/x", "https://a.example/x", False),
        ("https://a.example/x", "https://b.example/x", False),
    ],
)
def test_origin_has_the_default_port_of_its_scheme(url: str, other: str, same: bool) -> None:
    """A token follows a redirect only to the same origin, however its url is spelled."""
    assert (origin(httpx2.URL(url)) == origin(httpx2.URL(other))) is same


@pytest.mark.parametrize("required", [True, False])
def test_load_without_credentials_sends_no_token(settings: Settings, required: bool) -> None:
    """The client ignores a mounted Secret if the load asks for no credentials."""
    secret(settings, host="own.example")
    assert HttpClient(settings).token(OWN, "spec.url", required=required) is None


@pytest.mark.parametrize("required", [True, False])
def test_missing_secret_fails_the_load(settings: Settings, required: bool) -> None:
    """The load asks for credentials, but the Secret is not mounted."""
    client = HttpClient(settings, has_token=True)
    with pytest.raises(LoaderError) as caught:
        client.token(OWN, "spec.url", required=required)
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
