"""The vendor's ten endpoints, called over HTTP, over a real API server without an operator."""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client import generate_latest

from sd_api import names
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import Settings
from sd_operator.gateway.vendor import SCHEDULERS
from tests.support.gateway.gatewayloads import CIVITAI, VENDORS_OWN, a_name, load, put_status
from tests.support.gateway.gatewayrun import ARTIFACT, Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster

pytestmark = pytest.mark.cluster


def test_a_loaded_model_is_told_of(gateway: Gateway, shared_cluster: Cluster) -> None:
    """verify_model, get_all_models and system_details agree; deleted, it is gone from all."""
    model_id = f"My_Model.{secrets.token_hex(3)}"
    load(gateway, model_id)
    (item,) = [one for one in shared_cluster.list("sdm") if one["spec"].get("modelId") == model_id]
    name = item["metadata"]["name"]
    assert re.fullmatch(r"my-model-[0-9a-f]{6}-[0-9a-f]{8}", name)
    before = gateway.call("system_details")[1]["model_count"]
    not_yet = "Model is not on server: Pending: the load has not begun"
    assert gateway.call("verify_model", model_id=model_id) == (
        404,
        {"status": "error", "message": not_yet},
    )

    put_status(shared_cluster, name, artifact=ARTIFACT)

    exists = {"status": "success", "message": "Model exists on server"}
    assert gateway.call("verify_model", model_id=model_id) == (200, exists)
    status, listed = gateway.call("get_all_models")
    assert (status, listed["status"]) == (200, "success")
    assert {"load_data": "01/25/2023 11:52:22", "model_id": model_id} in listed["models"]
    details = {"model_count": before + 1, "queue_time": 0, "status": "ok"}
    assert gateway.call("system_details") == (200, details)
    deleted = {"status": "success", "message": "Model deleted on server"}
    assert gateway.call("delete_model", model_id=model_id) == (200, deleted)
    unknown = {"status": "error", "message": "Model does not exist on server"}
    assert gateway.call("verify_model", model_id=model_id) == (404, unknown)
    assert gateway.call("delete_model", model_id=model_id) == (404, unknown)
    assert gateway.call("system_details")[1]["model_count"] == before


