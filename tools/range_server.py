"""A quick server of one file on loopback, with ranges and a limit on its rate; for the benchmark.

    with RangeServer(path, bytes_per_second) as server: ... server.url

It runs as a process of its own, so that it does not share the client's interpreter.
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
    """The server's process, until it is left. bytes_per_second: 0 for no limit."""

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
    """Serve until the process is ended; prints the url first."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{size}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            if asked:
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
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/model{path.suffix}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
