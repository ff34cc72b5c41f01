"""`.index/<namespace>.json`: which models a namespace offers on this volume.

The list is for programs that read the volume and have no access to the API server. It is derived
from links and receipts, and the loader never reads it: a wrong list misleads only its readers. It
has no urls, which may be private to the namespace.

Each change of a link is followed by a refresh. Two refreshes at once may each have seen only one of
two changes, so a refresh reads the links again after it has written, and repeats if a link changed.
"""

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Mapping

from sd_api.names import INDEX_DIR, STAGING_DIR, STORE_DIR, immutable_path
from sd_loader.errors import LoaderError
from sd_loader.store.orphans import links
from sd_loader.store.ownership import Version, read_owner
from sd_loader.store.receipt import read_receipt
from sd_loader.store.volume import Volume

log = logging.getLogger(__name__)

_FILE = re.compile(r"([a-z0-9-]{1,63})\.json")
_ATTEMPTS = 50
"""How often a refresh is repeated while links keep changing."""
_OF_SWEEPS = "sweep"
"""Folder in the staging folder in which a sweep writes."""


def refresh(volume: Volume, uid: str, namespace: str) -> None:
    """Write the list of a namespace again, after a link of this uid has changed.

    A failure is logged: the load or removal is done, and the next refresh writes the same list.
    """
    try:
        _refresh(volume, uid, namespace)
    except (OSError, LoaderError) as error:
        log.warning(
            "%s/%s.json on the volume is out of date until the next load or sweep: %s",
            INDEX_DIR,
            namespace,
            error,
        )


def refresh_all(volume: Volume) -> None:
    """Write the lists of all namespaces that have a model or a list on this volume."""
    listed = [match[1] for name in _names(volume) if (match := _FILE.fullmatch(name))]
    for namespace in sorted({*listed, *_versions(volume)}):
        refresh(volume, _OF_SWEEPS, namespace)


def foreign_entries(volume: Volume) -> list[str]:
    """Return the paths in the folder .index that are not lists of namespaces.

    The list of a namespace is a regular file with the name <namespace>.json.
    """
    folder = volume.find(INDEX_DIR)
    if folder is None:
        return []
    with folder:
        return [
            f"{INDEX_DIR}/{name}"
            for name in folder.names()
            if not _FILE.fullmatch(name) or folder.kind(name) not in {None, stat.S_IFREG}
        ]


def _refresh(volume: Volume, uid: str, namespace: str) -> None:
    for _ in range(_ATTEMPTS):
        seen = _versions(volume).get(namespace, {})
        try:
            _write(volume, uid, namespace, seen)
        except FileNotFoundError:
            continue  # Another Pod has removed a folder that was still empty.
        if _versions(volume).get(namespace, {}) == seen:
            return


def _versions(volume: Volume) -> dict[str, dict[str, Version]]:
    """Return the published versions by namespace and model id."""
    found: dict[str, dict[str, Version]] = {}
    for model_id, version in links(volume).items():
        record = read_owner(volume, version.uid)
        if record is not None and record.model_id == model_id:
            found.setdefault(record.owner.namespace, {})[model_id] = version
    return found


def _write(volume: Volume, uid: str, namespace: str, versions: Mapping[str, Version]) -> None:
    name = f"{namespace}.json"
    models = [_entry(volume, model_id, version) for model_id, version in sorted(versions.items())]
    offered = [model for model in models if model]
    if not offered:
        volume.unlink(f"{INDEX_DIR}/{name}")
        volume.root.remove_if_empty(INDEX_DIR)
        return
    content = json.dumps({"namespace": namespace, "models": offered}, indent=2) + "\n"
    with volume.make(STAGING_DIR, uid) as staging, volume.make(INDEX_DIR) as index:
        staging.write_into(index, name, content.encode())
        index.sync()
    volume.remove_if_empty(uid)


def _entry(volume: Volume, model_id: str, version: Version) -> dict[str, object]:
    """Return a model's entry in the list. Empty if the model has no readable receipt."""
    folder = volume.find(STORE_DIR, version.uid, version.load_hash)
    if folder is None:
        return {}
    with folder:
        try:
            artifact = read_receipt(folder).artifact
        except (OSError, ValueError):
            return {}
    # Shared bytes are left out, because they depend on the other models.
    facts = artifact.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={"card": {"page"}, "shared_bytes": True},
    )
    return {
        "modelId": model_id,
        "immutablePath": immutable_path(version.uid, version.load_hash),
        **facts,
    }


def _names(volume: Volume) -> list[str]:
    folder = volume.find(INDEX_DIR)
    if folder is None:
        return []
    with folder:
        return folder.names()
