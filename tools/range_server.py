"""A fast loopback server of one file for the benchmark, with ranges and a rate limit.

    with RangeServer(path, bytes_per_second) as server: ... server.url

The server runs in its own process, so that it does not share an interpreter with the client.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

STEP = 1 << 20


class RangeServer:
    """Runs the server until its context ends; with `bytes_per_second` 0 there is no limit."""

    def __init__(self, path: Path, bytes_per_second: int) -> None:
        self._command = [sys.executable, __file__, str(path), str(bytes_per_second)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def serve(path: Path, bytes_per_second: int) -> None:
    """Print the url and serve until the process is terminated."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = path.stat().st_size
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            end = min(size, int(wanted[2]) + 1) if wanted and wanted[2] else size
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{size}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            self._send(start, end)

        def _send(self, start: int, end: int) -> None:
            begun = time.perf_counter()
            with path.open("rb") as file:
                position = start
                while position < end:
                    step = min(STEP, end - position)
                    position += os.sendfile(self.connection.fileno(), file.fileno(), position, step)
                    if bytes_per_second:
                        due = begun + (position - start) / bytes_per_second
                        time.sleep(max(0.0, due - time.perf_counter()))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/model{path.suffix}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
