"""Names, serves and removes container logs, which the node writes as files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from aiohttp import web

from sd_operator.standalone.errors import Json, bad_request

POLL_SECONDS = 0.1


def log_path(folder: Path, pod_uid: str, container: str) -> Path:
    """Return the path of a container's log."""
    return folder / pod_uid / f"{container}.log"


def remove(folder: Path, pod_uid: str) -> None:
    """Remove the logs of a Pod."""
    shutil.rmtree(folder / pod_uid, ignore_errors=True)


def remove_others(folder: Path, pod_uids: Collection[str]) -> None:
    """Remove the logs of all Pods except the Pods with these uids."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name not in pod_uids:
            remove(folder, entry.name)


def choose_container(pod: Json, wanted: str | None) -> str:
    """Return the container whose log is requested; by default the Pod's only container."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    inits = [str(c["name"]) for c in spec.get("initContainers", ())]
    containers = [str(c["name"]) for c in spec["containers"]]
    if wanted is None and len(containers) == 1:
        return containers[0]
    if wanted is None:
        raise bad_request(
            f"a container name must be specified for pod {name}, choose one of:"
            f" [{' '.join(containers)}] or one of the init containers: [{' '.join(inits)}]"
        )
    if wanted not in inits + containers:
        raise bad_request(f"container {wanted} is not valid for pod {name}")
    return wanted


def _state(pod: Json, container: str) -> Json:
    """Return a container's state: waiting, running or terminated."""
    status = pod.get("status", {})
    entries = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return next((entry["state"] for entry in entries if entry["name"] == container), {})


async def serve(
    request: web.Request, folder: Path, find: Callable[[], Json | None], container: str
) -> web.StreamResponse:
    """Answer with a container's log; tailLines and limitBytes shorten it.

    If the client asks to follow, also send what the container writes later, until the container
    ends or limitBytes are sent.
    """
    pod = find() or {"metadata": {"name": "", "uid": ""}}
    name, path = pod["metadata"]["name"], log_path(folder, pod["metadata"]["uid"], container)
    if not _state(pod, container).keys() & {"running", "terminated"}:
        reason = _state(pod, container).get("waiting", {}).get("reason", "ContainerCreating")
        text = f'container "{container}" in pod "{name}" is waiting to start: {reason}'
        raise bad_request(text)
    query = request.query
    tail, limit = _count(query.get("tailLines")), _count(query.get("limitBytes"))
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    follows, offset = query.get("follow") in ("1", "true"), 0
    while True:
        # The state is read before the log, so that the last bytes are not missed.
        running = follows and "running" in _state(find() or {}, container)
        offset, content = _read(path, offset)
        if tail is not None:
            content = b"".join(content.splitlines(keepends=True)[-tail:] if tail else ())
            tail = None
        await response.write(content[:limit])
        if limit is not None:
            limit = max(0, limit - len(content))
        if not running or limit == 0:
            break
        await asyncio.sleep(POLL_SECONDS)
    await response.write_eof()
    return response


def _count(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise bad_request(f"tailLines and limitBytes must be whole numbers, not {text!r}")
    return None if text is None else int(text)


def _read(path: Path, offset: int) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return offset, b""
    return offset + len(text), text
