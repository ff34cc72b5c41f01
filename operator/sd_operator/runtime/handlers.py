"""The kopf handlers: events update the cache and start passes. Decorators and settings only.

Only low-level `on.event` handlers are used: for these, kopf does not write to any object.
"""

from __future__ import annotations

import logging

import kopf
from typing_extensions import override

from sd_api import names
from sd_operator.base.settings import Settings
from sd_operator.clients import kube
from sd_operator.reconciler.controller import Controller
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import JobView, PodView

WATCH_SECONDS = 300  # an int: a real API server rejects "300.0"
CONNECT_SECONDS = 10.0
WORKER_SECONDS = 0.5
# After about ten minutes of errors from the API server the watch ends. kopf retries without end if
# the server cannot be reached at all; `run._until_lost` ends that.
ERROR_BACKOFFS = (1.0, 2.0, 4.0, 8.0, 15.0) + (30.0,) * 19


def register(controller: Controller, settings: Settings) -> kopf.OperatorRegistry:
    """Register the handlers of one operator."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: object) -> kopf.ConnectionInfo:
        return await connection(settings)

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: object) -> None:
        # Our tasks must end here: kopf would wait five seconds for each of them.
        await controller.close()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def model(event: kopf.RawEvent, **_: object) -> None:
        if event["type"] == "DELETED":
            controller.forget(event["object"]["metadata"]["uid"])
        else:
            controller.see(dict(event["object"]))
            controller.sweeps.serve(event["object"]["metadata"]["namespace"])

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def job(event: kopf.RawEvent, **_: object) -> None:
        view = JobView.from_body(event["object"])
        if event["type"] == "DELETED":
            controller.cache.drop_job(view)
        elif not controller.cache.put_job(view):
            return
        controller.job_changed(view.model_uid)

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod(event: kopf.RawEvent, **_: object) -> None:
        view = PodView.from_body(event["object"])
        if event["type"] == "DELETED":
            controller.cache.drop_pod(view)
        elif not controller.cache.put_pod(view):
            return
        controller.supervisor.wake([view.model_uid])

    @kopf.on.event("", "v1", "persistentvolumeclaims", registry=registry)
    async def claim(event: kopf.RawEvent, **_: object) -> None:
        view = ClaimView.from_body(event["object"])
        if event["type"] == "DELETED":
            controller.cache.drop_claim(view)
            controller.claim_changed(view)
        elif controller.cache.put_claim(view):
            controller.claim_changed(view)

    @kopf.on.event("coordination.k8s.io", "v1", "leases", registry=registry)
    async def sweep_lease(event: kopf.RawEvent, **_: object) -> None:
        controller.sweeps.lease_changed(event["object"]["metadata"]["namespace"])

    return registry


class _NoDiffs(kopf.MultiDiffBaseStorage):
    """Keeps no earlier versions of objects: none of our handlers compares them."""

    @override
    def build(self, **_: object) -> kopf.BodyEssence:
        """Return nothing; the default would copy every object."""
        return {}


def kopf_settings() -> kopf.OperatorSettings:
    """Return settings that make kopf quiet, patient and bounded."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDiffs([])
    settings.persistence.progress_storage = kopf.MultiProgressStorage([])
    # An unpaged list, or workers that linger, would hold thousands of objects in memory.
    settings.watching.chunk_size = kube.PAGE_SIZE
    settings.queueing.idle_timeout = WORKER_SECONDS
    # The CRD exists before kopf starts, and namespaces are exact names: kopf need not scan.
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.request_timeout = 60.0
    settings.networking.error_backoffs = ERROR_BACKOFFS
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.label_selectors["batch", "v1", "jobs"] = kube.OURS
    settings.watching.label_selectors["", "v1", "pods"] = kube.OURS
    # The cluster's own Leases change all the time.
    only_sweeps = f"metadata.name={names.SWEEP_LEASE}"
    settings.watching.field_selectors["coordination.k8s.io", "v1", "leases"] = only_sweeps
    # kopf logs a line for every event at INFO.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return settings


async def connection(settings: Settings) -> kopf.ConnectionInfo:
    """Return the API server and credentials for kopf, which calls this again after every 401."""
    found = await kube.load_configuration(settings.kubeconfig)
    header = await found.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (header or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        proxy_url=found.proxy,
    )
