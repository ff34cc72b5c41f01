"""Tests of the gateway's check of the PVC that a model names; the rule is the operator's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from sd_api import names
from sd_operator.base.errors import NotFoundError
from sd_operator.clients.kube import Api, Resource
from sd_operator.gateway import claims
from sd_operator.gateway.claims import ClaimRefusedError
from sd_operator.gateway.settings import GatewaySettings

Json = dict[str, Any]


class Claims(Api):
    """An API with one PVC for models, and one of a database."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: list[str] = []

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return one of the PVCs."""
        self.asked.append(name)
        labels = {"more": {names.LABEL_MODELS: "true"}, "database": {"app": "database"}}
        if name not in labels:
            raise NotFoundError(f"persistentvolumeclaims {name!r} not found", 404)
        metadata = {"name": name, "namespace": namespace, "uid": f"uid-of-{name}"}
        return {"metadata": metadata | {"labels": labels[name]}}


def on(claim: str, artifact: Json | None = None) -> Json:
    """Return a model that names a PVC."""
    return {"spec": {"storage": {"claimName": claim}}, "status": {"artifact": artifact}}


PUBLISHED = {"claimName": "database", "claimUID": "uid-of-database"}
CASES = [
    pytest.param({"spec": {}}, True, [], id="default claim"),
    pytest.param({"spec": {"storage": None}}, True, [], id="no storage"),
    pytest.param(on("models"), True, [], id="default claim, named"),
    pytest.param(on("listed"), True, [], id="listed claim"),
    pytest.param(on("more"), True, ["more"], id="labelled claim"),
    pytest.param(on("database"), False, ["database"], id="claim without the label"),
    pytest.param(on("missing"), False, ["missing"], id="claim that does not exist"),
    pytest.param(on("database", PUBLISHED), True, ["database"], id="published on the claim"),
    pytest.param(
        on("database", PUBLISHED | {"claimUID": "another"}),
        False,
        ["database"],
        id="published on an earlier claim of this name",
    ),
    pytest.param(
        on("database", {"claimName": "database"}),
        False,
        ["database"],
        id="published on an unknown claim of this name",
    ),
]


@pytest.mark.parametrize(("body", "allowed", "asked"), CASES)
def test_a_model_names_only_a_pvc_for_models(body: Json, allowed: bool, asked: list[str]) -> None:
    """A PVC that is not for models is rejected with 403.

    A PVC is read from the API server only if the settings do not allow its name.
    """
    api, settings = Claims(), GatewaySettings(Path(), allowed_claims=frozenset({"listed"}))
    if allowed:
        asyncio.run(claims.check(api, settings, "art", body))
    else:
        with pytest.raises(ClaimRefusedError, match="may not be used for models") as caught:
            asyncio.run(claims.check(api, settings, "art", body))
        assert caught.value.status == 403
    assert api.asked == asked
