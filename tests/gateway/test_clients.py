"""Who calls the vendor's endpoints, and how: its examples, clients of all kinds, keys."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import requests

from sd_operator.gateway import examples
from sd_operator.gateway.routes import PREFIX
from tests.support.gateway.gatewayloads import HOSTED, STARTED, VENDORS_OWN, a_name, load
from tests.support.gateway.gatewayrun import Gateway
from tests.support.kube.cluster import Cluster

pytestmark = pytest.mark.cluster

FORMS: dict[str, dict[str, str]] = {
    "curl": {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "curl/8.5.0"},
    "curl without a header": {"Content-Type": "application/x-www-form-urlencoded"},
    "Python requests": {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"},
    "JS fetch": {"Content-Type": "application/json", "Origin": "null", "Sec-Fetch-Mode": "cors"},
    "JS fetch without a header": {"Content-Type": "text/plain;charset=UTF-8"},
    "PHP curl": {"Content-Type": "application/json", "Expect": "100-continue"},
    "PHP curl without a header": {"Content-Type": "application/x-www-form-urlencoded"},
    "Node request": {"Content-Type": "application/json", "Connection": "close"},
    "Java OkHttp": {"Content-Type": "application/json; charset=utf-8", "User-Agent": "okhttp/4.9"},
    "no type at all": {},
}
"""The headers by which clients differ."""


@pytest.mark.parametrize("said", VENDORS_OWN.values(), ids=VENDORS_OWN)
def test_the_vendors_own_examples_load(
    gateway: Gateway, shared_cluster: Cluster, said: dict[str, str]
) -> None:
    """To the letter; with the page's empty key nobody is let in."""
    assert gateway.call("load_model", **said) == (200, STARTED)
    spec = shared_cluster.get("sdm", said["model_id"])["spec"]
    assert (spec["url"], spec["modelType"]) == (said["url"], said["model_type"])
    assert (spec["revision"], spec["webhook"]) == ("fp32", HOSTED["webhook"])
    assert spec.get("fromSafetensors") == (said.get("from_safetensors") == "yes" or None)
    assert "upcastAttention" not in spec
    empty = json.dumps({"key": "", **said}).encode()
    assert gateway.post("load_model", empty) == (
        401,
        {"status": "error", "message": "Invalid API key"},
    )


@pytest.mark.parametrize("headers", FORMS.values(), ids=FORMS)
def test_clients_of_all_kinds_are_understood(gateway: Gateway, headers: dict[str, str]) -> None:
    """The body is JSON whatever they call it; PHP escapes slashes."""
    said = {"key": gateway.key, **VENDORS_OWN["checkpoint"], "model_id": a_name()}
    raw = json.dumps(said, indent=4).replace("/", "\\/").encode()
    status, _, body = gateway.request("POST", f"{PREFIX}/load_model", raw, headers)
    assert (status, json.loads(body)) == (200, STARTED)


def test_curl_and_requests_themselves_are_understood(gateway: Gateway) -> None:
    """Sending as the vendor's page has it; and a form that is one."""
    said = {"key": gateway.key, **VENDORS_OWN["repo"]}
    url = f"{gateway.url}{PREFIX}/load_model"
    headers = {"Content-Type": "application/json"}
    data = json.dumps(said)
    assert requests.post(url, headers=headers, data=data, timeout=30).json() == STARTED
    assert requests.post(url, json=said, timeout=30).json() == STARTED
    assert requests.post(url, data=said, timeout=30).json() == STARTED
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not on PATH")
    command = [curl, "-sS", "--location", "--request", "POST", url, "--data-raw", data]
    for more in (["--header", "Content-Type: application/json"], []):
        done = subprocess.run([*command, *more], capture_output=True, check=True, timeout=30)
        assert json.loads(done.stdout) == STARTED


@pytest.mark.parametrize("endpoint", examples.REQUESTS)
def test_every_endpoint_wants_a_key(gateway: Gateway, endpoint: str) -> None:
    """A wrong key, none, and one that is no text are answered alike; GET is no way to ask."""
    wrong = [b"{}", b"", b'{"key":""}', b'{"key":"wrong"}', b'{"key":null}', b'{"key":[1]}']
    answers = [gateway.request("POST", f"{PREFIX}/{endpoint}", raw) for raw in wrong]
    answers.append(
        gateway.request(
            "POST", f"{PREFIX}/{endpoint}", b"{}", {"Authorization": f"Basic {gateway.key}"}
        )
    )
    assert {(status, body) for status, _, body in answers} == {
        (401, b'{"status":"error","message":"Invalid API key"}')
    }
    assert gateway.request("GET", f"{PREFIX}/{endpoint}")[0] == 405


@pytest.mark.parametrize("endpoint", examples.REQUESTS)
def test_the_documents_examples_are_answered_as_it_says(gateway: Gateway, endpoint: str) -> None:
    """Word for word; by the key in the header too, which counts where the body has none."""
    for example in examples.REQUESTS[endpoint].values():
        raw = json.dumps(example).encode()
        if endpoint in ("verify_model", "delete_model"):
            load(gateway, example["model_id"])
        status, answer = gateway.post(endpoint, raw, Authorization=f"Bearer {gateway.key}")
        if endpoint == "verify_model":
            assert (status, answer["status"]) == (404, "error"), "nobody loads it here"
            continue
        wanted = examples.ANSWERS[endpoint]
        assert status == 200
        assert answer.keys() == wanted.keys()
        if endpoint not in ("get_all_models", "sync_models", "system_details"):
            assert answer == wanted
