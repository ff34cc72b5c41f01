"""Serves /docs: the OpenAPI document as an HTML page without scripts or external resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape

from sd_operator.gateway.guards import HEADERS

TEMPLATES = Path(__file__).parent / "templates"
POLICY = HEADERS["Content-Security-Policy"] + "; style-src 'self'"

Json = dict[str, Any]


@dataclass(frozen=True)
class BodyField:
    """A field of a request, as the page shows it."""

    name: str
    required: bool
    kind: str
    description: str


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as the page shows it."""

    path: str
    name: str
    summary: str
    fields: tuple[BodyField, ...]
    requests: dict[str, str]
    """Example requests as JSON, by title."""
    responses: dict[str, str]
    """Example responses as JSON, by status code and meaning."""


def add(app: FastAPI, public_url: str | None) -> None:
    """Add the routes of the page and its style sheet to the application."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), trim_blocks=True
    )

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """Return the page."""
        base = (public_url or str(request.base_url)).rstrip("/")
        page = templates.get_template("docs.html").render(
            title=app.title,
            version=app.version,
            base=base,
            endpoints=list(endpoints(app.openapi())),
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/docs/style.css", include_in_schema=False)
    async def style() -> Response:
        """Return the style sheet."""
        return Response((TEMPLATES / "docs.css").read_text(), media_type="text/css")


def endpoints(document: Json) -> Iterator[Endpoint]:
    """Yield the endpoints of an OpenAPI document."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            content = operation["requestBody"]["content"]["application/json"]
            yield Endpoint(
                path=path,
                name=operation["operationId"],
                summary=operation["summary"],
                fields=tuple(_fields(content["schema"])),
                requests={
                    title: json.dumps(example["value"], indent=2)
                    for title, example in content["examples"].items()
                },
                responses={
                    f"{status}: {response['description']}": json.dumps(
                        response["content"]["application/json"]["example"], indent=2
                    )
                    for status, response in operation["responses"].items()
                },
            )


def _fields(schema: Json) -> Iterator[BodyField]:
    for name, field in schema["properties"].items():
        types = [item for item in field.get("anyOf", [field]) if item.get("type") != "null"]
        choices = types[0].get("enum")
        kind = " | ".join(choices) if choices else str(types[0].get("type", ""))
        yield BodyField(
            name, name in schema.get("required", ()), kind, field.get("description", "")
        )
