"""Who gets at a Hub repo: with what token, and to whom that is sent."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from tests.support.loader.fetches import TOKEN, secret
from tests.support.loader.hubfetches import REPO, load, refusal


@pytest.mark.parametrize(
    ("repo", "token", "reason"),
    [
        pytest.param({"gated": True}, None, Reason.ACCESS_DENIED, id="gated, no token"),
        pytest.param({"gated": True}, "other", Reason.ACCESS_DENIED, id="gated, other account"),
        pytest.param({"gated": True}, TOKEN, None, id="gated, granted"),
        pytest.param({"private": True}, None, Reason.SOURCE_NOT_FOUND, id="private, no token"),
        pytest.param({"private": True}, "other", Reason.SOURCE_NOT_FOUND, id="private, other"),
        pytest.param({"private": True}, TOKEN, None, id="private, granted"),
        pytest.param({}, "bad", Reason.AUTHENTICATION_REQUIRED, id="token not valid"),
    ],
)
def test_access_is_told_apart(hub, settings, into, folder, tmp_path, repo, token, reason):
    """What to do differs: accept a licence, give a token, give another."""
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


def test_the_token_stays_with_the_hub(hub, settings, into, folder):
    """Every request to the Hub has it, none to the CDN."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    secret(settings)
    load(settings, into, credentials=True)
    hub_port = int(hub.host.rpartition(":")[2])
    for item in hub.requests:
        expected = f"Bearer {TOKEN}" if item.port == hub_port else None
        assert item.headers.get("authorization") == expected
    assert {item.port for item in hub.requests} > {hub_port}


def test_no_token_comes_from_the_home_folder(hub, settings, into, tmp_path, monkeypatch):
    """One that lies there by chance is nobody's choice."""
    (tmp_path / "token").write_text("hf_from_home")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_from_environment")
    load(settings, into)
    assert all("authorization" not in item.headers for item in hub.requests)


@pytest.mark.parametrize("host", ["huggingface.co", "127.0.0.1"])
def test_a_token_for_another_host_is_not_sent(hub, settings, into, host):
    """The Hub that is called is the mirror, not the one in the url."""
    secret(settings, host=host)
    error = refusal(settings, into, credentials=True, url=f"https://huggingface.co/{REPO}")
    assert error.reason is Reason.CREDENTIALS_HOST_MISMATCH
    assert hub.requests == []
