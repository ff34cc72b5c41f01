"""A load by the vendor's API, with a running operator and loader."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_api import names
from sd_operator.clients.kube import Api
from sd_operator.gateway.models import Models
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.resources.sweep import SweepLease
from tests.support.charts.helmcharts import GATEWAY_RULES
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Json
from tests.support.kube.kubeconfig import credentials
from tests.support.kube.rights import rights
from tests.support.operator.operated import Operated, condition
from tests.support.proxies.rbacproxy import RbacProxy

pytestmark = pytest.mark.cluster


@pytest.fixture
def proxy(operated: Operated, tmp_path: Path) -> Iterator[RbacProxy]:
    """A proxy between gateway and API server that grants the rights of the chart's gateway."""
    server, token, ca = credentials(operated.cluster.kubeconfig)
    allowed = rights(GATEWAY_RULES)
    with RbacProxy(server, token, ca, tmp_path / "proxy.kubeconfig", allowed) as made:
        yield made


def test_a_vendors_user_loads_verifies_and_deletes(
    operated: Operated, proxy: RbacProxy, tmp_path: Path
) -> None:
    """The webhook is called, a changed source is reloaded, and the cache is swept.

    The gateway needs each right of the chart and no other.
    """
    operated.start()
    (key,) = write_keys(tmp_path / "keys", operated.cluster.namespace)
    hosts = frozenset({operated.hub.host, operated.receiver.host})
    settings = GatewaySettings(tmp_path / "keys", proxy.kubeconfig, CLAIM, allowed_hosts=hosts)
    model_id = "Majic_Mix"
    with Gateway(settings, key) as gateway:
        said = {
            "url": operated.link(),
            "model_id": model_id,
            "model_type": "custom_ckpt",
            "from_safetensors": "yes",
            "webhook": operated.receiver.url,
            "revision": "fp32",
            "upcast_attention": "no",
        }
        assert gateway.call("load_model", **said)[1]["status"] == "success"
        operated.eventually(
            lambda: gateway.call("verify_model", model_id=model_id)[0] == 200, timeout=60
        )
        (item,) = operated.cluster.list("sdm")
        name = item["metadata"]["name"]
        assert item["status"]["artifact"]["precision"] == "fp32"
        (listed,) = gateway.call("get_all_models")[1]["models"]
        assert listed["model_id"] == model_id
        assert time.strptime(listed["load_data"], "%m/%d/%Y %H:%M:%S")
        operated.eventually(lambda: "model.loaded" in operated.receiver.events(model_id))
        call = operated.receiver.calls[-1].body
        assert set(call) == {"status", "event", "model_id", "message", "model"}
        assert (call["status"], call["model_id"]) == ("success", model_id)

        assert gateway.call("load_model", **said)[0] == 200
        assert gateway.call("sync_models")[1]["model_list"] == []
        assert len(operated.jobs("load")) == 1, "the same source loads nothing"

        # The same link leads to another file now.
        other = longer(operated.checkpoints[1].read_bytes())
        operated.hub.serve_file("/model-0.safetensors", other)
        synced = gateway.call("sync_models")[1]
        assert synced["message"] == "1 Models synced successfully"
        assert synced["model_list"] == [model_id]
        operated.wait(
            name,
            lambda one: (
                one["status"]["loadHash"] != item["status"]["loadHash"]
                and condition(one, "Ready")["status"] == "True"
                and not condition(one, "Reconciling")
            ),
        )

        told = asyncio.run(look(proxy.kubeconfig, operated.cluster.namespace))
        assert {"LoadStarted", "ModelLoaded"} <= set(told)
        assert gateway.call("clear_cache")[0] == 200
        selector = f"{names.LABEL_NAME}={names.SWEEP_NAME}"
        operated.eventually(
            lambda: (
                [
                    one["status"].get("succeeded")
                    for one in operated.cluster.list("jobs", labelSelector=selector)
                ]
                == [1]
            )
        )

        storage = {"claimName": "database"}
        operated.cluster.model("elsewhere", url=said["url"], storage=storage)
        status, answer = gateway.call("load_model", **{**said, "model_id": "elsewhere"})
        assert (status, "database may not be used" in answer["message"]) == (403, True)

        assert gateway.call("delete_model", model_id=model_id)[0] == 200
        operated.gone(name)
        assert gateway.call("verify_model", model_id=model_id)[0] == 404
    assert operated.left() == []
    assert sorted(map(str, proxy.missing)) == []
    assert sorted(map(str, proxy.unused)) == []
    assert sorted(map(str, proxy.everywhere)) == [], "it stays in the key's namespace"


# Slow, because tests/operator/reconciler/test_sweeps.py tests each step without processes.
@pytest.mark.slow
def test_sweep_that_is_requested_while_the_operator_is_down_follows(
    operated: Operated, tmp_path: Path
) -> None:
    """The Lease keeps the request. Repeated requests make one Job, and a deleted Lease returns."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(), suspend=True)
    operated.eventually(lambda: operated.cluster.exists("lease", names.SWEEP_LEASE))
    operated.cluster.delete("lease", names.SWEEP_LEASE)
    operated.eventually(lambda: operated.cluster.exists("lease", names.SWEEP_LEASE))
    operated.cluster.stop_operators()
    (key,) = write_keys(tmp_path / "keys", operated.cluster.namespace)
    settings = GatewaySettings(tmp_path / "keys", operated.cluster.kubeconfig, CLAIM)
    with Gateway(settings, key) as gateway:
        for _ in range(3):
            assert gateway.call("clear_cache")[0] == 200
        assert sweeps(operated) == []

        operated.start()
        operated.eventually(lambda: [job["status"].get("succeeded") for job in sweeps(operated)])
        operated.eventually(lambda: not is_requested(operated))
        (job,) = sweeps(operated)
        lease = operated.cluster.get("lease", names.SWEEP_LEASE)
        assert lease["spec"]["holderIdentity"] == job["metadata"]["name"]

        assert gateway.call("clear_cache")[0] == 200
        operated.eventually(lambda: not is_requested(operated))


def sweeps(operated: Operated) -> list[Json]:
    """Return the sweep Jobs."""
    return operated.cluster.list("jobs", labelSelector=f"{names.LABEL_NAME}={names.SWEEP_NAME}")


def is_requested(operated: Operated) -> bool:
    """Return whether a sweep is requested that was not started yet."""
    return SweepLease(operated.cluster.get("lease", names.SWEEP_LEASE)).is_open


async def look(kubeconfig: Path, namespace: str) -> list[str]:
    """Open a namespace's first model as a browser does, and return the reasons of its Events."""
    async with Api(kubeconfig) as api:
        models = Models(api, GatewaySettings(Path()))
        async with contextlib.aclosing(models.watch(namespace)) as changes:
            change = await anext(changes)
            await asyncio.sleep(0.5)  # for the watch to begin after the list
            return [event["reason"] for event in await models.events(namespace, change.body)]


def longer(raw: bytes) -> bytes:
    """Return the same safetensors file with a longer header."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = {**header.get("__metadata__", {}), "note": "n" * 1000}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]
