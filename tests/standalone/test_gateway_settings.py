"""Tests of the settings that standalone gives to its gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd_operator.gateway.settings import GatewaySettings
from sd_operator.standalone.processes import Options, gateway_settings

OF_LOADS = {"SD_OPERATOR_CIVITAI_ENDPOINT": "https://loads.example.com"}
OWN = {"SD_GATEWAY_CIVITAI_ENDPOINT": "https://own.example.com"}


@pytest.mark.parametrize(
    ("env", "civitai"),
    [
        ({}, None),
        (OF_LOADS, "https://loads.example.com"),
        (OF_LOADS | OWN, "https://own.example.com"),
    ],
)
def test_gateway_asks_the_civitai_of_the_loads(
    tmp_path: Path, env: dict[str, str], civitai: str | None
) -> None:
    """The gateway gets the Civitai endpoint of the loads, unless its own variable names another."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.touch()
    options = Options(tmp_path, kubeconfig, hub_endpoint="https://hub.example.com")
    made = gateway_settings(options, 8000, tmp_path / "keys", env)
    settings = GatewaySettings.from_env({**made, "KUBECONFIG": str(kubeconfig)})
    assert settings.civitai_endpoint == civitai
    assert settings.hub_endpoint == "https://hub.example.com"
