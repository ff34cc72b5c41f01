"""Tests of the check of webhooks: a request fails if its webhook can never be called."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sd_operator.gateway import webhooks
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.gateway.webhooks import WebhookCheck, WebhookRefusedError
from tests.support.gateway.gallerysite import Site
from tests.support.gateway.gatewayloads import CIVITAI, STARTED, a_name
from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example.com": [PUBLIC],
    "inside.example.com": ["10.1.2.3", "fd00::1"],
    "mixed.example.com": ["10.1.2.3", PUBLIC],
    "odd.example.com": ["not an address"],
}
SETTINGS = GatewaySettings(Path("keys"))


def stand_in(host: str, _port: int) -> list[str]:
    """Resolve the names of this module; any other lookup fails."""
    if host not in NAMES:
        raise OSError("Name or service not known")
    return NAMES[host]


def refusal(url: str | None, settings: GatewaySettings = SETTINGS) -> str | None:
    """Return why a webhook is refused, or None."""

    async def check() -> None:
        made = WebhookCheck(settings, stand_in)
        try:
            await made.check(url)
        finally:
            made.close()

    try:
        asyncio.run(check())
    except WebhookRefusedError as error:
        return error.message
    return None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param(None, None, id="no webhook"),
        pytest.param("https://public.example.com/x", None, id="public name"),
        pytest.param(f"https://{PUBLIC}/x", None, id="public address"),
        pytest.param("https://nowhere.example.com/x", None, id="lookup fails"),
        pytest.param("https://mixed.example.com/x", None, id="one address is public"),
        pytest.param("ftp://10.0.0.1", None, id="no link, which the API server refuses"),
        pytest.param("https://inside.example.com/x", "10.1.2.3 is not a public", id="private name"),
        pytest.param("https://odd.example.com/x", "cannot be read", id="answer is not an address"),
        pytest.param("https://169.254.169.254/x", "not a public address", id="metadata service"),
        pytest.param("https://127.0.0.1/x", "not a public address", id="loopback"),
        pytest.param("https://[::1]:8443/x", "not a public address", id="loopback, other port"),
        pytest.param("https://localhost/x", "private name", id="localhost"),
        pytest.param("https://hooks.art.svc/x", "private name", id="Service of the cluster"),
        pytest.param("https://127.1/x", "four decimal numbers", id="short address"),
        pytest.param("http://public.example.com/x", "over https only", id="plain http"),
        pytest.param("https://public.example.com:22/x", "port 22", id="port"),
    ],
)
def test_webhook_that_can_never_be_called_is_refused(url: str | None, why: str | None) -> None:
    """A webhook is refused with the reason (`why`), or accepted.

    A host name that cannot be resolved is accepted, because it may exist later.
    """
    message = refusal(url)
    if why is None:
        assert message is None
    else:
        assert message is not None
        assert message.startswith("spec.webhook is refused: ")
        assert why in message
        assert message.endswith("allow the host")


@pytest.mark.parametrize("url", ["http://inside.example.com/x", "https://10.0.0.1:8443/x"])
def test_allowed_host_may_be_private(url: str) -> None:
    """The administrator's setting exempts a host, as it does for the operator's calls."""
    hosts = frozenset({"inside.example.com", "10.0.0.1:8443"})
    assert refusal(url) is not None
    assert refusal(url, replace(SETTINGS, allowed_hosts=hosts)) is None


def test_mirror_of_the_hub_is_not_exempt() -> None:
    """A webhook on the Hub's mirror at a private address is refused.

    sync_models may call the mirror, but the operator would call no webhook there.
    """
    settings = replace(SETTINGS, hub_endpoint="https://inside.example.com")
    assert refusal("https://inside.example.com/x", settings) is not None


def test_proxy_resolves_names_itself() -> None:
    """Behind a proxy, only the url can be checked. Hosts of no_proxy are resolved all the same."""
    settings = replace(SETTINGS, https_proxy="http://proxy.example.com:3128")
    assert refusal("https://inside.example.com/x", settings) is None
    assert refusal("https://10.0.0.1/x", settings) is not None
    assert refusal("https://inside.example.com/x", replace(settings, no_proxy="example.com"))


def test_slow_lookup_refuses_nothing_and_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check ends at its deadline; other tasks run meanwhile."""
    monkeypatch.setattr(webhooks, "LOOKUP_SECONDS", 0.05)
    answered = threading.Event()

    def slow(_host: str, _port: int) -> list[str]:
        answered.wait(10)
        return ["10.1.2.3"]

    async def check() -> None:
        made = WebhookCheck(SETTINGS, slow)
        ticks = asyncio.create_task(asyncio.sleep(0.01))
        checks = [made.check("https://inside.example.com/x") for _ in range(20)]
        await asyncio.gather(*checks)
        assert ticks.done()
        answered.set()
        made.close()

    start = time.monotonic()
    asyncio.run(check())
    assert time.monotonic() - start < 5


@pytest.fixture
def resolving(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway, which resolves the names of this module."""
    gateway.resolver = stand_in
    yield gateway
    gateway.resolver = None


@pytest.mark.cluster
def test_refused_webhook_is_the_callers_error(resolving: Gateway, shared_cluster: Cluster) -> None:
    """The message names the request's field, and no resource is created or changed."""
    fields = {"url": CIVITAI, "model_type": "custom_ckpt", "model_id": a_name()}
    inside = "https://inside.example.com/x"
    status, response = resolving.call("load_model", **fields, webhook=inside)
    assert (status, response["status"]) == (400, "error")
    assert response["message"].startswith(
        "webhook is refused: inside.example.com may not be called"
    )
    assert not shared_cluster.exists("sdm", fields["model_id"])
    outside = "https://public.example.com/x"
    assert resolving.call("load_model", **fields, webhook=outside) == (200, STARTED)
    assert resolving.call("load_model", **fields, webhook=inside)[0] == 400
    assert shared_cluster.get("sdm", fields["model_id"])["spec"]["webhook"] == outside


@pytest.mark.cluster
def test_refused_webhook_is_shown_at_its_field(resolving: Gateway, shared_cluster: Cluster) -> None:
    """The gallery's form shows the error while the visitor types, not only after a submission."""
    site = Site(resolving.url, resolving.settings.keys_file, resolving.key)
    site.login()
    form = {"metadata.name": a_name(), "spec.url": "a/b", "spec.webhook": "https://10.0.0.1/x"}
    error = 'id="spec-webhook-error">Webhook is refused: 10.0.0.1 may not be called'
    assert error in site.post("/gallery/load", form).text
    applied = site.post("/gallery/load", {**form, "action": "apply"})
    assert (applied.code, error in applied.text) == (400, True)
    assert not shared_cluster.exists("sdm", form["metadata.name"])
