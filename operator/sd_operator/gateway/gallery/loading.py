"""Handles the load form: shows what a link's source states, proposes a name, creates the model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from sd_api.choices import ModelType
from sd_operator.base.errors import ApiError, NotFoundError
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import FieldRefusedError
from sd_operator.gateway.facts import Facts
from sd_operator.gateway.gallery import controls, form, forms
from sd_operator.gateway.gallery.pages import model_url, page
from sd_operator.gateway.gallery.snippets import to_yaml
from sd_operator.gateway.keys import Key
from sd_operator.gateway.lookups import Pasted

NAME = "metadata.name"
_SAME_NAMES = 9
"""How many names are tried to find a free one: the proposed name, then name-2 to name-9."""


class Loading:
    """The handler of the load form."""

    def __init__(self, context: Context) -> None:
        self._models = context.models
        self._lookups = context.lookups

    async def load(self, request: Request, key: Key) -> Response:
        """Show the form; on POST, look the link up, create the resource, or only validate it."""
        posted = request.method == "POST"
        submitted = await forms.read(request) if posted else request.query_params
        action = submitted.get("action", "") if posted else ""
        applied, looked_up = action == "apply", action == "look-up"
        texts = form.values(submitted)
        name, proposed = texts.get(NAME, ""), submitted.get("proposed", "")
        asks = looked_up or (applied and not name)
        facts = await self._facts(texts, key, asks=asks) if posted else None
        if facts is not None and (not name or (looked_up and name == proposed)):
            # Only a look-up adds a number, so that a form that is submitted twice makes one model.
            free = await self._free_name(key.namespace, facts.name) if looked_up else facts.name
            name = proposed = free
        texts = {**texts, NAME: name}
        body = form.manifest(texts, key.namespace)
        status, complaints = 200, form.Complaints()
        validated = posted and not looked_up
        if validated:
            try:
                await self._models.create(key.namespace, body, dry_run=not applied)
            except (ApiError, FieldRefusedError) as error:
                status, complaints = forms.complaints(error)
            else:
                if applied:
                    return RedirectResponse(model_url(body["metadata"]["name"]), 303)
        tried = applied or "submitted" in submitted
        errors = form.beside(complaints, texts, submitted=tried)
        gated = facts is not None and facts.is_gated
        return page(
            "load.html",
            status if applied else 200,
            namespace=key.namespace,
            fields=controls.FIELDS,
            folds=form.folds(controls.FIELDS, texts, errors, controls.ACCESS.id if gated else ""),
            texts=texts,
            facts=facts,
            proposed=proposed if name == proposed else "",
            complaints=complaints,
            beside=errors,
            refused=applied and bool(complaints),
            validated=validated,
            submitted=tried,
            yaml=to_yaml(body),
        )

    async def _facts(self, texts: Mapping[str, str], key: Key, *, asks: bool) -> Facts | None:
        """Return the facts about the link in the form. None if it is empty or cannot be read.

        asks: whether to ask the source if no facts are cached.
        """
        model_type = None
        with contextlib.suppress(ValueError):
            model_type = ModelType(texts.get("spec.modelType", ""))
        link = Pasted(texts.get("spec.url", ""), model_type, texts.get("spec.gitRevision") or None)
        return await self._lookups.find(link, key) if asks else self._lookups.known(link)

    async def _free_name(self, namespace: str, name: str) -> str:
        """Return the name, with a number if a model has this name already.

        If all numbers are taken, return the name itself.
        """
        if not name:
            return ""
        for number in range(1, _SAME_NAMES + 1):
            candidate = name if number == 1 else f"{name}-{number}"
            try:
                await self._models.get(namespace, candidate)
            except NotFoundError:
                return candidate
        return name