def test_models_of_kubectl_are_known_by_their_effective_id(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """Of two with one id, the one that is Ready."""
    model_id = a_name()
    for name in ("first", "second"):
        shared_cluster.model(f"{model_id}-{name}", url=CIVITAI, modelId=model_id)
    assert gateway.call("verify_model", model_id=model_id)[0] == 404
    put_status(shared_cluster, f"{model_id}-second", artifact=ARTIFACT)
    assert gateway.call("verify_model", model_id=model_id)[0] == 200
    load(gateway, model_id, revision="fp16")
    assert shared_cluster.get("sdm", f"{model_id}-second")["spec"]["revision"] == "fp16"
    assert not shared_cluster.exists("sdm", model_id)


def test_loading_again_changes_what_differs_and_nothing_else(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """The same again writes nothing; what the vendor has no words for stays."""
    model_id = a_name()
    storage = {"claimName": "fast"}
    shared_cluster.model(
        model_id, url=CIVITAI, modelType="custom_ckpt", storage=storage, priority=7, sha256="0" * 64
    )
    load(gateway, model_id, webhook="https://hooks.example.com/a")
    first = shared_cluster.get("sdm", model_id)
    assert first["spec"]["webhook"] == "https://hooks.example.com/a"
    load(gateway, model_id, webhook="https://hooks.example.com/a")
    again = shared_cluster.get("sdm", model_id)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    load(gateway, model_id, url="https://civitai.com/api/download/models/1")
    other = shared_cluster.get("sdm", model_id)["spec"]
    assert (other["storage"], other["priority"]) == (storage, 7)
    assert other["url"].endswith("/1")
    assert "webhook" not in other, "each request says all that it wants"
    assert "sha256" not in other, "that was of the former file"


def test_a_stalled_model_is_tried_again(gateway: Gateway, shared_cluster: Cluster) -> None:
    """By the reload annotation; who calls again has perhaps mended the source."""
    model_id = a_name()
    load(gateway, model_id)
    put_status(shared_cluster, model_id, conditions={"Ready": "False", "Stalled": "True"})
    load(gateway, model_id)
    annotations = shared_cluster.get("sdm", model_id)["metadata"].get("annotations", {})
    assert annotations.get(names.ANNOTATION_RELOAD)


def test_many_who_load_one_id_at_once_make_one_model(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """All are answered well; the model is as one of them wanted it."""
    model_id = f"Many_{secrets.token_hex(3)}"
    urls = [f"https://civitai.com/{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda url: load(gateway, model_id, url=url), urls))
    made = [one for one in shared_cluster.list("sdm") if one["spec"].get("modelId") == model_id]
    assert len(made) == 1
    assert made[0]["spec"]["url"] in urls


def test_a_model_that_is_being_deleted_cannot_be_loaded(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """It is said so, and nothing is promised that would not come."""
    model_id = a_name()
    load(gateway, model_id)
    hold = json.dumps({"metadata": {"finalizers": ["example.com/hold"]}})
    shared_cluster.kubectl("patch", "sdm", model_id, "--type=merge", "-p", hold)
    assert gateway.call("delete_model", model_id=model_id)[0] == 200
    assert gateway.call("delete_model", model_id=model_id)[0] == 200, "it is on its way"
    status, answer = gateway.call("load_model", model_id=model_id, url="a/b", model_type="lora")
    assert (status, answer["status"]) == (409, "error")
    assert answer["message"] == f"Model {model_id} is being deleted; try again when it is gone"


def test_a_name_that_another_model_has_is_not_taken_over(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """The message names both."""
    model_id = a_name()
    shared_cluster.model(model_id, url=CIVITAI, modelId="somebody")
    status, answer = gateway.call("load_model", model_id=model_id, url="a/b", model_type="lora")
    assert status == 409
    assert answer["message"] == f"Resource {model_id} exists, and is model somebody"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(
            {"url": "org/name", "model_type": "custom_ckpt"},
            "with spec.modelType custom_ckpt, spec.url must be an http(s) link to the model file;"
            " a repo id needs spec.modelType: huggingface",
            id="a repo as a file",
        ),
        pytest.param({"url": "word", "model_type": "lora"}, "spec.url must be a", id="a word"),
        pytest.param(
            {"url": "a/b", "model_type": "lora", "webhook": "ftp://a"},
            "spec.webhook must be an http(s) URL",
            id="webhook",
        ),
        pytest.param({"url": "a/b"}, "model_type is required", id="missing"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    gateway: Gateway, said: dict[str, str], why: str
) -> None:
    """The resource's own rules, in its own words; 400."""
    status, answer = gateway.call("load_model", model_id=a_name(), **said)
    assert (status, answer["status"]) == (400, "error")
    assert answer["message"].startswith(why)


def test_a_body_too_large_is_refused(gateway: Gateway) -> None:
    """Announced or not."""
    raw = b'{"key":"' + b"x" * 70000 + b'"}'
    told = {"status": "error", "message": "The body may have at most 65536 bytes"}
    assert gateway.post("load_model", raw) == (413, told)
    chunked = requests.post(
        f"{gateway.url}{PREFIX}/load_model", data=iter([raw[:40000], raw[40000:]]), timeout=30
    )
    assert (chunked.status_code, chunked.json()) == (413, told)


def test_a_call_that_is_cut_short_leaves_no_trace(
    gateway: Gateway, shared_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a resource nor an error in the log; the next call is answered."""
    model_id = a_name()
    said = {"key": gateway.key, **VENDORS_OWN["checkpoint"], "model_id": model_id}
    raw = json.dumps(said).encode()
    head = f"POST {PREFIX}/load_model HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(head.encode() + raw)
    assert gateway.call("schedulers_list")[0] == 200
    assert not shared_cluster.exists("sdm", model_id)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_one_round_of_syncing_is_made_at_a_time(shared_cluster: Cluster, tmp_path: Path) -> None:
    """While the sources are asked, others are told to come again."""
    model_id = a_name()
    (key,) = write_keys(tmp_path / "keys", shared_cluster.namespace)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        shared_cluster.model(model_id, url=f"http://{host}/slow.ckpt")
        put_status(shared_cluster, model_id, artifact=ARTIFACT, source={"sizeBytes": 1})
        settings = Settings(
            tmp_path / "keys", shared_cluster.kubeconfig, CLAIM, allowed_hosts=frozenset({host})
        )
        with Gateway(settings, key) as gateway, ThreadPoolExecutor(1) as threads:
            first = threads.submit(gateway.call, "sync_models")
            asked, _ = silent.accept()
            silent.close()  # aiohttp tries once more
            status, answer = gateway.call("sync_models")
            asked.close()
            done = first.result()
    assert (status, answer["retry_after"]) == (429, 10)
    assert done[0] == 200
    assert model_id not in done[1]["model_list"]
    shared_cluster.kubectl("delete", "sdm", model_id)


def test_calls_are_logged_by_the_keys_id(
    gateway: Gateway, shared_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Never by the key."""
    caplog.set_level(logging.INFO)
    gateway.call("schedulers_list")
    gateway.post("schedulers_list", b'{"key":"wrong-key"}')
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert f"schedulers_list, by key {shared_cluster.namespace}-" in text
    assert gateway.key not in text
    assert "wrong-key" not in text


def test_clear_cache_sweeps_once_at_a_time(gateway: Gateway, shared_cluster: Cluster) -> None:
    """Called again while a sweep runs, it starts no other."""
    cleared = {"status": "success", "message": "Cache cleared successfully"}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: gateway.call("clear_cache"), range(4)))
    assert answers == [(200, cleared)] * 4
    jobs = shared_cluster.list("jobs", f"-l={names.LABEL_NAME}={names.SWEEP_NAME}")
    assert 1 <= len(jobs) <= 2, "two where a minute ended in between"


def test_the_schedulers_are_the_vendors(gateway: Gateway) -> None:
    """All 17, in its order."""
    assert len(SCHEDULERS) == len(set(SCHEDULERS)) == 17
    assert gateway.call("schedulers_list") == (200, {"schedulers": list(SCHEDULERS)})


def test_a_key_sees_the_models_of_its_namespace_only(
    gateway: Gateway, shared_cluster: Cluster, tmp_path: Path
) -> None:
    """Another's look as if they were not there; a namespace that is not there says so."""
    model_id = a_name()
    load(gateway, model_id)
    other, nowhere = write_keys(tmp_path / "keys", "default", "nowhere")
    settings = Settings(tmp_path / "keys", shared_cluster.kubeconfig)
    with Gateway(settings, other) as strange:
        unknown = {"status": "error", "message": "Model does not exist on server"}
        assert strange.call("verify_model", model_id=model_id) == (404, unknown)
        assert strange.call("delete_model", model_id=model_id) == (404, unknown)
        strange.key = nowhere
        said = {"url": "a/b", "model_id": "x", "model_type": "lora"}
        status, answer = strange.call("load_model", **said)
        assert (status, answer["status"]) == (404, "error")
    assert shared_cluster.exists("sdm", model_id)


def test_calls_are_limited_by_key_and_wrong_keys_by_address(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    """429 says when to try again; a good key is let in from an address with wrong ones too."""
    key, other = write_keys(tmp_path / "keys", shared_cluster.namespace, shared_cluster.namespace)
    settings = Settings(
        tmp_path / "keys", shared_cluster.kubeconfig, calls_per_minute=3, failures_per_minute=2
    )
    with Gateway(settings, "wrong") as gateway:
        assert [gateway.call("schedulers_list")[0] for _ in range(3)] == [401, 401, 429]
        gateway.key = key
        assert [gateway.call("schedulers_list")[0] for _ in range(4)] == [200, 200, 200, 429]
        gateway.key = other
        assert gateway.call("schedulers_list")[0] == 200
        gateway.key = key
        body = json.dumps({"key": key}).encode()
        status, headers, raw = gateway.request("POST", f"{PREFIX}/schedulers_list", body)
    answer = json.loads(raw)
    assert status == 429
    assert answer["message"] == "Too many calls; try again later"
    assert 1 <= answer["retry_after"] <= 20
    assert headers["Retry-After"] == str(answer["retry_after"])


def test_without_the_api_server_callers_are_told_to_come_again(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    """503, without an address; the probes stay green, for the gateway is well."""
    text = shared_cluster.kubeconfig.read_text()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(re.sub(r"(server: https?://[^:]+):\d+", r"\1:1", text))
    (key,) = write_keys(tmp_path / "keys", "art")
    with Gateway(Settings(tmp_path / "keys", kubeconfig), key) as gateway:
        status, answer = gateway.call("get_all_models")
        probes = [gateway.request("GET", path)[0] for path in ("/healthz", "/readyz")]
        (tmp_path / "keys").unlink()
        without_keys = gateway.request("GET", "/readyz")[0]
    assert (status, answer["retry_after"]) == (503, 5)
    assert answer["message"] == "The Kubernetes API server does not answer; try again in a moment"
    assert probes == [200, 200]
    assert without_keys == 503


def test_calls_are_counted_by_route_and_code(gateway: Gateway) -> None:
    """Whatever path is asked for, there are no more routes than the gateway has."""
    gateway.call("schedulers_list")
    gateway.request("GET", f"/{secrets.token_hex(8)}")
    text = generate_latest(gateway.metrics.registry).decode()
    route = f'route="{PREFIX}/schedulers_list"'
    assert f'sdmodel_gateway_requests_total{{code="200",{route}}}' in text
    assert f"sdmodel_gateway_request_duration_seconds_count{{{route}}}" in text
    assert 'sdmodel_gateway_requests_total{code="404",route="other"}' in text


def test_every_answer_tells_browsers_to_be_careful(gateway: Gateway) -> None:
    """Nothing is run, framed, kept or told to others."""
    for path in ("/docs", "/healthz", "/nowhere", f"{PREFIX}/load_model"):
        _, headers, _ = gateway.request("GET", path)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "script-src" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Server" not in headers
