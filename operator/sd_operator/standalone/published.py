"""Finds the published models whose resource does not exist, and how a new resource adopts each.

Such models are left if a resource was deleted with the policy Retain, or if the objects of an
earlier run are gone. Other programs may write to a store, so its content is checked here, and only
names are used.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sd_api import defaults, names
from sd_api.load import Owner
from sd_operator.standalone.claims import for_models
from sd_operator.standalone.database import Key
from sd_operator.standalone.errors import Json
from sd_operator.standalone.metadata import is_subdomain

SHOWN = 10
"""Maximum number of models in the message."""
_VERSION = re.compile(rf"{re.escape(names.STORE_DIR)}/([A-Za-z0-9-]{{1,64}})/[0-9a-f]{{16}}")
_RECORD_LIMIT = 1 << 20


@dataclass(frozen=True, order=True)
class Published:
    """A published model."""

    namespace: str
    name: str
    """The name of the resource that owns the model."""
    model_id: str
    claim: str
    """The PVC in the owner's namespace on which the model is published."""

    def command(self, claims: Collection[Key]) -> str:
        """Return the command that creates a resource for the model, once its url is filled in.

        It also creates the PVC and its namespace, unless the PVC is one of `claims`.
        """
        spec: Json = {"url": "URL"}
        spec |= {"modelId": self.model_id} if self.model_id != self.name else {}
        spec |= {"storage": {"claimName": self.claim}} if self.claim != defaults.CLAIM_NAME else {}
        head = {"apiVersion": names.API_VERSION, "kind": names.KIND}
        manifest: Json = head | {"metadata": {"name": self.name}, "spec": spec}
        if (self.namespace, self.claim) not in claims:
            metadata = {"name": self.namespace}
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
            items = [namespace, for_models(self.namespace, self.claim), manifest]
            manifest = {"apiVersion": "v1", "kind": "List", "items": items}
        text = shlex.quote(json.dumps(manifest))
        return f"echo {text} | kubectl apply -n {self.namespace} -f -"


def on_claim(claim: Key, folder: Path) -> Iterator[Published]:
    """Yield the models in a PVC's folder whose recorded owner is in the namespace of the PVC."""
    namespace, claim_name = claim
    if not is_subdomain(claim_name):
        return
    try:
        entries = [entry.name for entry in os.scandir(folder) if entry.is_symlink()]
    except OSError:
        return
    for model_id in entries:
        owner = _owner(folder, model_id)
        if owner is not None and owner.namespace == namespace:
            yield Published(namespace, owner.name, model_id, claim_name)


def _owner(folder: Path, model_id: str) -> Owner | None:
    """Return the recorded owner of a published model; None if the record is missing or invalid."""
    try:
        version = _VERSION.fullmatch(str((folder / model_id).readlink()))
        if version is None or re.fullmatch(names.MODEL_ID_PATTERN, model_id) is None:
            return None
        path = folder / names.STORE_DIR / version[1] / names.OWNER_FILE
        # Without O_NONBLOCK, the opening of a FIFO in its place would not return.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            fields = json.loads(file.read(_RECORD_LIMIT))["owner"]
        return Owner(uid=fields["uid"], namespace=fields["namespace"], name=fields["name"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def message(models: Collection[Published], owners: Collection[Key], claims: Collection[Key]) -> str:
    """Return a text about the models whose owner does not exist; empty if there are no such models.

    owners: the resources that exist. claims: the PVCs that exist.
    """
    lost = sorted(model for model in models if (model.namespace, model.name) not in owners)
    if not lost:
        return ""
    lines = [f"No resource names these published models ({len(lost)}):"]
    for model in lost[:SHOWN]:
        lines += [f"  {model.namespace}/{model.name}", f"    {model.command(claims)}"]
    if len(lost) > SHOWN:
        lines.append(f"  and {len(lost) - SHOWN} more")
    lines.append(
        "A resource adopts its model without a download if it has the url and the other fields with"
        " which the model was loaded; put the url in the place of URL."
    )
    return "\n".join(lines)
