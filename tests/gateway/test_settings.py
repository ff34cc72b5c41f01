"""Tests of the gateway's settings, and of docs/gateway.md."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_operator.base.errors import SettingsError
from sd_operator.gateway import examples
from sd_operator.gateway.__main__ import main
from sd_operator.gateway.settings import PREFIX, GatewaySettings
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "gateway.md").read_text()
CURLS = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The required environment variables."""
    write_keys(tmp_path / "keys", "art")
    (tmp_path / "kubeconfig").touch()
    return {
        "SD_GATEWAY_KEYS_FILE": str(tmp_path / "keys"),
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
    }


def test_unset_variables_have_their_defaults(env: dict[str, str], tmp_path: Path) -> None:
    """If only the required variables are set, all other settings have their defaults."""
    assert GatewaySettings.from_env(env) == GatewaySettings(
        tmp_path / "keys", tmp_path / "kubeconfig"
    )


def test_variables_set_their_settings(env: dict[str, str]) -> None:
    """Each variable sets the setting of its name."""
    more = {
        "CLAIM_NAME": "weights",
        "MAX_CONNECTIONS": "100",
        "MAX_CONNECTIONS_PER_ADDRESS": "10",
        "PROBES_PORT": "8082",
        "ALLOWED_HOSTS": "Mirror.example.com",
        "HF_ENDPOINT": "https://mirror.example.com",
        "CIVITAI_ENDPOINT": "https://civitai.example.com/",
        "LOOKUPS": "false",
        "PUBLIC_URL": "http://127.0.0.1:8000",
        "STORE": "/models",
        "TRUSTED_PROXIES": "10.0.0.1,10.0.0.2",
        "CALLS_PER_MINUTE": "0",
        "PORT": "0",
    }
    settings = GatewaySettings.from_env(
        env | {PREFIX + name: value for name, value in more.items()}
    )
    assert settings.claim_name == "weights"
    assert (settings.max_connections, settings.max_connections_per_address) == (100, 10)
    assert settings.probes_port == 8082
    assert settings.allowed_hosts == {"mirror.example.com"}
    assert settings.guard().allows("mirror.example.com", 443)
    assert settings.guard().allows("civitai.example.com", 443)
    assert (settings.civitai, settings.lookups) == ("https://civitai.example.com", False)
    assert settings.store == Path("/models")
    assert settings.trusted_proxies == ("10.0.0.1", "10.0.0.2")
    assert (settings.calls_per_minute, settings.port) == (0, 0)
    assert not settings.cookie_secure


@pytest.mark.parametrize(
    ("url", "secure"), [("", True), ("https://a.b", True), ("http://a.b", False)]
)
def test_cookies_need_https_unless_the_public_url_is_http(
    env: dict[str, str], url: str, secure: bool
) -> None:
    """`cookie_secure` is false only if the public URL begins with http.

    The gateway cannot see TLS that ends at an Ingress, so https is assumed otherwise.
    """
    assert GatewaySettings.from_env(env | {"SD_GATEWAY_PUBLIC_URL": url}).cookie_secure is secure


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KEYS_FILE", "", "must name the key file; run `sd-gateway new-key NAMESPACE`"),
        ("PORT", "70000", "must be at most 65535"),
        ("MAX_BODY_BYTES", "1", "must be at least 1024"),
        ("PUBLIC_URL", "a.b", "must be an http(s) link"),
        ("LOOKUPS", "no", "must be one of true, false"),
        ("MAX_CONNECTIONS", "0", "must be at least 1"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "0", "must be at least 1"),
        ("TRUSTED_PROXIES", "10.0.0.1,*", "must be addresses and networks"),
        ("TRUSTED_PROXIES", "ingress", "must be addresses and networks"),
    ],
)
def test_invalid_setting_is_reported_with_its_variable(
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    message: str,
) -> None:
    """`sd-gateway run` prints the message and exits with code 2."""
    with pytest.raises(SettingsError, match=re.escape(f"{PREFIX}{name} {message}")):
        GatewaySettings.from_env(env | {PREFIX + name: value})
    for variable, text in (env | {PREFIX + name: value}).items():
        monkeypatch.setenv(variable, text)
    assert main(["run"]) == 2
    printed = capsys.readouterr().err
    assert f"sd-gateway: {PREFIX}{name} {message}" in printed
    assert "None" not in printed


def test_gateway_page_lists_every_endpoint_with_its_fields() -> None:
    """docs/gateway.md names every field that the OpenAPI examples use."""
    for endpoint in examples.REQUESTS:
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{endpoint}` |")]
        for fields in examples.REQUESTS[endpoint].values():
            names = fields.keys() - {"key"}
            assert all(f"`{name}`" in row for name in names)


@pytest.fixture(scope="module")
def gateway(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one key for the shared cluster's namespace."""
    path = tmp_path_factory.mktemp("gateway") / "keys"
    (key,) = write_keys(path, shared_cluster.namespace)
    with Gateway(GatewaySettings(path, shared_cluster.kubeconfig, CLAIM), key) as gateway:
        yield gateway


@pytest.mark.cluster
def test_commands_of_the_gateway_page_work(gateway: Gateway) -> None:
    """The curl commands run in the order of the page; no operator loads the models here."""
    env = {**os.environ, "GATEWAY": gateway.url, "KEY": gateway.key}
    responses = [
        subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True).stdout
        for line in CURLS
    ]
    pending = (
        '{"status":"error","message":"Model is not on server: Pending: the load has not started",'
        '"phase":"Pending","percent":null,"eta":null}'
    )
    assert responses == [
        '{"message":"model load started","status":"success"}',
        '{"status":"success","message":"VAE load started"}',
        pending,
        pending,
        '{"models":[],"status":"success"}',
    ]
