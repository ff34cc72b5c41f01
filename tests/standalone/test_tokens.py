"""Tests that standalone keeps the tokens of its user as Secrets."""

from __future__ import annotations

import base64

import pytest

from sd_operator.base.settings import Settings
from sd_operator.standalone.executor import RefusedError
from sd_operator.standalone.secretfiles import secret_files, secrets_of
from sd_operator.standalone.server import ApiServer
from sd_operator.standalone.tokens import NAMESPACE, own_tokens, secret_of, setting_of

ENV = {"HF_TOKEN": "hf_mine", "CIVITAI_TOKEN": " site_mine\n"}
MIRROR = "http://127.0.0.1:8080/hub"


def test_each_token_is_for_its_own_host() -> None:
    """HF_TOKEN is for the host of the configured Hub, CIVITAI_TOKEN for that of Civitai."""
    hosts = {token.host: token.token for token in own_tokens(ENV, "")}
    assert hosts == {"huggingface.co": "hf_mine", "civitai.com": "site_mine"}
    assert own_tokens(ENV, MIRROR)[0].host == "127.0.0.1:8080"
    assert own_tokens({**ENV, "HF_ENDPOINT": MIRROR}, "")[0].host == "127.0.0.1:8080"
    assert own_tokens({**ENV, "SD_OPERATOR_CIVITAI_ENDPOINT": MIRROR}, "")[1].host == (
        "127.0.0.1:8080"
    )
    assert own_tokens({"HF_TOKEN": ""}, "") == ()


def test_operator_reads_the_setting_which_has_no_token() -> None:
    """The setting contains no token, and allows the tokens for private repos."""
    setting = setting_of(own_tokens(ENV, ""))
    assert "mine" not in setting
    assert "mine" not in repr(own_tokens(ENV, ""))
    settings = Settings.from_env(
        {"KUBERNETES_SERVICE_HOST": "x", "SD_OPERATOR_DEFAULT_CREDENTIALS": setting}
    )
    secrets = settings.loader.default_credentials
    assert {host: secret.for_private for host, secret in secrets.items()} == {
        "huggingface.co": True,
        "civitai.com": True,
    }


def test_secret_has_the_newest_token(tmp_path) -> None:
    """A restart with another token replaces the Secret's token."""
    api = ApiServer("token", tmp_path)
    api.provide({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for text in ("old", "new"):
        [token] = own_tokens({"HF_TOKEN": text}, "")
        api.provide(secret_of(token))
    [secret] = api.registry.storage.list(("secrets", ""))
    assert base64.b64decode(secret["data"]["token"]) == b"new"


def test_projected_volume_has_the_files_of_its_secret() -> None:
    """A key's file has the path that the volume gives it; a missing Secret has no files."""
    items = [{"key": "token", "path": "a.example.token"}]
    volume = {
        "name": "defaults",
        "projected": {"sources": [{"secret": {"name": "a", "optional": True, "items": items}}]},
    }
    [secret] = secrets_of(volume)
    assert (secret["secretName"], secret["optional"]) == ("a", True)
    data = {"data": {"token": base64.b64encode(b"x").decode(), "other": "eA=="}}
    assert secret_files(secret, data) == {"a.example.token": b"x"}
    assert secret_files(secret, {}) == {}


def test_projected_volume_of_another_kind_is_refused() -> None:
    """A projected volume of anything but Secrets, such as an account's token, is refused."""
    volume = {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
    with pytest.raises(RefusedError, match="serviceAccountToken"):
        secrets_of(volume)
