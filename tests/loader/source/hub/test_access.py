"""Access to Hub repos with and without a token, and the hosts that receive the token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devkit.fakefiles import Faults
from sd_api import netguard
from sd_api.logins import Logins, basic
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.loader.fetches import TOKEN, fetch, secret
from tests.support.loader.hubfetches import REPO, load, refusal
from tests.support.models.conversions import load_request


@pytest.mark.parametrize(
    ("repo", "token", "reason"),
    [
        pytest.param({"gated": True}, None, Reason.AUTHENTICATION_REQUIRED, id="gated, no token"),
        pytest.param({"gated": True}, "other", Reason.ACCESS_DENIED, id="gated, other account"),
        pytest.param({"gated": True}, TOKEN, None, id="gated, granted"),
        pytest.param({"private": True}, None, Reason.SOURCE_NOT_FOUND, id="private, no token"),
        pytest.param({"private": True}, "other", Reason.SOURCE_NOT_FOUND, id="private, other"),
        pytest.param({"private": True}, TOKEN, None, id="private, granted"),
        pytest.param({}, "bad", Reason.AUTHENTICATION_REQUIRED, id="token not valid"),
    ],
)
def test_each_kind_of_denied_access_has_its_reason(
    hub, settings, into, folder, tmp_path, repo, token, reason
):
    """The user must accept a licence, give a token or give another token."""
    hub.add_repo(REPO, folder, token=TOKEN, **repo)
    hub.add_repo("other/repo", tmp_path, token="other")
    if token is not None:
        secret(settings, token)
    if reason is None:
        load(settings, into, credentials=True)
        return
    error = refusal(settings, into, credentials=token is not None)
    assert error.reason is reason
    assert token is None or token not in error.message


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "accept its licence on this page, and give a token of the same account"),
        ("other", "and the token's account has no access to it"),
    ],
)
def test_message_of_a_gated_repo_names_its_page(hub, settings, into, folder, token, words):
    """Without a token, the message says where to accept the licence, and asks for a token."""
    hub.add_repo(REPO, folder, token=TOKEN, gated=True)
    hub.add_repo("other/repo", folder, token="other")
    if token is not None:
        secret(settings, token)
    error = refusal(settings, into, credentials=token is not None)
    assert error.message.startswith(f"{hub.url}/{REPO} is a gated repo")
    assert error.message.endswith(words)


def test_hubs_message_about_a_gated_repo_is_quoted(hub, settings, into, folder, monkeypatch):
    """The Hub says, for example, that the authors have not yet decided on a request."""
    monkeypatch.setattr(netguard, "refusal", lambda _address: None)
    hub.add_repo(REPO, folder, token=TOKEN, gated=True)
    hub.add_repo("other/repo", folder, token="other")
    secret(settings, "other")
    error = refusal(settings, into, credentials=True)
    assert error.reason is Reason.ACCESS_DENIED
    assert error.message.endswith("; the source says: You are not in the authorized list")


def test_hubs_message_about_a_disabled_repo_is_quoted(hub, settings, into, monkeypatch):
    """The message is in a header of the Hub's response."""
    monkeypatch.setattr(netguard, "refusal", lambda _address: None)
    words = "Access to this resource is disabled."
    hub.api_faults = Faults(status=403, headers={"X-Error-Message": words})
    error = refusal(settings, into)
    assert error.reason is Reason.ACCESS_DENIED
    assert error.message.endswith(f"access is denied; the source says: {words}")


def test_token_is_sent_to_the_hub_but_not_to_the_cdn(hub, settings, into, folder):
    """Every request to the Hub carries the token, and no request to the CDN does."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    secret(settings)
    load(settings, into, credentials=True)
    hub_port = int(hub.host.rpartition(":")[2])
    for item in hub.requests:
        expected = f"Bearer {TOKEN}" if item.port == hub_port else None
        assert item.headers.get("authorization") == expected
    assert {item.port for item in hub.requests} > {hub_port}


def test_login_of_the_mirror_is_sent_to_the_mirror_only(hub, settings, into, folder):
    """The CDN does not get the login."""
    hub.add_repo(REPO, folder)
    hub.login = "mirror:word"
    assert refusal(settings, into).reason is Reason.SOURCE_NOT_FOUND
    hub.forget()
    load(replace(settings, logins=Logins(hub="mirror:word")), into)
    hub_port = int(hub.host.rpartition(":")[2])
    for item in hub.requests:
        expected = basic("mirror:word") if item.port == hub_port else None
        assert item.headers.get("authorization") == expected
    assert {item.port for item in hub.requests} > {hub_port}


def test_token_takes_the_place_of_the_mirrors_login(hub, settings, into, folder):
    """A request has only one Authorization header, so it has the token and not the login."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    secret(settings)
    load(replace(settings, logins=Logins(hub="mirror:word")), into, credentials=True)
    assert basic("mirror:word") not in {item.headers.get("authorization") for item in hub.requests}


def test_login_of_the_mirror_is_not_for_links_of_users(hub, settings, into):
    """A user's link could lead to anything on the mirror's host, so it gets no login."""
    link = hub.serve_file("/other/place.safetensors", b"no model")
    settings = replace(settings, logins=Logins(hub="mirror:word"))
    with pytest.raises(LoaderError):
        fetch(load_request(url=link), settings, into)
    assert [item.headers.get("authorization") for item in hub.requests] == [None]


def test_token_of_the_environment_is_never_used(hub, settings, into, tmp_path, monkeypatch):
    """The loader ignores the Hub client's token file and HF_TOKEN."""
    (tmp_path / "token").write_text("hf_from_home")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_from_environment")
    load(settings, into)
    assert all("authorization" not in item.headers for item in hub.requests)


@pytest.mark.parametrize("host", ["huggingface.co", "127.0.0.1"])
def test_token_for_another_host_is_not_sent(hub, settings, into, host):
    """The loader calls the mirror, not the host in the url."""
    secret(settings, host=host)
    error = refusal(settings, into, credentials=True, url=f"https://huggingface.co/{REPO}")
    assert error.reason is Reason.CREDENTIALS_HOST_MISMATCH
    assert hub.requests == []
