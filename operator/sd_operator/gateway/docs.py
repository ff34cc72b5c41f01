"""Serves /docs: the OpenAPI document as an HTML page without scripts or external resources.

The page has the gallery's colours and header, and a link to the gallery.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from sd_operator.gateway.gallery.pages import ROOT, static_url
from sd_operator.gateway.guards import HEADERS

TEMPLATES = Path(__file__).parent / "templates"
POLICY = HEADERS["Content-Security-Policy"] + "; style-src 'self'"

Json = dict[str, Any]


@dataclass(frozen=True)
class FieldRow:
    """A field of a request's body, or a parameter of its path, with the texts for /docs."""

    name: str
    required: bool
    kind: str
    description: str


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, with the texts for /docs."""

    method: str
    path: str
    name: str
    summary: str
    fields: tuple[FieldRow, ...]
    requests: dict[str, str]
    """Example requests by title: the part of a curl command after the gateway's URL."""
    responses: dict[str, str]
    """Example responses as JSON, by status code and meaning."""


def add(app: FastAPI, public_url: str | None) -> None:
    """Add the routes of /docs and of its style sheet to the application."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), trim_blocks=True
    )
    templates.filters["code"] = with_code

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """Return the HTML page /docs."""
        base = (public_url or str(request.base_url)).rstrip("/")
        page = templates.get_template("docs.html").render(
            title=app.title,
            version=app.version,
            base=base,
            gallery_style=static_url("gallery.css"),
            gallery=ROOT,
            endpoints=list(endpoints(app.openapi())),
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/docs/style.css", include_in_schema=False)
    async def style() -> Response:
        """Return the style sheet of /docs."""
        return Response((TEMPLATES / "docs.css").read_text(), media_type="text/css")


def endpoints(document: Json) -> Iterator[Endpoint]:
    """Yield the endpoints of an OpenAPI document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody")
            yield Endpoint(
                method=method.upper(),
                path=path,
                name=operation["operationId"],
                summary=operation["summary"],
                fields=tuple(_fields(body) if body else _parameters(operation)),
                requests=_posts(path, body) if body else {"": _get(path, operation)},
                responses={
                    f"{status}: {response['description']}": json.dumps(
                        response["content"]["application/json"]["example"], indent=2
                    )
                    for status, response in operation["responses"].items()
                },
            )


def _fields(body: Json) -> Iterator[FieldRow]:
    schema = body["content"]["application/json"]["schema"]
    for name, field in schema["properties"].items():
        types = [item for item in field.get("anyOf", [field]) if item.get("type") != "null"]
        choices = types[0].get("enum")
        kind = " | ".join(choices) if choices else str(types[0].get("type", ""))
        yield FieldRow(name, name in schema.get("required", ()), kind, field.get("description", ""))


def _parameters(operation: Json) -> Iterator[FieldRow]:
    for parameter in operation["parameters"]:
        kind = parameter["schema"]["type"]
        yield FieldRow(parameter["name"], parameter["required"], kind, parameter["description"])


def _posts(path: str, body: Json) -> dict[str, str]:
    return {
        title: f"{path} -H 'Content-Type: application/json' -d '"
        + json.dumps(example["value"], indent=2)
        + "'"
        for title, example in body["content"]["application/json"]["examples"].items()
    }


def _get(path: str, operation: Json) -> str:
    examples = {parameter["name"]: parameter["example"] for parameter in operation["parameters"]}
    return f"{path.format(**examples)} -H 'Authorization: Bearer KEY'"


def with_code(text: str) -> Markup:
    """Return HTML of a text, in which words between backticks are code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )
