"""Refuses models on PersistentVolumeClaims that the operator would not allow for models."""

from __future__ import annotations

import contextlib

from sd_api import names
from sd_operator.base.errors import NotFoundError
from sd_operator.clients.kube import CLAIMS, Api, Json
from sd_operator.gateway.errors import FieldRefusedError
from sd_operator.gateway.settings import GatewaySettings
from sd_operator.resources.claim import ClaimView, claim_is_allowed


class ClaimRefusedError(FieldRefusedError):
    """The model names a PersistentVolumeClaim that it may not use."""

    def __init__(self, name: str) -> None:
        super().__init__(
            403,
            "spec.storage.claimName",
            f"PersistentVolumeClaim {name} may not be used for models; an administrator can set its"
            f' label {names.LABEL_MODELS}: "true"',
        )


async def check(api: Api, settings: GatewaySettings, namespace: str, body: Json) -> None:
    """Raise ClaimRefusedError if a model names a PVC that it may not use.

    The PVC is read only if the settings do not allow its name. The message for a PVC that does not
    exist is the same as for one that may not be used, so that nobody learns which PVCs exist.
    """
    name = ((body.get("spec") or {}).get("storage") or {}).get("claimName")
    allowed = {settings.claim_name, *settings.allowed_claims}
    artifact = (body.get("status") or {}).get("artifact") or {}
    uid = artifact.get("claimUID")
    if not name or claim_is_allowed(name, None, uid, allowed):
        return
    with contextlib.suppress(NotFoundError):
        claim = ClaimView.from_body(await api.get(CLAIMS, namespace, name))
        if claim_is_allowed(name, claim, uid, allowed):
            return
    raise ClaimRefusedError(name)
