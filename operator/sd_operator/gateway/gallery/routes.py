"""The gallery's routes. Every page except the login needs a key, and shows its namespace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Literal
from urllib.parse import quote

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sd_operator.base.errors import AlreadyExistsError, ApiError, InvalidError
from sd_operator.clients.kube import Json
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import (
    FieldRefusedError,
    RefusedError,
    map_api_error,
    map_error,
)
from sd_operator.gateway.gallery import form, live, previews, session, views
from sd_operator.gateway.gallery.pages import ROOT, STATIC, page
from sd_operator.gateway.gallery.snippets import to_yaml
from sd_operator.gateway.keys import Key
from sd_operator.resources.model import Model

log = logging.getLogger(__name__)

STREAMS_PER_KEY = 20
FORM_FIELDS_MAX = 64
SHOWN_MAX = 10_000

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
        self._store = context.settings.store
        self._streams: Counter[str] = Counter()

    def application(self) -> Starlette:
        """Return the gallery as a separate application, so that its errors are HTML pages."""
        signed = self._signed_in
        return Starlette(
            routes=[
                Route("/login", self._login, methods=["GET", "POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Route("/static/{name}", _static),
                Route("/", signed(self._list)),
                Route("/live", signed(self._live)),
                Route("/load", signed(self._load), methods=["GET", "POST"]),
                Route("/models/{name}", signed(self._model)),
                *(
                    Route(f"/models/{{name}}/{file}", signed(self._image))
                    for file in previews.MEDIA_TYPES
                ),
                Route("/models/{name}/reload", signed(self._reload), methods=["POST"]),
                Route("/models/{name}/delete", signed(self._delete), methods=["GET", "POST"]),
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
        text = (await _form(request)).get("key", "").strip()
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
        """Return whether the browser may drop the session cookie, because it needs https.

        Some browsers keep such a cookie over http if the host is this machine.
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

    # Pages

    async def _list(self, request: Request, key: Key) -> Response:
        filter_ = _filter(request.query_params)
        bodies = await self._models.all(key.namespace)
        if _shows(request, bodies):
            return Response(status_code=204)
        cards = sorted((views.card(body) for body in bodies), key=lambda card: card.name)
        matches = [card for card in cards if filter_.matches(card)]
        shown = matches[: filter_.show]
        names = {card.name for card in shown}
        response = page(
            "models.html",
            namespace=key.namespace,
            filter=filter_,
            cards=shown,
            images=await self._images(b for b in bodies if b["metadata"]["name"] in names),
            found=len(matches),
            total=len(cards),
            types={card.type: card.type_name for card in cards if card.type},
            phases=sorted({card.phase for card in cards} | ({filter_.phase} - {""})),
            digest=live.digest(bodies),
        )
        if request.headers.get("hx-trigger") == "filter":
            query = f"?{filter_.query}" if filter_.query else ""
            response.headers["HX-Push-Url"] = f"{ROOT}/{query}"
        return response

    async def _model(self, request: Request, key: Key) -> Response:
        body = await self._models.get(key.namespace, request.path_params["name"])
        if _shows(request, [body]):
            return Response(status_code=204)
        now = self._context.clock.now()
        return page(
            "model.html",
            namespace=key.namespace,
            model=views.detail(body, now),
            events=views.events(await self._models.events(key.namespace, body), now)[:30],
            images=(await self._images([body])).get(body["metadata"]["name"], ()),
            digest=live.digest([body]),
        )

    async def _images(self, bodies: Iterable[Json]) -> dict[str, tuple[str, ...]]:
        """Return the file names of the images on the volume, by the names of the models."""
        store = self._store
        if store is None:
            return {}
        models = [Model.from_body(body) for body in bodies]
        stated = {model.name: previews.paths(model) for model in models}

        def existing() -> dict[str, tuple[str, ...]]:
            return {
                name: tuple(file for file, path in paths.items() if previews.exists(store, path))
                for name, paths in stated.items()
            }

        return await asyncio.to_thread(existing)

    async def _image(self, request: Request, key: Key) -> Response:
        body = await self._models.get(key.namespace, request.path_params["name"])
        file = request.url.path.rpartition("/")[2]
        path = previews.paths(Model.from_body(body)).get(file)
        image = None
        if self._store is not None and path is not None:
            image = await asyncio.to_thread(previews.read, self._store, path)
        if image is None:
            raise HTTPException(404, f"This model has no {file}")
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(image, media_type=previews.MEDIA_TYPES[file], headers=headers)

    async def _live(self, request: Request, key: Key) -> Response:
        # The stream counts before anything is awaited: many requests at once would all pass.
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

    # Actions

    async def _load(self, request: Request, key: Key) -> Response:
        """Show the form; on POST, create the resource, or only validate it for the preview."""
        submitted = request.query_params if request.method == "GET" else await _form(request)
        texts = form.values(submitted)
        body = form.manifest(texts, key.namespace)
        status, complaints, validated = 200, form.Complaints(), request.method == "POST"
        applied = submitted.get("action") == "apply"
        tried = applied or "submitted" in submitted
        if validated:
            try:
                await self._models.create(key.namespace, body, dry_run=not applied)
            except (ApiError, FieldRefusedError) as error:
                status, complaints = _complaints(error)
            else:
                if applied:
                    return _to_model(body["metadata"]["name"])
        return page(
            "load.html",
            status if applied else 200,
            namespace=key.namespace,
            fields=form.FIELDS,
            texts=texts,
            complaints=complaints,
            beside=form.beside(complaints, texts, submitted=tried),
            refused=applied and bool(complaints),
            validated=validated,
            submitted=tried,
            more_used=any(texts.get(field.path) for field in form.FIELDS if not field.common),
            yaml=to_yaml(body),
        )

    async def _reload(self, request: Request, key: Key) -> Response:
        body = await self._models.get(key.namespace, request.path_params["name"])
        await self._models.reload(key.namespace, body)
        return _to_model(request.path_params["name"])

    async def _delete(self, request: Request, key: Key) -> Response:
        """Ask for confirmation, then delete the model with the uid that the user confirmed."""
        name = request.path_params["name"]
        uid = (await _form(request)).get("uid") if request.method == "POST" else None
        if uid:
            await self._models.delete(key.namespace, {"metadata": {"name": name, "uid": uid}})
            return RedirectResponse(f"{ROOT}/", 303)
        body = await self._models.get(key.namespace, name)
        model = views.detail(body, self._context.clock.now())
        return page("delete.html", namespace=key.namespace, model=model)

    async def _error(self, request: Request, error: Exception) -> Response:
        """Return an error as a page."""
        refused = map_error(error)
        key = self._key(request)
        namespace = key.namespace if key else None
        response = page("error.html", refused.status, namespace=namespace, message=refused.message)
        return _with_retry_after(response, refused)


