"""Renders templates, and holds static files and the security headers of pages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from sd_operator.gateway.gallery.art import art

ROOT = "/gallery"

_PACKAGE = "sd_operator.gateway.gallery"
_TYPES = {
    "gallery.css": "text/css; charset=utf-8",
    "gallery.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_EXTRA = {
    # A worker takes its policy from the response with its script, not from the page.
    "stream.js": {"Content-Security-Policy": "default-src 'none'; connect-src 'self'"},
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    # With no-referrer, browsers would send `Origin: null` with forms. A foreign page can make them
    # send the same, so the gallery could not tell its own forms from others.
    "Referrer-Policy": "same-origin",
}


@dataclass(frozen=True)
class Static:
    """A static file. Its URL contains its digest, so the content of a URL never changes."""

    content: bytes
    media_type: str
    digest: str
    headers: dict[str, str]

    def response(self) -> Response:
        """Return the file with headers that let browsers cache it for a year."""
        headers = {"Cache-Control": "public, max-age=31536000, immutable", **self.headers}
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read(name: str, media_type: str) -> Static:
    content = (files(_PACKAGE) / "static" / name).read_bytes()
    return Static(
        content, media_type, hashlib.sha256(content).hexdigest()[:12], _EXTRA.get(name, {})
    )


STATIC = {name: _read(name, media_type) for name, media_type in _TYPES.items()}


def static_url(name: str) -> str:
    """Return the URL of a static file."""
    return f"{ROOT}/static/{name}?v={STATIC[name].digest}"


def model_url(name: str) -> str:
    """Return the URL of a model's page."""
    return f"{ROOT}/models/{quote(name, safe='')}"


_ENVIRONMENT = Environment(
    loader=PackageLoader(_PACKAGE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals |= {
    "art": art,
    "model_url": model_url,
    "namespace": None,
    "root": ROOT,
    "static": static_url,
}


def render(template: str, **values: object) -> str:
    """Render a template; every value is escaped."""
    return _ENVIRONMENT.get_template(template).render(values)


def page(template: str, status: int = 200, **values: object) -> HTMLResponse:
    """Return a rendered template as an HTML response."""
    return HTMLResponse(render(template, **values), status, _HEADERS)
