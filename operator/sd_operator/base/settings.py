"""The operator's settings: environment variables `SD_OPERATOR_*`, read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sd_api.load import RETAIN_MAX_SECONDS
from sd_api.netguard import Guard, effective_port
from sd_api.spec import JobOverrides
from sd_operator.base.environment import Reader, kubeconfig

PREFIX = "SD_OPERATOR_"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# Standard Webhooks' schedule, cut at three days.
WEBHOOK_RETRY_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 72000.0)


@dataclass(frozen=True)
class LoaderSettings:
    """What every loader Job has.

    image renders and so carries torch; slim_image does not. security_context replaces the
    restricted default whole: {"pod": {…}, "container": {…}}. kueue_queue: the LocalQueue that lets
    loads begin, in place of the limits of Settings. default_parts: for base models, the
    Hub repo of a pipeline that parts come from which a checkpoint lacks. ca_configmap is a
    ConfigMap with the key ca.crt in each model's namespace. placement: where Pods run whose model
    does not say otherwise; its other fields stay unset.
    """

    image: str = "ghcr.io/sd-operator/loader:0.1.0"
    slim_image: str = "ghcr.io/sd-operator/loader-slim:0.1.0"
    image_pull_secrets: tuple[str, ...] = ()
    gpu_resource: str = "nvidia.com/gpu"
    gpu_count: int = 1
    ca_configmap: str | None = None
    max_bytes: int = 100 * 10**9
    retain_previous_seconds: int = 24 * 3600
    tmp_size: str = "1Gi"
    active_deadline_seconds: int = 6 * 3600
    load_ttl_seconds: int = 3600
    remove_ttl_seconds: int = 600
    default_parts: Mapping[str, str] = field(default_factory=dict)
    allow_overrides: bool = True
    kueue_queue: str | None = None
    security_context: Mapping[str, Any] | None = None
    placement: JobOverrides = field(default_factory=JobOverrides)


@dataclass(frozen=True)
class Settings:
    """Everything an administrator may set.

    kubeconfig: None means the Pod's own account. namespaces: those served; empty means all.
    claim_name: the volume of models that name none. trained_url_template: link of a trained model,
    with `{id}` in it. webhook_key_file holds the default signing key. Ports: 0 takes any free one.
    stuck_seconds: how long a Pod may wait for a node or an image, and a clean-up may fail, before
    the model is called stalled. max_loads, max_loads_per_namespace: how many may run at once; 0 is
    no limit. lease_namespace: where the Lease is that elects the operator which is to work; None
    means that there is no election. log_format: auto is text on a terminal, else json.
    """

    kubeconfig: Path | None = None
    namespaces: tuple[str, ...] = ()
    claim_name: str = "models"
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    allowed_hosts: frozenset[str] = frozenset()
    hub_endpoint: str | None = None
    trained_url_template: str | None = None
    https_proxy: str | None = None
    no_proxy: str = ""
    webhook_key_file: Path | None = None
    webhook_ca_file: Path | None = None
    webhook_retry_seconds: tuple[float, ...] = WEBHOOK_RETRY_SECONDS
    bind_address: str = "0.0.0.0"  # noqa: S104 - metrics and probes are for the cluster's network
    metrics_port: int = 8080
    probes_port: int = 8081
    resync_seconds: float = 600.0
    poll_seconds: float = 5.0
    retry_first_seconds: float = 60.0
    retry_max_seconds: float = 3600.0
    stuck_seconds: float = 900.0
    max_loads: int = 10
    max_loads_per_namespace: int = 4
    lease_namespace: str | None = None
    log_level: str = "INFO"
    log_format: str = "auto"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment; raises SettingsError."""
        read = Reader(env, PREFIX)
        default = cls()
        loader = default.loader
        return cls(
            kubeconfig=kubeconfig(env),
            namespaces=read.words("NAMESPACES"),
            claim_name=read.text("CLAIM_NAME") or default.claim_name,
            loader=LoaderSettings(
                image=read.text("LOADER_IMAGE") or loader.image,
                slim_image=read.text("LOADER_SLIM_IMAGE") or loader.slim_image,
                image_pull_secrets=read.words("IMAGE_PULL_SECRETS"),
                gpu_resource=read.text("GPU_RESOURCE") or loader.gpu_resource,
                gpu_count=read.whole("GPU_COUNT", loader.gpu_count),
                ca_configmap=read.text("CA_CONFIGMAP"),
                max_bytes=read.whole("MAX_BYTES", loader.max_bytes, least=1),
                retain_previous_seconds=read.whole(
                    "RETAIN_PREVIOUS_SECONDS",
                    loader.retain_previous_seconds,
                    most=RETAIN_MAX_SECONDS,
                ),
                tmp_size=read.text("LOADER_TMP_SIZE") or loader.tmp_size,
                active_deadline_seconds=read.whole(
                    "ACTIVE_DEADLINE_SECONDS", loader.active_deadline_seconds, least=60
                ),
                load_ttl_seconds=read.whole("LOAD_TTL_SECONDS", loader.load_ttl_seconds),
                remove_ttl_seconds=read.whole("REMOVE_TTL_SECONDS", loader.remove_ttl_seconds),
                default_parts=read.default_parts("LOADER_DEFAULT_PARTS"),
                allow_overrides=read.truth("ALLOW_JOB_OVERRIDES", loader.allow_overrides),
                kueue_queue=read.text("KUEUE_QUEUE"),
                security_context=read.object("LOADER_SECURITY_CONTEXT"),
                placement=read.placement("LOADER_PLACEMENT"),
            ),
            allowed_hosts=frozenset(host.lower() for host in read.words("ALLOWED_HOSTS")),
            hub_endpoint=read.link("HF_ENDPOINT") or env.get("HF_ENDPOINT") or None,
            trained_url_template=read.template("TRAINED_URL_TEMPLATE"),
            https_proxy=read.link("HTTPS_PROXY"),
            no_proxy=read.text("NO_PROXY") or "",
            webhook_key_file=read.path("WEBHOOK_KEY_FILE"),
            webhook_ca_file=read.path("WEBHOOK_CA_FILE"),
            webhook_retry_seconds=read.numbers("WEBHOOK_RETRY_SECONDS", WEBHOOK_RETRY_SECONDS),
            bind_address=read.text("BIND_ADDRESS") or default.bind_address,
            metrics_port=read.whole("METRICS_PORT", default.metrics_port, most=65535),
            probes_port=read.whole("PROBES_PORT", default.probes_port, most=65535),
            resync_seconds=read.seconds("RESYNC_SECONDS", default.resync_seconds),
            poll_seconds=read.seconds("POLL_SECONDS", default.poll_seconds),
            retry_first_seconds=read.seconds("RETRY_FIRST_SECONDS", default.retry_first_seconds),
            retry_max_seconds=read.seconds("RETRY_MAX_SECONDS", default.retry_max_seconds),
            stuck_seconds=read.seconds("STUCK_SECONDS", default.stuck_seconds),
            max_loads=read.whole("MAX_LOADS", default.max_loads),
            max_loads_per_namespace=read.whole(
                "MAX_LOADS_PER_NAMESPACE", default.max_loads_per_namespace
            ),
            lease_namespace=_lease_namespace(read),
            log_level=read.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
            log_format=read.choice("LOG_FORMAT", ("auto", "json", "text"), default.log_format),
        )

    def guard(self) -> Guard:
        """Which addresses webhooks may call."""
        return Guard(self.allowed_hosts)

    def loader_allowed_hosts(self) -> frozenset[str]:
        """The allowed hosts, and that of the trained models, which the administrator chose."""
        if self.trained_url_template is None:
            return self.allowed_hosts
        parts = urlsplit(self.trained_url_template)
        return self.allowed_hosts | {f"{parts.hostname}:{effective_port(parts)}"}


def _lease_namespace(read: Reader) -> str | None:
    """Where the Lease is. In a Pod there is one, if not told otherwise: in the Pod's namespace."""
    namespace = read.text("LEASE_NAMESPACE")
    in_pod = "KUBERNETES_SERVICE_HOST" in read.env and not read.env.get("KUBECONFIG")
    if namespace is None and in_pod and POD_NAMESPACE.is_file():
        namespace = POD_NAMESPACE.read_text().strip()
    if not read.truth("LEADER_ELECTION", in_pod and namespace is not None):
        return None
    if namespace is None:
        raise read.wrong("LEASE_NAMESPACE", "must be set for leader election outside a Pod")
    return namespace