class _LiveResponse(StreamingResponse):
    """Server-sent events; `end` is called when the stream ends, even before it has begun."""

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


async def _form(request: Request) -> dict[str, str]:
    """Return the text fields of a submitted form; uploaded files are rejected."""
    async with request.form(max_files=0, max_fields=FORM_FIELDS_MAX) as fields:
        return {name: value for name, value in fields.items() if isinstance(value, str)}


def _complaints(error: ApiError | FieldRefusedError) -> tuple[int, form.Complaints]:
    """Return the status code and the form errors for a resource that was not created."""
    if isinstance(error, FieldRefusedError):
        return error.status, form.Complaints({error.field: [form.in_labels(error.message)]})
    if isinstance(error, AlreadyExistsError):
        text = "A model with this name already exists. Use another name, or delete that model."
        return 409, form.Complaints({"metadata.name": [text]})
    if isinstance(error, InvalidError):
        return 422, form.complaints(error.causes, str(error))
    refused = map_api_error(error)
    return refused.status, form.Complaints(others=(refused.message,))


def _with_retry_after(response: Response, error: RefusedError) -> Response:
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _filter(query: Mapping[str, str]) -> views.Filter:
    show = query.get("show", "")
    return views.Filter(
        text=query.get("q", "").strip()[:200],
        type=query.get("type", ""),
        phase=query.get("phase", ""),
        show=min(int(show), SHOWN_MAX) if show.isdecimal() and len(show) < 9 else views.PAGE,
    )


def _shows(request: Request, bodies: Iterable[Json]) -> bool:
    """Return whether the page that sends this request shows the models as they are now."""
    return request.query_params.get("digest") == live.digest(bodies)


def _to_login(request: Request) -> Response:
    """Redirect to the login, which then leads back to the requested page."""
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


def _to_model(name: str) -> Response:
    return RedirectResponse(f"{ROOT}/models/{quote(name, safe='')}", 303)
