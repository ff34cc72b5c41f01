"""Tests of the access control of standalone's API server."""

from __future__ import annotations

import json

import pytest

from tests.support.kube.cluster import model_manifest
from tests.support.kube.kubeconfig import credentials
from tests.support.kube.rawapi import LINK, RawApi

pytestmark = pytest.mark.cluster


@pytest.fixture
def standalone(backend):
    """Raw access to the API server; the test is skipped on other backends."""
    if backend.name != "standalone":
        pytest.skip(f"these tests are for standalone, not for {backend.name}")
    return RawApi(backend.kubeconfig)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({}, 200, id="token"),
        pytest.param({"Authorization": ""}, 401, id="no-token"),
        pytest.param({"Authorization": "Bearer wrong"}, 401, id="wrong-token"),
        pytest.param({"Authorization": "Bearer é".encode().decode("latin-1")}, 401, id="not-ascii"),
        pytest.param({"Authorization": "Basic YTpi"}, 401, id="basic"),
        pytest.param({"Host": "localhost:1"}, 200, id="localhost"),
        pytest.param({"Host": "[::1]:1"}, 200, id="ipv6-loopback"),
        pytest.param({"Host": "rebound.example.com:1"}, 403, id="foreign-host"),
        pytest.param({"Host": "127.0.0.1.example.com"}, 403, id="host-that-starts-like-loopback"),
    ],
)
def test_only_the_token_and_a_loopback_host_are_accepted(standalone, headers, code):
    """Requests without the token, or with the name of another host, are rejected.

    They may come from other users, or from web pages whose name resolves to this machine.
    """
    response = standalone.ask("GET", "/api/v1/namespaces", **headers)

    assert response.code == code
    assert response.body["kind"] == ("NamespaceList" if code == 200 else "Status")
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.usefixtures("standalone")
def test_kubeconfig_is_private_and_has_the_ca(backend):
    """Only its owner can read the kubeconfig, and it needs no other file, such as the CA's."""
    assert backend.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert "BEGIN CERTIFICATE" in credentials(backend.kubeconfig)[2]


def test_body_above_3_mib_is_rejected(standalone):
    """A larger body than a real API server accepts gets an error."""
    body = json.dumps(model_manifest("a", url=LINK, foo="x" * 4_000_000))
    path = "/apis/sd-operator.dev/v1alpha1/namespaces/default/stablediffusionmodels"

    assert standalone.ask("POST", path, body).code == 413
