"""No secret of a load appears on a cluster, whatever a server sends to the loader.

A password or key in a url appears only where the user wrote it, in the spec, and in the request of
the Job. The content of a Secret appears only in the Secret.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from devkit.loopback import Request
from tests.support.kube.cluster import secret_manifest
from tests.support.operator.operated import KEY, Operated, condition
from tests.support.servers.quoting import (
    HTML,
    PASSWORD,
    QUERY,
    TOKEN,
    USER,
    Respond,
    Servers,
    leads,
    leaks,
    says,
    serves,
)

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

HOOK_KEY = "whsec_" + "TUFSS0VE" * 4
"""A signing key: base64 of the bytes MARKED, repeated."""


def without_urls(model: Json) -> Json:
    """Return a model without the urls that the user wrote into it."""
    metadata = {k: v for k, v in model["metadata"].items() if k != "managedFields"}
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k != applied}
    return {**model, "spec": None, "metadata": {**metadata, "annotations": annotations}}


def without_requests(pod: Json, url: str) -> Json:
    """Return a Pod's spec or a Job's template without the requests, which contain the url."""
    copy: Json = json.loads(json.dumps(pod))
    for container in (*copy["initContainers"], *copy["containers"]):
        position = container["args"].index("--request") + 1
        assert json.loads(container["args"][position])["url"] == url
        container["args"][position] = ""
    return copy


def told(operated: Operated, urls: dict[str, str]) -> dict[str, str]:
    """Return everything that other people can read, by the place where they find it."""
    cluster = operated.cluster
    models = cluster.list("sdm")
    jobs, pods = operated.jobs("load"), cluster.list("pods")
    found = {
        "models": [without_urls(one) for one in models],
        "events": cluster.list("events"),
        "metrics": {str(key): value for key, value in operated.metrics().items()},
        "webhooks": [(call.headers, call.body) for call in operated.receiver.calls],
    }
    bare = []
    for job in (*jobs, *pods):
        model = job["metadata"]["annotations"]["sd-operator.dev/model"].partition("/")[2]
        spec = job["spec"].get("template", job)["spec"]
        bare.append({**job, "spec": without_requests(spec, urls[model])})
        assert TOKEN not in json.dumps(job)
    assert len(bare) >= 2 * len(urls)
    found["jobs and pods"] = bare
    texts = {where: json.dumps(what) for where, what in found.items()}
    texts["operator log"] = cluster.operator_log()
    texts["pod logs"] = "\n".join(
        cluster.kubectl("logs", pod["metadata"]["name"], "-c", "fetch") for pod in pods
    )
    texts["volume"] = "\n".join(
        f"{path} {path.read_bytes().decode(errors='replace') if path.is_file() else ''}"
        for path in cluster.store.rglob("*")
    )
    return texts


KINDS: dict[str, tuple[Respond, str]] = {
    "page": (serves(HTML), "NotAModel"),
    "user": (serves(HTML), "NotAModel"),
    "denied": (says(403), "AccessDenied"),
    "inside": (leads("https://ECHO.internal/x"), "AddressRefused"),
    "kept": (says(401), "AuthenticationRequired"),
}
WEBHOOKS = {
    "user": f"https://10.0.0.1/?token={QUERY}",
    "inside": f"https://{USER}:{PASSWORD}@printer.internal/",
}


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["page"], id="a page"),
        pytest.param(["user", "denied", "inside"], id="others", marks=pytest.mark.slow),
        pytest.param(["kept"], id="a token kept for the host", marks=pytest.mark.slow),
    ],
)
def test_failed_loads_show_no_secret(operated: Operated, kinds: list[str]) -> None:
    """The secrets are a token, the signing key, and those in a source url and a webhook url."""

    def respond(servers: Servers, asked: Request, quoted: str) -> bytes:
        kind = asked.path.partition("?")[0].strip("/")
        return KINDS[kind][0](servers, asked, quoted)

    operated.receiver.status = 500
    source_host = operated.cluster.backend.source_host
    hosts = (operated.hub.host, operated.receiver.host, source_host)
    with Servers(respond, source_host) as servers:
        source = servers.source
        kept = (
            {"SD_OPERATOR_DEFAULT_CREDENTIALS": f"{source.host}=token"} if "kept" in kinds else {}
        )
        operated.start(
            SD_OPERATOR_LOG_LEVEL="DEBUG", SD_OPERATOR_ALLOWED_HOSTS=",".join(hosts), **kept
        )
        operated.cluster.apply(secret_manifest("token", token=TOKEN, host=source.host))
        operated.cluster.apply(secret_manifest("hook", key=HOOK_KEY))
        urls = {kind: f"{source.url}/{kind}?token={QUERY}" for kind in kinds}
        if "user" in urls:
            urls["user"] = urls["user"].replace("://", f"://{USER}:{PASSWORD}@")
        for kind, url in urls.items():
            has_own = kind not in ("user", "kept")
            token = {"credentialsSecretRef": {"name": "token"}} if has_own else {}
            hook = f"{operated.receiver.url}?token={QUERY}"
            operated.cluster.model(
                kind,
                url=url,
                webhook=WEBHOOKS.get(kind, hook),
                webhookSecretRef={"name": "hook", "key": "key"},
                **token,
            )
        for kind in kinds:
            operated.stalled(kind, KINDS[kind][1])
            operated.wait(
                kind,
                # SecretNotReadable where RBAC is enforced, since no Role lets the operator read it.
                lambda one: (
                    condition(one, "WebhookDelivered").get("reason")
                    in ("DeliveryFailed", "SecretNotReadable")
                ),
            )
        texts = told(operated, urls)
    assert {where: found for where, text in texts.items() if (found := leaks(text))} == {}
    for key in (KEY, HOOK_KEY):
        assert key.removeprefix("whsec_")[:16] not in "".join(texts.values())
        assert base64.b64encode(key.encode()).decode()[:16] not in "".join(texts.values())
    assert "DEBUG" in texts["operator log"]
