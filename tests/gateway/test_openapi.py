"""The OpenAPI document, its page, and what comes of requests made from it at random."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from sd_operator.clients.kube import Api
from sd_operator.gateway import examples
from sd_operator.gateway.app import create_app
from sd_operator.gateway.docs import endpoints
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import Settings
from tests.support.gateway.gatewayrun import Gateway

OPERATIONS = list(examples.REQUESTS)
NEVER = HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture
ROUTES = settings(
    max_examples=12, deadline=None, suppress_health_check=NEVER, phases=[Phase.generate]
)
THOROUGH = settings(ROUTES, max_examples=120)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document; no connection is needed for it."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    found: dict[str, Any] = create_app(Settings(path), Api(None)).openapi()
    return found


def test_the_document_has_the_endpoints(document: dict[str, Any]) -> None:
    """The ten, each with its examples, its errors and the key in the header."""
    assert list(document["paths"]) == [f"{PREFIX}/{name}" for name in OPERATIONS]
    for name in OPERATIONS:
        ((method, operation),) = document["paths"][f"{PREFIX}/{name}"].items()
        assert method == "post"
        content = operation["requestBody"]["content"]["application/json"]
        values = [one["value"] for one in content["examples"].values()]
        assert values == list(examples.REQUESTS[name].values())
        assert list(operation["responses"]) == [
            "200",
            "400",
            "401",
            "404",
            "409",
            "413",
            "429",
            "503",
        ]
        (scheme,) = operation["security"][0]
        assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"


def test_the_examples_fit_the_schemas(document: dict[str, Any]) -> None:
    """Every required field is there, and no field is unknown."""
    for name in OPERATIONS:
        operation = document["paths"][f"{PREFIX}/{name}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for value in examples.REQUESTS[name].values():
            assert set(schema.get("required", ())) <= value.keys() <= schema["properties"].keys()


class Page(HTMLParser):
    """What a page loads, leads to and runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.add(tag)
        given = dict(attrs)
        self.links += [str(given[name]) for name in ("href", "src", "action") if name in given]
        if given.get("id"):
            self.ids.add(str(given["id"]))
        assert not any(name.startswith("on") or name == "style" for name in given)


@pytest.mark.cluster
def test_the_page_works_offline(gateway: Gateway, document: dict[str, Any]) -> None:
    """No script, nothing from elsewhere; its links lead somewhere; all endpoints are on it."""
    status, headers, raw = gateway.request("GET", "/docs")
    page = Page(raw.decode())
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert headers["Content-Security-Policy"].endswith("; style-src 'self'")
    assert not page.tags & {"script", "iframe", "img", "form", "style"}
    assert page.ids >= {one.name for one in endpoints(document)}
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert gateway.request("GET", f"/{link}")[0] == 200
    assert json.loads(gateway.request("GET", "/openapi.json")[2]) == document
    curl = re.findall(r"curl -sS (\S+)", raw.decode())
    assert f"{gateway.url}{PREFIX}/load_model" in curl


def explore(gateway: Gateway, name: str, how: settings) -> int:
    """Make requests of one operation from the document; returns how many were made."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    made = 0

    @how
    @given(case=schema[f"{PREFIX}/{name}"]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        nonlocal made
        made += 1
        case.call_and_validate(
            session=session,
            headers={"Authorization": f"Bearer {gateway.key}"},
            checks=[not_a_server_error],
        )

    with requests.Session() as session:
        ask()
    return made


@pytest.mark.cluster
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_request_makes_the_gateway_fail(gateway: Gateway, name: str, tally: Any) -> None:
    """A few of each endpoint, as schemathesis makes them of the document."""
    tally("requests made of the OpenAPI document", explore(gateway, name, ROUTES))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_request_of_many_makes_the_gateway_fail(gateway: Gateway, name: str, tally: Any) -> None:
    """Hundreds of each."""
    tally("requests made of the OpenAPI document", explore(gateway, name, THOROUGH))
