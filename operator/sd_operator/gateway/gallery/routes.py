"""The gallery's routes. Every page except the login needs a key, and shows its namespace."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal
from urllib.parse import quote

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sd_operator.base.errors import ApiError
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import RefusedError, map_error
from sd_operator.gateway.gallery import forms, live, previews, session
from sd_operator.gateway.gallery.actions import Actions
from sd_operator.gateway.gallery.loading import Loading
from sd_operator.gateway.gallery.pages import ROOT, STATIC, page
from sd_operator.gateway.gallery.reading import Reading
from sd_operator.gateway.keys import Key

log = logging.getLogger(__name__)

STREAMS_PER_KEY = 20

Handler = Callable[[Request], Awaitable[Response]]
KeyHandler = Callable[[Request, Key], Awaitable[Response]]


def mount(app: FastAPI, context: Context) -> None:
    """Serve the gallery under /gallery/, and redirect / to it."""

    @app.get("/", include_in_schema=False)
    @app.get(ROOT, include_in_schema=False)
    async def to_gallery() -> Response:
        return RedirectResponse(f"{ROOT}/", 303)

    app.mount(ROOT, Gallery(context).application())


class Gallery:
    """The pages of one gateway."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models = context.models
        self._streams: Counter[str] = Counter()

    def application(self) -> Starlette:
        """Return the gallery as a separate application, so that its errors are HTML pages."""
        signed, both = self._signed_in, ["GET", "POST"]
        reading, actions = Reading(self._context), Actions(self._context)
        loading = Loading(self._context)
        return Starlette(
            routes=[
                Route("/login", self._login, methods=["GET", "POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Route("/static/{name}", _static),
                Route("/", signed(reading.list)),
                Route("/live", signed(self._live)),
                Route("/load", signed(loading.load), methods=both),
                Route("/starter", signed(reading.starter)),
                Route("/starter", signed(actions.load_starter), methods=["POST"]),
                Route("/delete", signed(actions.delete_several), methods=["POST"]),
                Route("/models/{name}", signed(reading.model)),
                *(
                    Route(f"/models/{{name}}/{file}", signed(reading.image))
                    for file in previews.MEDIA_TYPES
                ),
                Route("/models/{name}/edit", signed(actions.edit), methods=both),
                Route("/models/{name}/suspend", signed(actions.suspend), methods=["POST"]),
                Route("/models/{name}/resume", signed(actions.resume), methods=["POST"]),
                Route("/models/{name}/retype", signed(actions.retype), methods=["POST"]),
                Route("/models/{name}/reload", signed(actions.reload), methods=["POST"]),
                Route("/models/{name}/delete", signed(actions.delete), methods=both),
            ],
            exception_handlers={
                RefusedError: self._error,
                ApiError: self._error,
                HTTPException: self._error,
            },
        )

    # Sessions

    def _key(self, request: Request) -> Key | None:
        value = request.cookies.get(session.COOKIE, "")
        return session.read(value, self._context.keys, self._context.clock.now().timestamp())

    def _signed_in(self, handler: KeyHandler) -> Handler:
        """Wrap a handler: count the call for the session's key, or redirect to the login."""

        async def handle(request: Request) -> Response:
            self._check_origin(request)
            key = self._key(request)
            if key is None:
                return _to_login(request)
            self._context.count(key)
            return await handler(request, key)

        return handle

    def _check_origin(self, request: Request) -> None:
        public_url = self._context.settings.public_url
        if request.method != "POST" or session.is_same_origin(request.headers, public_url):
            return
        text = "The form was sent from another site; open the gallery at its own URL and try again"
        raise RefusedError(403, text)

    async def _login(self, request: Request) -> Response:
        self._check_origin(request)
        target = _login_target(request)
        insecure = self._is_insecure(request)
        if request.method != "POST":
            return page("login.html", next=target, error=None, insecure=insecure)
        text = (await forms.read(request)).get("key", "").strip()
        try:
            key = self._context.admit(text, request)
        except RefusedError as error:
            message = error.message if error.status == 429 else "This key is not valid."
            response = page(
                "login.html", error.status, next=target, error=message, insecure=insecure
            )
            return _with_retry_after(response, error)
        log.info("key %s logged in to the gallery", key.id)
        redirect = RedirectResponse(target, 303)
        redirect.set_cookie(
            session.COOKIE,
            session.issue(key, self._context.clock.now().timestamp()),
            max_age=session.LIFETIME_SECONDS,
            path=ROOT,
            secure=self._context.settings.cookie_secure,
            httponly=True,
            samesite="lax",
        )
        return redirect

    def _is_insecure(self, request: Request) -> Literal["", "local", "remote"]:
        """Return in which way a session cookie over http is a problem: browsers may drop it.

        "": no problem. "local": the host is this machine, so only some browsers drop the cookie.
        "remote": all browsers drop it.
        """
        plain = request.url.scheme == "http"
        proxied = request.headers.get("x-forwarded-proto", "").startswith("https")
        if not self._context.settings.cookie_secure or not plain or proxied:
            return ""
        return "local" if request.url.hostname in _LOCAL else "remote"

    async def _logout(self, request: Request) -> Response:
        self._check_origin(request)
        response = RedirectResponse(f"{ROOT}/login", 303)
        response.delete_cookie(session.COOKIE, path=ROOT)
        return response

    # Updates

    async def _live(self, request: Request, key: Key) -> Response:
        # The stream is counted before the first `await`: otherwise, many requests at once would all
        # be within the limit.
        if self._streams[key.id] >= STREAMS_PER_KEY:
            text = "This key has too many pages open in browsers; close one and try again"
            raise RefusedError(429, text, 60)
        self._streams[key.id] += 1
        try:
            events = await self._events(request, key)
        except BaseException:
            self._streams[key.id] -= 1
            raise
        return _LiveResponse(events, lambda: self._streams.subtract((key.id,)))

    async def _events(self, request: Request, key: Key) -> AsyncGenerator[bytes, None]:
        updates = live.Updates(await self._models.all(key.namespace))
        changes = self._models.watch(key.namespace)
        return live.stream(updates, changes, lambda: self._key(request) == key)

    async def _error(self, request: Request, error: Exception) -> Response:
        """Return an error as a page."""
        refused = map_error(error)
        key = self._key(request)
        namespace = key.namespace if key else None
        response = page("error.html", refused.status, namespace=namespace, message=refused.message)
        return _with_retry_after(response, refused)


class _LiveResponse(StreamingResponse):
    """Server-sent events; `end` is called when the response ends, even if it sent nothing."""

    def __init__(self, events: AsyncGenerator[bytes, None], end: Callable[[], None]) -> None:
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the client has gone or the session has ended."""
        try:
            async with contextlib.aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._end()


_LOCAL = ("localhost", "127.0.0.1", "::1")


async def _static(request: Request) -> Response:
    file = STATIC.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    return file.response()


def _with_retry_after(response: Response, error: RefusedError) -> Response:
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _to_login(request: Request) -> Response:
    """Redirect to the login, which then leads to the requested page; after a POST, to the list."""
    target = request.url.path
    if request.method != "GET" or target == f"{ROOT}/live":
        target = f"{ROOT}/"
    elif request.url.query:
        target += f"?{request.url.query}"
    login = f"{ROOT}/login?next={quote(target, safe='/')}"
    if "hx-request" in request.headers or request.url.path == f"{ROOT}/live":
        return Response(status_code=401, headers={"HX-Redirect": login})
    return RedirectResponse(login, 303)


def _login_target(request: Request) -> str:
    """Return the page that follows the login, which is always a page of the gallery."""
    target = request.query_params.get("next", "")
    inside = target.startswith(f"{ROOT}/") and not target.startswith(f"{ROOT}/log")
    return target if inside else f"{ROOT}/"
