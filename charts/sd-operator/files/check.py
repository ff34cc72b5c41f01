"""`helm test`: the operator is ready, the kind is served, and each namespace has its volume.

Runs in the operator's image with the operator's account; creates nothing.
"""

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount"))
PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", "60"))
MODELS = "/apis/sd-operator.dev/v1alpha1/namespaces/{}/stablediffusionmodels?limit=1"
CLAIM = "/api/v1/namespaces/{}/persistentvolumeclaims/{}"


def operator_is_ready() -> str:
    """The Service leads to an operator that has started."""
    url = os.environ["OPERATOR_URL"] + "/readyz"
    # Not through a proxy: it is inside the cluster.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with opener.open(url, timeout=5):
                return f"{url}: ready"
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url}: {error}") from None
        time.sleep(1)


def ask(path: str) -> dict[str, Any]:
    """An object of the API server."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    token = (ACCOUNT / "token").read_text()
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(
        f"https://{host}:{port}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with opener.open(request, timeout=15) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: HTTP {error.code}: {message_of(error)}") from None
    except OSError as error:
        raise SystemExit(f"{path}: {error}") from None


def message_of(error: urllib.error.HTTPError) -> str:
    """The API server's own words, where it has some."""
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        return error.reason


def main() -> None:
    """Check one thing after the other; the first that is wrong ends it."""
    print(operator_is_ready())
    for namespace in os.environ["NAMESPACES"].split(","):
        ask(MODELS.format(namespace))
        print(f"{namespace}: StableDiffusionModels are served")
        claim = os.environ["CLAIM_NAME"]
        status = ask(CLAIM.format(namespace, claim)).get("status") or {}
        # A claim whose class waits for a first Pod is Pending, and that is well.
        print(f"{namespace}: claim {claim} is {status.get('phase', 'Pending')}")


if __name__ == "__main__":
    main()
