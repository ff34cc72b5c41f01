"""The gateway's settings, and the page that tells of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_operator.base.errors import SettingsError
from sd_operator.base.settings import LoaderSettings
from sd_operator.gateway import examples
from sd_operator.gateway.__main__ import main
from sd_operator.gateway.settings import PREFIX, Settings
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "gateway.md").read_text()
CURLS = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What is needed."""
    write_keys(tmp_path / "keys", "art")
    (tmp_path / "kubeconfig").touch()
    return {
        "SD_GATEWAY_KEYS_FILE": str(tmp_path / "keys"),
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
    }


def test_without_settings_there_are_the_defaults(env: dict[str, str], tmp_path: Path) -> None:
    """But for what is needed."""
    assert Settings.from_env(env) == Settings(tmp_path / "keys", tmp_path / "kubeconfig")


def test_settings_arrive(env: dict[str, str]) -> None:
    """Each by its variable."""
    more = {
        "CLAIM_NAME": "weights",
        "LOADER_SLIM_IMAGE": "registry/slim",
        "IMAGE_PULL_SECRETS": "a,b",
        "RETAIN_PREVIOUS_SECONDS": "60",
        "LOADER_TMP_SIZE": "2Gi",
        "ALLOWED_HOSTS": "Mirror.example.com",
        "HF_ENDPOINT": "https://mirror.example.com",
        "PUBLIC_URL": "http://127.0.0.1:8000",
        "STORE": "/models",
        "TRUSTED_PROXIES": "10.0.0.1,10.0.0.2",
        "CALLS_PER_MINUTE": "0",
        "PORT": "0",
    }
    settings = Settings.from_env(env | {PREFIX + name: value for name, value in more.items()})
    assert settings.claim_name == "weights"
    assert settings.loader == LoaderSettings(
        slim_image="registry/slim",
        image_pull_secrets=("a", "b"),
        retain_previous_seconds=60,
        tmp_size="2Gi",
    )
    assert settings.allowed_hosts == {"mirror.example.com"}
    assert settings.guard().allows("mirror.example.com", 443)
    assert settings.store == Path("/models")
    assert settings.trusted_proxies == ("10.0.0.1", "10.0.0.2")
    assert (settings.calls_per_minute, settings.port) == (0, 0)
    assert not settings.cookie_secure


@pytest.mark.parametrize(
    ("url", "secure"), [("", True), ("https://a.b", True), ("http://a.b", False)]
)
def test_cookies_need_tls_unless_the_public_url_has_none(
    env: dict[str, str], url: str, secure: bool
) -> None:
    """Behind an Ingress the gateway itself sees none."""
    assert Settings.from_env(env | {"SD_GATEWAY_PUBLIC_URL": url}).cookie_secure is secure


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("KEYS_FILE", "", "must name the file of the keys; `sd-gateway new-key NAMESPACE`"),
        ("PORT", "70000", "must be at most 65535"),
        ("MAX_BODY_BYTES", "1", "must be at least 1024"),
        ("PUBLIC_URL", "a.b", "must be an http(s) link"),
    ],
)
def test_a_wrong_setting_names_its_variable(
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    why: str,
) -> None:
    """And the command ends with 2."""
    with pytest.raises(SettingsError, match=re.escape(f"{PREFIX}{name} {why}")):
        Settings.from_env(env | {PREFIX + name: value})
    for key, good in (env | {PREFIX + name: value}).items():
        monkeypatch.setenv(key, good)
    assert main(["run"]) == 2
    assert f"sd-gateway: {PREFIX}{name} {why}" in capsys.readouterr().err


def test_the_page_has_every_endpoint_with_its_answer() -> None:
    """As the OpenAPI document has them."""
    for name in examples.REQUESTS:
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        for fields in examples.REQUESTS[name].values():
            said = fields.keys() - {"key"}
            assert all(f"`{field}`" in row for field in said)


@pytest.fixture(scope="module")
def gateway(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway."""
    path = tmp_path_factory.mktemp("gateway") / "keys"
    (key,) = write_keys(path, shared_cluster.namespace)
    with Gateway(Settings(path, shared_cluster.kubeconfig, CLAIM), key) as made:
        yield made


@pytest.mark.cluster
def test_the_pages_commands_run(gateway: Gateway) -> None:
    """In their order; the models are not loaded here."""
    env = {**os.environ, "GATEWAY": gateway.url, "KEY": gateway.key}
    answers = [
        subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True).stdout
        for line in CURLS
    ]
    assert answers == [
        '{"message":"model load started","status":"success"}',
        '{"status":"success","message":"VAE load started"}',
        '{"status":"error","message":"Model is not on server: Pending: the load has not begun"}',
        '{"models":[],"status":"success"}',
    ]
