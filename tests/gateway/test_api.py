"""Tests of the vendor's ten endpoints over HTTP, on a real API server without an operator."""

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
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.gateway.vendor import SCHEDULERS
from sd_operator.resources.sweep import SweepLease
from tests.support.gateway.gatewayloads import CIVITAI, VENDOR_EXAMPLES, a_name, load, put_status
from tests.support.gateway.gatewayrun import ARTIFACT, Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster, claim_manifest

pytestmark = pytest.mark.cluster


def test_ready_model_is_reported_until_it_is_deleted(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """verify_model, get_all_models and system_details report the model until it is deleted."""
    model_id = f"My_Model.{secrets.token_hex(3)}"
    load(gateway, model_id)
    models = shared_cluster.list("sdm")
    (model,) = [body for body in models if body["spec"].get("modelId") == model_id]
    name = model["metadata"]["name"]
    assert re.fullmatch(r"my-model-[0-9a-f]{6}-[0-9a-f]{8}", name)
    before = gateway.call("system_details")[1]["model_count"]
    message = "Model is not on server: Pending: the load has not started"
    pending = {"phase": "Pending", "percent": None, "eta": None}
    assert gateway.call("verify_model", model_id=model_id) == (
        404,
        {"status": "error", "message": message, **pending},
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


def test_models_are_found_by_their_effective_id(gateway: Gateway, shared_cluster: Cluster) -> None:
    """spec.modelId takes precedence over the name; among several models, the Ready one is found."""
    model_id = a_name()
    for name in ("first", "second"):
        shared_cluster.model(f"{model_id}-{name}", url=CIVITAI, modelId=model_id)
    assert gateway.call("verify_model", model_id=model_id)[0] == 404
    put_status(shared_cluster, f"{model_id}-second", artifact=ARTIFACT)
    assert gateway.call("verify_model", model_id=model_id)[0] == 200
    load(gateway, model_id, revision="fp16")
    assert shared_cluster.get("sdm", f"{model_id}-second")["spec"]["revision"] == "fp16"
    assert not shared_cluster.exists("sdm", model_id)


def test_loading_again_changes_only_the_differences(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """A repeated request writes nothing. Storage and priority stay; sha256 goes with its url."""
    model_id = a_name()
    storage = {"claimName": "fast"}
    shared_cluster.apply(claim_manifest("fast"))
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
    assert "webhook" not in other, "a request without a webhook removes it"
    assert "sha256" not in other, "it was the digest of the previous file"


def test_url_of_a_caller_marks_the_model(gateway: Gateway, shared_cluster: Cluster) -> None:
    """A new model or url adds an annotation, which limits the Secrets that a load may use."""

    def mark(model_id: str) -> str | None:
        annotations = shared_cluster.get("sdm", model_id)["metadata"].get("annotations", {})
        marked: str | None = annotations.get(names.ANNOTATION_REQUESTED_BY)
        return marked

    made, owned = a_name(), a_name()
    load(gateway, made)
    assert mark(made) == names.REQUESTED_BY_GATEWAY
    shared_cluster.model(owned, url=CIVITAI, modelType="custom_ckpt")
    load(gateway, owned, webhook="https://hooks.example.com/a")
    assert mark(owned) is None
    load(gateway, owned, url="https://civitai.com/api/download/models/1")
    assert mark(owned) == names.REQUESTED_BY_GATEWAY


def test_loading_again_reloads_a_stalled_model(gateway: Gateway, shared_cluster: Cluster) -> None:
    """The gateway sets the reload annotation, because the caller may have fixed the source."""
    model_id = a_name()
    load(gateway, model_id)
    put_status(shared_cluster, model_id, conditions={"Ready": "False", "Stalled": "True"})
    load(gateway, model_id)
    annotations = shared_cluster.get("sdm", model_id)["metadata"].get("annotations", {})
    assert annotations.get(names.ANNOTATION_RELOAD)


def test_concurrent_loads_of_one_id_create_one_model(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """All callers get a success response; the model has the url of one of them."""
    model_id = f"Many_{secrets.token_hex(3)}"
    urls = [f"https://civitai.com/api/download/models/{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda url: load(gateway, model_id, url=url), urls))
    models = shared_cluster.list("sdm")
    created = [body for body in models if body["spec"].get("modelId") == model_id]
    assert len(created) == 1
    assert created[0]["spec"]["url"] in urls


def test_model_that_is_being_deleted_cannot_be_loaded(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """A load of a model that is being deleted gets an error: it would never happen."""
    model_id = a_name()
    load(gateway, model_id)
    hold = json.dumps({"metadata": {"finalizers": ["example.com/hold"]}})
    shared_cluster.kubectl("patch", "sdm", model_id, "--type=merge", "-p", hold)
    assert gateway.call("delete_model", model_id=model_id)[0] == 200
    assert gateway.call("delete_model", model_id=model_id)[0] == 200, "it is being deleted"
    status, response = gateway.call("load_model", model_id=model_id, url="a/b", model_type="lora")
    assert (status, response["status"]) == (409, "error")
    assert response["message"] == f"Model {model_id} is being deleted; try again when it is gone"


def test_resource_of_another_model_is_not_taken_over(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """The message names the resource and the model that it belongs to."""
    model_id = a_name()
    shared_cluster.model(model_id, url=CIVITAI, modelId="somebody")
    status, response = gateway.call("load_model", model_id=model_id, url="a/b", model_type="lora")
    assert status == 409
    assert response["message"] == (
        f"The resource name {model_id} belongs to model somebody;"
        " use another id, or delete that model"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param(
            {"url": "s3://bucket/model.ckpt", "model_type": "custom_ckpt"},
            "url is in an object store, which the loader does not read; give an https link to"
            " the file, for example a presigned one",
            id="object store",
        ),
        pytest.param(
            {"url": "org/name:fp16", "model_type": "lora"},
            "url has a tag after the repo id; give ORG/NAME, a precision such as fp16 in",
            id="tag",
        ),
        pytest.param(
            {"url": "a/b", "model_type": "api_trained"},
            "url must be a trained model's id or an http(s) link, as",
            id="repo id for a trained model",
        ),
        pytest.param({"url": "word", "model_type": "lora"}, "url must be a", id="invalid url"),
        pytest.param(
            {"url": "a/b", "model_type": "lora", "webhook": "ftp://a"},
            "webhook must be an http(s) URL",
            id="invalid webhook",
        ),
        pytest.param({"url": "a/b"}, "model_type is required", id="missing field"),
    ],
)
def test_invalid_request_gets_the_message_of_its_field(
    gateway: Gateway, fields: dict[str, str], message: str
) -> None:
    """The message is that of the CRD's rule, or of the gateway for its own fields."""
    status, response = gateway.call("load_model", model_id=a_name(), **fields)
    assert (status, response["status"]) == (400, "error")
    assert response["message"].startswith(message)


def test_too_large_body_is_rejected(gateway: Gateway) -> None:
    """The limit applies with and without a Content-Length header."""
    raw = b'{"key":"' + b"x" * 70000 + b'"}'
    error = {"status": "error", "message": "The body may have at most 65536 bytes"}
    assert gateway.post("load_model", raw) == (413, error)
    chunked = requests.post(
        f"{gateway.url}{PREFIX}/load_model", data=iter([raw[:40000], raw[40000:]]), timeout=30
    )
    assert (chunked.status_code, chunked.json()) == (413, error)


def test_incomplete_request_creates_nothing(
    gateway: Gateway, shared_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The client closes the connection within the body. No error is logged."""
    model_id = a_name()
    fields = {"key": gateway.key, **VENDOR_EXAMPLES["checkpoint"], "model_id": model_id}
    raw = json.dumps(fields).encode()
    head = f"POST {PREFIX}/load_model HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(head.encode() + raw)
    assert gateway.call("schedulers_list")[0] == 200
    assert not shared_cluster.exists("sdm", model_id)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_second_sync_is_rejected_while_one_is_running(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    """The response has status 429 and a retry time."""
    model_id = a_name()
    (key,) = write_keys(tmp_path / "keys", shared_cluster.namespace)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        shared_cluster.model(model_id, url=f"http://{host}/slow.ckpt")
        put_status(shared_cluster, model_id, artifact=ARTIFACT, source={"sizeBytes": 1})
        settings = GatewaySettings(
            tmp_path / "keys", shared_cluster.kubeconfig, CLAIM, allowed_hosts=frozenset({host})
        )
        with Gateway(settings, key) as gateway, ThreadPoolExecutor(1) as threads:
            first = threads.submit(gateway.call, "sync_models")
            connection, _ = silent.accept()
            silent.close()  # otherwise aiohttp's second attempt would wait for an answer
            status, response = gateway.call("sync_models")
            connection.close()
            first_status, first_response = first.result()
    assert (status, response["retry_after"]) == (429, 10)
    assert first_status == 200
    assert model_id not in first_response["model_list"]
    shared_cluster.kubectl("delete", "sdm", model_id)


def test_log_has_the_id_of_a_key_and_never_the_key(
    gateway: Gateway, shared_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the id of a correct key; neither a correct nor a wrong key is logged itself."""
    caplog.set_level(logging.INFO)
    gateway.call("schedulers_list")
    gateway.post("schedulers_list", b'{"key":"wrong-key"}')
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert f"schedulers_list called with key {shared_cluster.namespace}-" in text
    assert gateway.key not in text
    assert "wrong-key" not in text


CLEARED = (200, {"status": "success", "message": "Cache cleared successfully"})


def test_clear_cache_requests_one_sweep(gateway: Gateway, shared_cluster: Cluster) -> None:
    """Concurrent calls all succeed; while a request is open, another one writes nothing."""
    shared_cluster.kubectl("create", "-f", "-", stdin=json.dumps(SweepLease.empty()))
    with ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: gateway.call("clear_cache"), range(4)))
    assert responses == [CLEARED] * 4
    lease = shared_cluster.get("lease", names.SWEEP_LEASE)
    assert SweepLease(lease).is_open

    assert gateway.call("clear_cache") == CLEARED

    assert shared_cluster.get("lease", names.SWEEP_LEASE) == lease
    assert shared_cluster.list("jobs", labelSelector=f"{names.LABEL_NAME}={names.SWEEP_NAME}") == []
    done = SweepLease(lease).answer("sd-loader-sweep-1", "u")
    shared_cluster.kubectl("replace", "-f", "-", stdin=json.dumps(done))
    assert gateway.call("clear_cache") == CLEARED
    again = shared_cluster.get("lease", names.SWEEP_LEASE)["spec"]
    assert again["renewTime"] > again["acquireTime"] == lease["spec"]["renewTime"]
    assert again["holderIdentity"] == "sd-loader-sweep-1"
    shared_cluster.kubectl("delete", "lease", names.SWEEP_LEASE)


def test_clear_cache_of_a_namespace_without_models_succeeds(
    gateway: Gateway, shared_cluster: Cluster
) -> None:
    """Without a Lease, the call succeeds and does nothing: the namespace never had a model."""
    assert not shared_cluster.exists("lease", names.SWEEP_LEASE)
    assert gateway.call("clear_cache") == CLEARED
    assert not shared_cluster.exists("lease", names.SWEEP_LEASE)


def test_schedulers_are_those_of_the_vendor(gateway: Gateway) -> None:
    """There are 17 different names, in the vendor's order."""
    assert len(SCHEDULERS) == len(set(SCHEDULERS)) == 17
    assert gateway.call("schedulers_list") == (200, {"schedulers": list(SCHEDULERS)})


def test_key_gives_access_to_its_own_namespace_only(
    gateway: Gateway, shared_cluster: Cluster, tmp_path: Path
) -> None:
    """Models of another namespace are not found. A key of a missing namespace gets status 404."""
    model_id = a_name()
    load(gateway, model_id)
    other, nowhere = write_keys(tmp_path / "keys", "default", "nowhere")
    settings = GatewaySettings(tmp_path / "keys", shared_cluster.kubeconfig)
    with Gateway(settings, other) as other_gateway:
        unknown = {"status": "error", "message": "Model does not exist on server"}
        assert other_gateway.call("verify_model", model_id=model_id) == (404, unknown)
        assert other_gateway.call("delete_model", model_id=model_id) == (404, unknown)
        other_gateway.key = nowhere
        fields = {"url": "a/b", "model_id": "x", "model_type": "lora"}
        status, response = other_gateway.call("load_model", **fields)
        assert (status, response["status"]) == (404, "error")
    assert shared_cluster.exists("sdm", model_id)


def test_calls_are_limited_per_key_and_failures_per_address(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    """The response says when to try again; failures do not lock out a correct key."""
    key, other = write_keys(tmp_path / "keys", shared_cluster.namespace, shared_cluster.namespace)
    settings = GatewaySettings(
        tmp_path / "keys", shared_cluster.kubeconfig, calls_per_minute=3, failures_per_minute=2
    )
    with Gateway(settings, "wrong") as gateway:
        broken = gateway.post("schedulers_list", b'{"key": ')[0]
        assert [broken, *(gateway.call("schedulers_list")[0] for _ in range(2))] == [400, 401, 429]
        code, answer = gateway.post("schedulers_list", b'{"key": ')
        assert (code, answer["message"]) == (429, "Too many unreadable bodies; try again later")
        gateway.key = key
        assert [gateway.call("schedulers_list")[0] for _ in range(4)] == [200, 200, 200, 429]
        gateway.key = other
        assert gateway.call("schedulers_list")[0] == 200
        gateway.key = key
        body = json.dumps({"key": key}).encode()
        status, headers, raw = gateway.request("POST", f"{PREFIX}/schedulers_list", body)
    response = json.loads(raw)
    assert status == 429
    assert response["message"] == "Too many calls; try again later"
    assert 1 <= response["retry_after"] <= 20
    assert headers["Retry-After"] == str(response["retry_after"])


def test_unavailable_api_server_gives_status_503(shared_cluster: Cluster, tmp_path: Path) -> None:
    """The message has no address. Both probes succeed; readiness needs only the key file."""
    text = shared_cluster.kubeconfig.read_text()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(re.sub(r"(server: https?://[^:]+):\d+", r"\1:1", text))
    (key,) = write_keys(tmp_path / "keys", "art")
    with Gateway(GatewaySettings(tmp_path / "keys", kubeconfig), key) as gateway:
        status, response = gateway.call("get_all_models")
        probes = [gateway.request("GET", path)[0] for path in ("/healthz", "/readyz")]
        (tmp_path / "keys").unlink()
        without_keys = gateway.request("GET", "/readyz")[0]
    assert (status, response["retry_after"]) == (503, 5)
    assert response["message"] == "The Kubernetes API server does not answer; try again in a moment"
    assert probes == [200, 200]
    assert without_keys == 503


def test_calls_are_counted_by_route_and_code(gateway: Gateway) -> None:
    """Calls of unknown paths share one route label, so that callers cannot add labels."""
    gateway.call("schedulers_list")
    gateway.request("GET", f"/{secrets.token_hex(8)}")
    text = generate_latest(gateway.metrics.registry).decode()
    route = f'route="{PREFIX}/schedulers_list"'
    assert f'sdmodel_gateway_requests_total{{code="200",{route}}}' in text
    assert f"sdmodel_gateway_request_duration_seconds_count{{{route}}}" in text
    assert 'sdmodel_gateway_requests_total{code="404",route="other"}' in text
    assert 'sdmodel_build_info{component="gateway",' in text, "the operator serves it as well"


def test_every_response_has_security_headers(gateway: Gateway) -> None:
    """The headers forbid scripts, frames, storing, and sending the URL as a referrer."""
    for path in ("/docs", "/healthz", "/nowhere", f"{PREFIX}/load_model"):
        _, headers, _ = gateway.request("GET", path)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "script-src" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Server" not in headers
