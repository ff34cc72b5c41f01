"""The buttons of the gallery: edit, suspend, resume, load again, delete, load a starter model."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from sd_operator.base.errors import ApiError
from sd_operator.clients.kube import Json
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import FieldRefusedError, RefusedError
from sd_operator.gateway.gallery import catalog, controls, details, edits, form, forms, snippets
from sd_operator.gateway.gallery.pages import ROOT, model_url, page
from sd_operator.gateway.keys import Key
from sd_operator.resources.model import Model

CHANGED = (
    "Someone else changed this model after you opened the form. The form now shows the model as it"
    " is; make your change again."
)


class Actions:
    """The handlers of the buttons. Only a POST changes a model; on success, it redirects."""

    def __init__(self, context: Context) -> None:
        self._models = context.models

    async def edit(self, request: Request, key: Key) -> Response:
        """Show the form of a model; on POST, change the model, or only validate the change."""
        body = await self._get(request, key)
        spec = body.get("spec") or {}
        edited, shown = spec, edits.texts(spec)
        submitted = await forms.read(request) if request.method == "POST" else {}
        texts, status, complaints = shown, 200, form.Complaints()
        applied = submitted.get("action") == "apply"
        if submitted and submitted.get("generation") != _generation(body):
            status, complaints = 409, form.Complaints(others=(CHANGED,))
        elif submitted:
            texts = shown | form.values(submitted)
            edited = edits.edited(spec, texts)
            patch = edits.merge_patch(spec, edited)
            try:
                await self._models.edit(key.namespace, body, patch, dry_run=not applied)
            except (ApiError, FieldRefusedError) as error:
                status, complaints = forms.complaints(error)
            else:
                if applied:
                    return to_model(request)
        errors = form.beside(complaints, texts, submitted=True)
        return page(
            "edit.html",
            status if applied else 200,
            namespace=key.namespace,
            name=body["metadata"]["name"],
            generation=_generation(body),
            fields=edits.FIELDS,
            texts=texts,
            complaints=complaints,
            beside=errors,
            refused=bool(complaints) and (applied or status == 409),
            validated=bool(submitted),
            folds=form.folds(edits.FIELDS, texts, errors, controls.TYPE.id),
            yaml=snippets.manifest_yaml(body | {"spec": edited}),
        )

    async def suspend(self, request: Request, key: Key) -> Response:
        """Stop a running load, and keep new ones from starting."""
        await self._models.edit(key.namespace, await self._get(request, key), {"suspend": True})
        return to_model(request)

    async def resume(self, request: Request, key: Key) -> Response:
        """Let a suspended model load."""
        await self._models.edit(key.namespace, await self._get(request, key), {"suspend": None})
        return to_model(request)

    async def retype(self, request: Request, key: Key) -> Response:
        """Load a model as another type."""
        body = await self._get(request, key)
        kind = (await forms.read(request)).get("modelType") or None
        await self._models.edit(key.namespace, body, {"modelType": kind})
        return to_model(request)

    async def reload(self, request: Request, key: Key) -> Response:
        """Load a model again."""
        await self._models.reload(key.namespace, await self._get(request, key))
        return to_model(request)

    async def delete(self, request: Request, key: Key) -> Response:
        """Ask for confirmation, then delete the model with the uid that the user confirmed."""
        name = request.path_params["name"]
        uid = (await forms.read(request)).get("uid") if request.method == "POST" else None
        if uid:
            await self._models.delete(key.namespace, {"metadata": {"name": name, "uid": uid}})
            return RedirectResponse(f"{ROOT}/", 303)
        return _confirmation([await self._get(request, key)], key)

    async def delete_several(self, request: Request, key: Key) -> Response:
        """Ask for one confirmation, then delete the models with the uids that the user confirmed.

        A selected model that no longer exists is ignored.
        """
        confirmed = [text.partition(" ") for text in await forms.read_list(request, "confirmed")]
        for name, _, uid in confirmed:
            await self._models.delete(key.namespace, {"metadata": {"name": name, "uid": uid}})
        if confirmed:
            return RedirectResponse(f"{ROOT}/", 303)
        names = set(await forms.read_list(request, "model"))
        bodies = await self._models.all(key.namespace)
        chosen = [body for body in bodies if body["metadata"]["name"] in names]
        if not chosen:
            raise RefusedError(400, "No model is selected; select the models to delete")
        return _confirmation(chosen, key)

    async def load_starter(self, request: Request, key: Key) -> Response:
        """Create a model of the starter catalog."""
        body = catalog.manifest((await forms.read(request)).get("name", ""))
        if body is None:
            raise HTTPException(404, "The starter catalog does not have this model")
        await self._models.create(key.namespace, body, dry_run=False)
        return RedirectResponse(f"{ROOT}/starter", 303)

    async def _get(self, request: Request, key: Key) -> Json:
        return await self._models.get(key.namespace, request.path_params["name"])


def to_model(request: Request) -> Response:
    """Redirect to the page of the model in the request's path."""
    return RedirectResponse(model_url(request.path_params["name"]), 303)


def _confirmation(bodies: list[Json], key: Key) -> Response:
    """Ask whether to delete models."""
    models = [details.doomed(Model.from_body(body)) for body in bodies]
    return page("delete.html", namespace=key.namespace, models=models)


def _generation(body: Json) -> str:
    """Return the number that changes with every change of the spec."""
    return str(body["metadata"].get("generation") or 0)
