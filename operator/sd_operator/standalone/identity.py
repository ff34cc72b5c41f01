"""The keys and ports of standalone's servers. The next run uses them again: clients know them."""

from __future__ import annotations

import json
import secrets
import socket
from datetime import UTC, datetime, timedelta

from sd_operator.standalone import pki
from sd_operator.standalone.database import Database
from sd_operator.standalone.errors import StandaloneError

RENEWED = timedelta(days=30)
"""Certificates are renewed this long before they expire. Copies of the kubeconfig are then invalid,
because the CA is new, too."""


def token(database: Database) -> str:
    """Return the token of the API server."""
    return database.remember("token", lambda: secrets.token_urlsafe(32))


def certificates(database: Database) -> tuple[bytes, pki.Certificate]:
    """Return the CA's and the server's certificates; make new ones if none is valid for RENEWED."""
    kept = json.loads(database.setting("certificates") or "{}")
    if kept:
        ca, cert, key = (kept[name].encode() for name in ("ca", "cert", "key"))
        certificate = pki.Certificate(cert, key)
        if certificate.ends() > datetime.now(UTC) + RENEWED:
            return ca, certificate
    ca, certificate = pki.make_certificates()
    made = {"ca": ca, "cert": certificate.cert, "key": certificate.key}
    texts = {name: content.decode() for name, content in made.items()}
    database.keep("certificates", json.dumps(texts))
    return ca, certificate


def listen(database: Database, option: str, wanted: int) -> socket.socket:
    """Return a socket on loopback: on the wanted port, else on the last run's port, else on any.

    option: the name of the option that sets the port. The port is kept under this name.
    """
    port = wanted or int(database.setting(option) or 0)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OverflowError as error:
        listener.close()
        raise StandaloneError(f"{option} is {port}, but a port is at most 65535") from error
    except OSError as error:
        listener.close()
        whose = "" if wanted else ", as in the last run"
        raise StandaloneError(
            f"cannot listen on port {port}{whose}: {error.strerror}. End the"
            f" process that uses it, or name another port with {option}"
        ) from error
    database.keep(option, str(listener.getsockname()[1]))
    return listener
