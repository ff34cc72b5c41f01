"""Tests of the endpoints with many clients: the vendor's examples, other clients, keys."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import requests

from sd_operator.gateway import examples
from sd_operator.gateway.routes import PREFIX
from tests.support.gateway.gatewayloads import HOSTED, STARTED, VENDOR_EXAMPLES, a_name, load
from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster

pytestmark = pytest.mark.cluster

HEADERS: dict[str, dict[str, str]] = {
    "curl": {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "curl/8.5.0"},
    "curl without a header": {"Content-Type": "application/x-www-form-urlencoded"},
    "Python requests": {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"},
    "JS fetch": {"Content-Type": "application/json", "Origin": "null", "Sec-Fetch-Mode": "cors"},
    "JS fetch without a header": {"Content-Type": "text/plain;charset=UTF-8"},
    "PHP curl": {"Content-Type": "application/json", "Expect": "100-continue"},
    "PHP curl without a header": {"Content-Type": "application/x-www-form-urlencoded"},
    "Node request": {"Content-Type": "application/json", "Connection": "close"},
    "Java OkHttp": {"Content-Type": "application/json; charset=utf-8", "User-Agent": "okhttp/4.9"},
    "no headers": {},
}
"""The request headers of common clients."""


@pytest.mark.parametrize("fields", VENDOR_EXAMPLES.values(), ids=VENDOR_EXAMPLES)
def test_examples_of_the_vendor_load_models(
    gateway: Gateway, shared_cluster: Cluster, fields: dict[str, str]
) -> None:
    """The vendor's examples work unchanged, except that their empty key must be replaced."""
    assert gateway.call("load_model", **fields) == (200, STARTED)
    spec = shared_cluster.get("sdm", fields["model_id"])["spec"]
    assert (spec["url"], spec["modelType"]) == (fields["url"], fields["model_type"])
    assert (spec["revision"], spec["webhook"]) == ("fp32", HOSTED["webhook"])
    assert spec.get("fromSafetensors") == (fields.get("from_safetensors") == "yes" or None)
    assert "upcastAttention" not in spec
    empty = json.dumps({"key": "", **fields}).encode()
    assert gateway.post("load_model", empty) == (
        401,
        {"status": "error", "message": "Invalid API key"},
    )


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_headers_of_all_common_clients_work(gateway: Gateway, headers: dict[str, str]) -> None:
    """The body is read as JSON whatever its Content-Type, and may escape slashes as PHP does."""
    fields = {"key": gateway.key, **VENDOR_EXAMPLES["checkpoint"], "model_id": a_name()}
    raw = json.dumps(fields, indent=4).replace("/", "\\/").encode()
    status, _, body = gateway.request("POST", f"{PREFIX}/load_model", raw, headers)
    assert (status, json.loads(body)) == (200, STARTED)


def test_real_curl_and_requests_work(gateway: Gateway) -> None:
    """A load starts for JSON from curl or the package requests, and for a form from requests."""
    fields = {"key": gateway.key, **VENDOR_EXAMPLES["repo"]}
    url = f"{gateway.url}{PREFIX}/load_model"
    headers = {"Content-Type": "application/json"}
    data = json.dumps(fields)
    assert requests.post(url, headers=headers, data=data, timeout=30).json() == STARTED
    assert requests.post(url, json=fields, timeout=30).json() == STARTED
    assert requests.post(url, data=fields, timeout=30).json() == STARTED
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not on PATH")
    command = [curl, "-sS", "--location", "--request", "POST", url, "--data-raw", data]
    for options in (["--header", "Content-Type: application/json"], []):
        process = subprocess.run([*command, *options], capture_output=True, check=True, timeout=30)
        assert json.loads(process.stdout) == STARTED


@pytest.mark.parametrize("endpoint", examples.REQUESTS)
def test_every_endpoint_needs_a_key_and_post(gateway: Gateway, endpoint: str) -> None:
    """A wrong, missing or non-text key gives the same response; GET is not allowed."""
    wrong = [b"{}", b"", b'{"key":""}', b'{"key":"wrong"}', b'{"key":null}', b'{"key":[1]}']
    responses = [gateway.request("POST", f"{PREFIX}/{endpoint}", raw) for raw in wrong]
    responses.append(
        gateway.request(
            "POST", f"{PREFIX}/{endpoint}", b"{}", {"Authorization": f"Basic {gateway.key}"}
        )
    )
    assert {(status, body) for status, _, body in responses} == {
        (401, b'{"status":"error","message":"Invalid API key"}')
    }
    assert gateway.request("GET", f"{PREFIX}/{endpoint}")[0] == 405


@pytest.mark.parametrize("endpoint", examples.REQUESTS)
def test_openapi_examples_get_the_documented_responses(gateway: Gateway, endpoint: str) -> None:
    """The key is in the header, because the key in the examples' body is empty."""
    for example in examples.REQUESTS[endpoint].values():
        raw = json.dumps(example).encode()
        if endpoint in ("verify_model", "delete_model"):
            load(gateway, example["model_id"])
        status, response = gateway.post(endpoint, raw, Authorization=f"Bearer {gateway.key}")
        if endpoint == "verify_model":
            assert (status, response["status"]) == (404, "error"), "no operator loads it here"
            continue
        documented = examples.RESPONSES[endpoint]
        assert status == 200
        assert response.keys() == documented.keys()
        if endpoint not in ("get_all_models", "sync_models", "system_details"):
            assert response == documented
