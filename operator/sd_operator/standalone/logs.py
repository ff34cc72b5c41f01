"""Containers' logs, as files that the kubelet writes and the API server serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

POLL_SECONDS = 0.1


def log_path(folder: Path, pod_uid: str, container: str) -> Path:
    """Where the log of one container lies."""
    return folder / pod_uid / f"{container}.log"


async def serve(
    request: web.Request, path: Path, is_running: Callable[[], bool]
) -> web.StreamResponse:
    """Answer with a log: its end with tailLines, and with follow what is added until the end."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    tail, limit = request.query.get("tailLines"), request.query.get("limitBytes")
    offset, text = _read(path, 0)
    if tail is not None:
        text = b"".join(text.splitlines(keepends=True)[-int(tail) :] if int(tail) else ())
    await response.write(text[: int(limit) if limit else None])
    while request.query.get("follow") in ("1", "true"):
        running = is_running()  # asked before reading, so that the last bytes are not missed
        offset, text = _read(path, offset)
        await response.write(text)
        if not running:
            break
        await asyncio.sleep(POLL_SECONDS)
    await response.write_eof()
    return response


def _read(path: Path, offset: int) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return offset, b""
    return offset + len(text), text
