"""Templates and static files, and the headers that pages go out with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

ROOT = "/gallery"

_PACKAGE = "sd_operator.gateway.gallery"
_TYPES = {
    "gallery.css": "text/css; charset=utf-8",
    "gallery.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "sse.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    # Under no-referrer browsers send `Origin: null` with forms, which could be anybody's.
    "Referrer-Policy": "same-origin",
}


@dataclass(frozen=True)
class Static:
    """A file that never changes under its address, which has its digest in it."""

    content: bytes
    media_type: str
    digest: str

    def response(self) -> Response:
        """The file, to be kept."""
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read(name: str, media_type: str) -> Static:
    content = (files(_PACKAGE) / "static" / name).read_bytes()
    return Static(content, media_type, hashlib.sha256(content).hexdigest()[:12])


STATIC = {name: _read(name, media_type) for name, media_type in _TYPES.items()}


def _static_url(name: str) -> str:
    return f"{ROOT}/static/{name}?v={STATIC[name].digest}"


_ENVIRONMENT = Environment(
    loader=PackageLoader(_PACKAGE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals |= {"static": _static_url, "root": ROOT, "namespace": None}


def render(template: str, **values: object) -> str:
    """A template's text; every value is escaped."""
    return _ENVIRONMENT.get_template(template).render(values)


def page(template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A page."""
    return HTMLResponse(render(template, **values), status, _HEADERS)
