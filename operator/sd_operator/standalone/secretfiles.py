"""The files of a volume that shows Secrets."""

from __future__ import annotations

import base64
import re

from sd_operator.standalone.errors import Json
from sd_operator.standalone.executor import RefusedError

_FILE_NAME = re.compile(r"(?!\.\.|\.$)[A-Za-z0-9._-]+")


def secrets_of(volume: Json) -> list[Json]:
    """Return a volume's Secrets, each in the form of the field `secret`.

    A projected volume shows several Secrets in one folder. Raise RefusedError if it also projects
    other kinds.
    """
    if secret := volume.get("secret"):
        return [{"secretName": "", **secret}]
    sources = volume.get("projected", {}).get("sources", ())
    if others := {kind for source in sources for kind in source} - {"secret"}:
        raise RefusedError(
            f"volume {volume['name']}: standalone projects Secrets, not {', '.join(sorted(others))}"
        )
    return [
        {**source["secret"], "secretName": source["secret"].get("name", "")} for source in sources
    ]


def secret_files(volume: Json, secret: Json) -> dict[str, bytes]:
    """Return the content of each file: the keys that `items` lists, or all keys.

    Raise RefusedError for a path that is not a file name. The kubelet waits for a listed key that
    is missing and not optional; here the key is left out.
    """
    data = secret.get("data", {})
    listed = {item["key"]: item["path"] for item in volume.get("items", ())}
    files = {path: data[key] for key, path in listed.items() if key in data} if listed else data
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise RefusedError(f"the path {name[:80]!r} of a Secret's key is not a file name")
    return {name: base64.b64decode(content) for name, content in files.items()}
