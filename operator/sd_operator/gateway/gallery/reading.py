"""The pages that only read: the list of models, a model, its preview, the starter catalog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sd_operator.gateway.context import Context
from sd_operator.gateway.gallery import (
    catalog,
    components,
    details,
    listing,
    live,
    previews,
    related,
    views,
    words,
)
from sd_operator.gateway.gallery.pages import ROOT, page
from sd_operator.gateway.keys import Key
from sd_operator.resources.model import Model

EVENTS_MAX = 30


class Reading:
    """The handlers of the pages that only read."""

    def __init__(self, context: Context) -> None:
        self._clock = context.clock
        self._models = context.models
        self._store = context.settings.store

    async def list(self, request: Request, key: Key) -> Response:
        """Show the models that match the filter in the URL; 204 if the URL's digest is current."""
        chosen = listing.Filter.of(request.query_params)
        bodies = await self._models.all(key.namespace)
        digest = live.digest(bodies)
        if request.query_params.get("digest") == digest:
            return Response(status_code=204)
        models = [Model.from_body(body) for body in bodies]
        cards = [views.card(model) for model in models]
        matches = listing.ordered(filter(chosen.matches, cards), chosen.sort)
        shown = matches[: chosen.show]
        names = {card.name for card in shown}
        response = page(
            "models.html",
            namespace=key.namespace,
            filter=chosen,
            cards=shown,
            images=await self._images(model for model in models if model.name in names),
            found=len(matches),
            total=len(cards),
            choices=listing.choices(cards, chosen),
            sorts=listing.SORTS,
            views=listing.VIEWS,
            storage=listing.storage(cards),
            starters=catalog.offers(cards) if not cards else (),
            digest=digest,
        )
        if request.headers.get("hx-trigger") == "filter":
            response.headers["HX-Push-Url"] = f"{ROOT}/{chosen.url()}"
        return response

    async def model(self, request: Request, key: Key) -> Response:
        """Show one model; 204 if the URL's digest is current."""
        body = await self._models.get(key.namespace, request.path_params["name"])
        digest = live.digest([body])
        if request.query_params.get("digest") == digest:
            return Response(status_code=204)
        model = Model.from_body(body)
        now = self._clock.now()
        receipt = None
        if self._store is not None:
            receipt = await asyncio.to_thread(components.read, self._store, model)
        detail = details.detail(model, body, now, receipt)
        models = await self._all(key)
        groups = related.related(detail.card, map(views.card, models))
        shown = {model.name, *(card.name for group in groups for card in group.cards)}
        events = await self._models.events(key.namespace, body)
        return page(
            "model.html",
            namespace=key.namespace,
            model=detail,
            events=words.events(events[:EVENTS_MAX], now),
            related=groups,
            images=await self._images(item for item in models if item.name in shown),
            digest=digest,
        )

    async def image(self, request: Request, key: Key) -> Response:
        """Send a model's preview or picture."""
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

    async def starter(self, _: Request, key: Key) -> Response:
        """Show the starter catalog, and which of its models exist already."""
        starters = catalog.offers([views.card(model) for model in await self._all(key)])
        return page("starter.html", namespace=key.namespace, starters=starters)

    async def _all(self, key: Key) -> tuple[Model, ...]:
        """Return all models of the key's namespace."""
        return tuple(map(Model.from_body, await self._models.all(key.namespace)))

    async def _images(self, models: Iterable[Model]) -> dict[str, tuple[str, ...]]:
        """Return the file names of each model's images on the volume, by the model's name."""
        store = self._store
        if store is None:
            return {}
        stated = {model.name: previews.paths(model) for model in models}

        def existing() -> dict[str, tuple[str, ...]]:
            return {
                name: tuple(file for file, path in paths.items() if previews.exists(store, path))
                for name, paths in stated.items()
            }

        return await asyncio.to_thread(existing)
