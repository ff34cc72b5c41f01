"""The token goes only to its own host: a table, and no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
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
        pytest.param("own.example", OWN, False, None, id="its host"),
        pytest.param("own.example:443", OWN, False, None, id="its host and port"),
        pytest.param("OWN.example", OWN, False, None, id="in capitals"),
        pytest.param("own.example", OTHER, False, "another host", id="another host"),
        pytest.param("own.example", "https://own.example:8443/x", False, "another host", id="port"),
        pytest.param("own.example", "https://a.own.example/x", False, "another host", id="beneath"),
        pytest.param("own.example", "http://own.example/x", False, "plain http", id="plain http"),
        pytest.param(
            "mirror.cluster:8080", "http://mirror.cluster:8080/x", False, None, id="allowed host"
        ),
        pytest.param(None, OWN, False, "no key `host`", id="no host"),
        pytest.param(None, OWN, True, None, id="no host, and this one is the default"),
        pytest.param("other.example", OWN, True, "another host", id="not the default"),
    ],
)
def test_the_token_is_for_one_host(
    settings: Settings, host: str | None, url: str, is_default_host: bool, why_not: str | None
) -> None:
    """If it must be sent, another host fails the load; any other source is asked without it."""
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


@pytest.mark.parametrize("required", [True, False])
def test_a_load_without_credentials_has_no_token(settings: Settings, required: bool) -> None:
    """Even if a Secret is mounted."""
    secret(settings, host="own.example")
    assert HttpClient(settings).token(OWN, "spec.url", required=required) is None


@pytest.mark.parametrize("required", [True, False])
def test_a_missing_secret_fails_the_load(settings: Settings, required: bool) -> None:
    """The user asked for credentials."""
    client = HttpClient(settings, has_token=True)
    with pytest.raises(LoaderError) as caught:
        client.token(OWN, "spec.url", required=required)
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
