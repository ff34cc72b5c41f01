"""Requests with mistakes or to unknown endpoints get a response that the caller understands."""

from __future__ import annotations

import pytest

from sd_operator.gateway.routes import PREFIX
from tests.support.gateway.gatewayrun import Gateway


def test_broken_json_is_not_reported_as_a_wrong_key(gateway: Gateway) -> None:
    """The message says that the JSON is broken, even if the content type is that of a form."""
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        code, answer = gateway.post("verify_model", b'{"key": "k",}', Content_Type=content_type)
        assert code == 400
        assert answer["message"].startswith("The body is not valid JSON: ")


def test_endpoint_with_a_slash_at_its_end_works(gateway: Gateway) -> None:
    """A slash at the end of the path is accepted: the vendor's docs show some endpoints so."""
    assert gateway.call("get_all_models/")[0] == 200


def test_unknown_fields_are_ignored_with_a_warning(gateway: Gateway) -> None:
    """The request succeeds, and `warnings` in the response names the unknown fields."""
    code, answer = gateway.call("get_all_models", track_id=7)
    assert (code, answer["status"]) == (200, "success")
    assert answer["warnings"] == ["unknown fields are ignored: track_id"]


@pytest.mark.parametrize("endpoint", ["text2img", "img2img/", "fetch/12"])
def test_other_endpoints_of_the_vendor_are_rejected_with_an_explanation(
    gateway: Gateway, endpoint: str
) -> None:
    """The message says that images come from an inference server."""
    code, answer = gateway.call(endpoint, prompt="a fox")
    assert code == 404
    assert answer["status"] == "error"
    assert "it loads models. Images come from an inference server" in answer["message"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/api/v6/images/text2img", "/api/v3/dreambooth/", "/api/v1"])
def test_other_apis_of_the_vendor_are_rejected_with_the_same_explanation(
    gateway: Gateway, path: str, method: str
) -> None:
    """The response has status 404 and the same message as for the vendor's other endpoints.

    A client with a wrong base URL may call, for example, the vendor's community API.
    """
    code, _, body = gateway.request(method, path, b'{"prompt": "a fox"}')
    assert code == 404
    assert b"it loads models. Images come from an inference server" in body


@pytest.mark.parametrize(
    ("method", "endpoint", "right"),
    [("GET", "load_model", "POST"), ("PUT", "load_vae/", "POST"), ("POST", "status/x", "GET")],
)
def test_endpoint_with_the_wrong_method_names_the_right_one(
    gateway: Gateway, method: str, endpoint: str, right: str
) -> None:
    """The Allow header and the message name the method."""
    code, headers, body = gateway.request(method, f"{PREFIX}/{endpoint}", b"{}")
    assert (code, headers["Allow"]) == (405, right)
    assert f"This endpoint takes only {right} requests".encode() in body
