"""Asks the probes of an operator, whose port its log tells."""

from __future__ import annotations

import http.client
import re


def probe(log: str, path: str) -> int:
    """The status that a probe answers."""
    port = re.search(r"probes on port (\d+)", log)
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
