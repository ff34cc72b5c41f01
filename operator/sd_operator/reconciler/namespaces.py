"""Which of the listed namespaces are served: those in which the operator has its rights.

A namespace of the list may be deleted, together with the operator's Role in it, while the operator
serves the others. It is not served until the operator has its rights again.
"""

from __future__ import annotations

import logging

from sd_operator.base.errors import ApiError, ForbiddenError, NotFoundError, UnavailableError
from sd_operator.base.metrics import Metrics
from sd_operator.clients.kube import JOBS, MODELS, NAMESPACES, Api
from sd_operator.reconciler.controller import Controller

log = logging.getLogger(__name__)


class Namespaces:
    """Checks the rights in each listed namespace; starts or stops serving it when they change."""

    def __init__(
        self, api: Api, listed: tuple[str, ...], controller: Controller, metrics: Metrics
    ) -> None:
        self._api = api
        self._listed = listed
        self._controller = controller
        self._metrics = metrics
        self._problems: dict[str, str] = {}
        """Why a namespace is not served, as it was last logged."""
        self.served: set[str] = set()

    async def look(self) -> None:
        """Check every listed namespace, then raise an error if one could not be checked.

        An error in one namespace does not keep the others from being served, unless the API server
        is away.
        """
        errors: list[Exception] = []
        for namespace in self._listed:
            try:
                await self._check(namespace)
            except UnavailableError:
                raise  # No other namespace can be checked, either.
            except Exception as error:  # noqa: BLE001 - it is raised below
                errors.append(error)
        if errors:
            raise errors[0]

    async def _check(self, namespace: str) -> None:
        try:
            await self._api.check(JOBS, namespace)
            if namespace not in self.served:
                await self._controller.fill(namespace)
        except (ForbiddenError, NotFoundError) as refused:
            await self._skip(namespace, refused)
        else:
            self._serve(namespace)

    def _serve(self, namespace: str) -> None:
        if self._problems.pop(namespace, None) is not None:
            log.info("namespace %s is served again", namespace)
        self.served.add(namespace)
        self._metrics.namespace_served.labels(namespace).set(1)

    async def _skip(self, namespace: str, refused: ApiError) -> None:
        if namespace in self.served:
            self.served.remove(namespace)
            self._controller.leave(namespace)
        self._metrics.namespace_served.labels(namespace).set(0)
        problem = await self._problem(namespace, refused)
        if self._problems.get(namespace) != problem:
            self._problems[namespace] = problem
            log.warning("namespace %s is not served: %s", namespace, problem)
        await self._see_deleted(namespace)

    async def _problem(self, namespace: str, refused: ApiError) -> str:
        try:
            body = await self._api.get(NAMESPACES, "", namespace)
        except NotFoundError:
            return "it does not exist; create it, or remove it from models.namespaces"
        except ForbiddenError:
            body = {"metadata": {}}
        if "deletionTimestamp" in body["metadata"]:
            return "it is being deleted"
        return f"the operator has no rights there; upgrade the release to restore them ({refused})"

    async def _see_deleted(self, namespace: str) -> None:
        """Pass the models that are being deleted to the controller, which releases them.

        Their finalizers would keep the namespace from being deleted.
        """
        try:
            models = (await self._api.list(MODELS, namespace)).items
        except (ForbiddenError, NotFoundError) as refused:
            log.debug("cannot list the models of namespace %s: %s", namespace, refused)
            return
        for body in models:
            if "deletionTimestamp" in body["metadata"]:
                self._controller.see(body)
