"""Tests of the OpenAPI document, of its HTML page, and of random requests made from it."""

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
from sd_operator.gateway.docs import endpoints, with_code
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import Gateway

OPERATIONS = list(examples.REQUESTS)
STATUS = f"{PREFIX}/status/{{model_id}}"
IGNORED_CHECKS = (
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
)
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=IGNORED_CHECKS, phases=[Phase.generate]
)
THOROUGH = settings(QUICK, max_examples=120)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document; building it needs no connection to an API server."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    openapi: dict[str, Any] = create_app(GatewaySettings(path), Api(None)).openapi()
    return openapi


def test_document_describes_every_endpoint(document: dict[str, Any]) -> None:
    """Each endpoint has its examples, its error responses, and the key in a header."""
    paths = {f"{PREFIX}/{name}" for name in OPERATIONS}
    assert set(document["paths"]) == {*paths, STATUS}
    for name in OPERATIONS:
        ((method, operation),) = document["paths"][f"{PREFIX}/{name}"].items()
        assert method == "post"
        content = operation["requestBody"]["content"]["application/json"]
        values = [example["value"] for example in content["examples"].values()]
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


def test_document_describes_the_progress_of_a_load(document: dict[str, Any]) -> None:
    """Status has its parameter; status and verify_model have the fields of a loading model."""
    ((method, status),) = document["paths"][STATUS].items()
    assert method == "get"
    assert "requestBody" not in status
    assert [parameter["name"] for parameter in status["parameters"]] == ["model_id"]
    assert list(status["responses"]) == ["200", "400", "401", "404", "429", "503"]
    assert status["security"] == document["paths"][f"{PREFIX}/load_model"]["post"]["security"]
    verify = document["paths"][f"{PREFIX}/verify_model"]["post"]
    for operation in (status, verify):
        loading = operation["responses"]["404"]["content"]["application/json"]
        assert loading["example"].items() >= {"phase": "Downloading", "percent": 40}.items()
        assert set(loading["example"]) <= set(loading["schema"]["properties"])


def test_examples_match_the_schemas(document: dict[str, Any]) -> None:
    """Every example has all required fields and no unknown field."""
    for name in OPERATIONS:
        operation = document["paths"][f"{PREFIX}/{name}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for value in examples.REQUESTS[name].values():
            assert set(schema.get("required", ())) <= value.keys() <= schema["properties"].keys()


class Page(HTMLParser):
    """The tags, links and ids of a page; it must have no inline styles or event handlers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.add(tag)
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("href", "src", "action") if name in values]
        if values.get("id"):
            self.ids.add(str(values["id"]))
        assert not any(name.startswith("on") or name == "style" for name in values)


@pytest.mark.cluster
def test_docs_page_works_offline(gateway: Gateway, document: dict[str, Any]) -> None:
    """The page has every endpoint, working links, and no scripts or external resources."""
    status, headers, raw = gateway.request("GET", "/docs")
    page = Page(raw.decode())
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert headers["Content-Security-Policy"].endswith("; style-src 'self'")
    assert not page.tags & {"script", "iframe", "img", "form", "style"}
    assert page.ids >= {endpoint.name for endpoint in endpoints(document)}
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            expected = 303 if link == "/gallery/" else 200
            assert gateway.request("GET", link)[0] == expected
    assert "/gallery/" in page.links
    assert "`" not in raw.decode()
    assert "it may be sent as <code>Authorization: Bearer</code> instead" in raw.decode()
    assert f"<code>GET {STATUS}</code>" in raw.decode()
    assert json.loads(gateway.request("GET", "/openapi.json")[2]) == document
    curl = re.findall(r"curl -sS (\S+)", raw.decode())
    assert f"{gateway.url}{PREFIX}/load_model" in curl
    assert f"{gateway.url}{PREFIX}/status/majicmix-realistic" in curl


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("no code", "no code"),
        ("send `a: <b>` or `c`", "send <code>a: &lt;b&gt;</code> or <code>c</code>"),
        ("<b> & `x`", "&lt;b&gt; &amp; <code>x</code>"),
    ],
)
def test_words_between_backticks_are_code(text: str, html: str) -> None:
    """The page shows code in the descriptions' Markdown as HTML, and escapes all text."""
    assert with_code(text) == html


def explore(gateway: Gateway, path: str, method: str, effort: settings) -> int:
    """Send random requests to one operation of the document; return how many."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    count = 0

    @effort
    @given(case=schema[path][method].as_strategy())
    def send(case: schemathesis.Case) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(
            session=session,
            headers={"Authorization": f"Bearer {gateway.key}"},
            checks=[not_a_server_error],
        )

    with requests.Session() as session:
        send()
    return count


CALLS = [*((f"{PREFIX}/{name}", "POST") for name in OPERATIONS), (STATUS, "GET")]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("path", "method"), [call for call in CALLS if call[0].endswith(("load_model", STATUS))]
)
def test_random_requests_cause_no_server_error(
    gateway: Gateway, path: str, method: str, tally: Any
) -> None:
    """One POST and one GET endpoint get a few requests from schemathesis."""
    tally("requests made of the OpenAPI document", explore(gateway, path, method, QUICK))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(("path", "method"), CALLS)
def test_many_random_requests_cause_no_server_error(
    gateway: Gateway, path: str, method: str, tally: Any
) -> None:
    """Each endpoint gets up to 120 requests, made by schemathesis."""
    tally("requests made of the OpenAPI document", explore(gateway, path, method, THOROUGH))
