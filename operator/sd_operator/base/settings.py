"""The operator's settings: environment variables `SD_OPERATOR_*`, read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_api import defaults
from sd_api.choices import Pictures, VerifyDigest
from sd_api.default_credentials import DefaultSecret
from sd_api.logins import Logins, with_login
from sd_api.netguard import Guard
from sd_api.spec import JobOverrides
from sd_operator.base.environment import Reader, kubeconfig

PREFIX = "SD_OPERATOR_"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_INSTEAD = (
    "every reader of a Job would see them; put USER:PASSWORD into the key proxy or hub of the"
    f" Secret that {PREFIX}LOGINS_SECRET names in each namespace with models"
)

YEAR_SECONDS = 365 * 24 * 3600

# Standard Webhooks' schedule, cut at three days.
WEBHOOK_RETRY_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 72000.0)


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of loader Jobs."""

    image: str = "ghcr.io/sd-operator/loader:0.1.0"
    """Image of loads that render an image; it has torch."""
    slim_image: str = "ghcr.io/sd-operator/loader-slim:0.1.0"
    """Image of all other loads, of clean-ups, sweeps and checks; it does not have torch."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of the Secrets in each model's namespace that pull the images, separated by commas."""
    gpu_resource: str = defaults.GPU_RESOURCE
    """Resource that a load requests to render an image, for example amd.com/gpu."""
    gpu_count: int = 1
    """How many GPUs a load requests to render an image. If it is above 0, checkpoints and repos
    render by default. If it is 0, only models whose spec asks for an image render one, on the
    CPU."""
    ca_configmap: str | None = None
    """ConfigMap in each model's namespace; loads trust the authorities in its key ca.crt instead of
    the public ones."""
    logins_secret: str | None = None
    """Secret with logins, in each namespace with models. Its keys are optional: proxy and hub have
    USER:PASSWORD, and trained has what replaces {key}. Only the container that downloads mounts
    it."""
    default_credentials: Mapping[str, DefaultSecret] = field(default_factory=dict)
    """The administrator's Secrets with tokens, by host: huggingface.co=SECRET,HOST=SECRET. Each
    namespace with models has these Secrets. A load without spec.credentialsSecretRef gets the
    tokens for the hosts of its sources. With `:private` after a Secret's name, the token may also
    open private repos of the token's owner. With `:gateway`, models may use the Secret even if a
    caller of the gateway chose one of their sources. For a mirror of the Hub, name the mirror's
    host."""
    max_bytes: int = defaults.MAX_BYTES
    """Size limit of one source, in bytes."""
    retain_previous_seconds: int = defaults.RETAIN_PREVIOUS_SECONDS
    """How long the previous version of a model stays on the volume after a reload."""
    tmp_size: str = "1Gi"
    """Size limit of /tmp in loader Pods."""
    active_deadline_seconds: int = defaults.ACTIVE_DEADLINE_SECONDS
    """How long a load or clean-up may run. For loads, spec.job may say otherwise. At least 60."""
    load_ttl_seconds: int = 3600
    """How long the Job of a finished load is kept."""
    remove_ttl_seconds: int = 600
    """How long the Job of a finished clean-up is kept."""
    default_parts: Mapping[str, str] = field(default_factory=dict)
    """For each family, the Hub repo of components that a file lacks:
    sdxl=ORG/NAME,flux=ORG/NAME@REVISION."""
    allow_overrides: bool = True
    """Whether spec.job has an effect: true or false."""
    priority_classes: frozenset[str] = frozenset()
    """PriorityClasses that spec.job may name, separated by commas. Empty: none."""
    kueue_queue: str | None = None
    """LocalQueue of Kueue in each model's namespace. Kueue then admits the loads, and the limits on
    their number have no effect."""
    security_context: Mapping[str, Any] | None = None
    """Security contexts of loader Pods as JSON: {"pod": {…}, "container": {…}}. They replace the
    restricted default as a whole."""
    placement: JobOverrides = field(default_factory=JobOverrides)
    """Where loader Pods run, unless spec.job says otherwise: JSON with nodeSelector, tolerations,
    runtimeClassName and priorityClassName. If GPU_COUNT is above 0, only Pods with a GPU get the
    runtimeClassName."""

    def allows_priority_class(self, name: str) -> bool:
        """Whether spec.job may name this PriorityClass."""
        return name in self.priority_classes or name == self.placement.priority_class_name


@dataclass(frozen=True)
class Settings:
    """Everything an administrator may set."""

    kubeconfig: Path | None = None
    """Kubeconfig of the cluster. Default: in a Pod the Pod's own account, else ~/.kube/config."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose models are served, separated by commas. Empty: all."""
    claim_name: str = defaults.CLAIM_NAME
    """PersistentVolumeClaim of models without spec.storage."""
    allowed_claims: frozenset[str] = frozenset()
    """Names of further PersistentVolumeClaims that models may use without the label
    sd-operator.dev/models, separated by commas."""
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts, as host or host:port and separated by commas, that loads and webhooks may call at
    private addresses and over plain http."""
    hub_endpoint: str | None = None
    """Base URL of a mirror of the Hugging Face Hub. Empty: the Hub itself."""
    civitai_endpoint: str | None = None
    """Base URL of a mirror of Civitai. Empty: Civitai itself."""
    verify_digest: VerifyDigest = VerifyDigest.ALWAYS
    """always: loads compare the SHA-256 that Civitai states. whenWhole: they do not compare it if
    the conversion leaves out more than 1 GB of the file."""
    pictures: Pictures = Pictures.SAFE
    """safe: loads keep the first picture of the source that it rates as safe for everyone. all:
    they keep the first picture, whatever its rating. none: they keep no picture."""
    trained_url_template: str | None = None
    """Link of a trained model (modelType api_trained), with {id} in place of its id. {key}
    stands for the content of the key trained in the Secret with logins."""
    https_proxy: str | None = None
    """URL of the proxy for loads and webhook calls."""
    no_proxy: str = ""
    """Hosts, domains and networks that are called without the proxy, separated by commas."""
    logins: Logins = field(default_factory=Logins)
    """Folder with the operator's own copy of the logins: the file proxy with USER:PASSWORD for
    webhook calls. It is read once, at the start."""
    webhook_key_file: Path | None = None
    """File with the key that signs the webhook calls of models without spec.webhookSecretRef.
    Empty: these calls are not signed."""
    webhook_ca_file: Path | None = None
    """PEM file; webhook calls trust its authorities instead of the public ones."""
    webhook_retry_seconds: tuple[float, ...] = WEBHOOK_RETRY_SECONDS
    """Seconds between the attempts of a webhook call, separated by commas."""
    bind_address: str = "0.0.0.0"  # noqa: S104 - metrics and probes are for the cluster's network
    """Address of metrics and probes."""
    metrics_port: int = defaults.METRICS_PORT
    """Port of /metrics. 0: any free port."""
    probes_port: int = defaults.PROBES_PORT
    """Port of /healthz and /readyz. 0: any free port."""
    resync_seconds: float = 600.0
    """After this time a model is read again even if nothing happened."""
    check_seconds: int = 21600
    """Seconds between two checks of the published files on each PersistentVolumeClaim. 0: the files
    are not checked."""
    poll_seconds: float = 5.0
    """How often the progress of a running load is read."""
    retry_first_seconds: float = 60.0
    """Wait before the second attempt of a load or clean-up; it doubles with every attempt."""
    retry_max_seconds: float = 3600.0
    """Longest wait before another attempt."""
    stuck_seconds: float = 900.0
    """How long a Pod may wait for a node or an image, or a clean-up may take, before the model is
    Stalled."""
    max_loads: int = 10
    """How many loads may run at once. 0: no limit."""
    max_loads_per_namespace: int = 4
    """How many loads may run at once in one namespace. 0: no limit."""
    lease_namespace: str | None = None
    """Namespace of the Lease that elects the working operator, and whether there is an election:
    true or false. Default: in a Pod an election in the Pod's namespace, else none."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal, else json."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from the environment; raise SettingsError if one is invalid."""
        read = Reader(env, PREFIX)
        default = cls()
        loader = default.loader
        return cls(
            kubeconfig=kubeconfig(env),
            namespaces=read.words("NAMESPACES"),
            claim_name=read.text("CLAIM_NAME") or default.claim_name,
            allowed_claims=frozenset(read.words("ALLOWED_CLAIMS")),
            loader=LoaderSettings(
                image=read.text("LOADER_IMAGE") or loader.image,
                slim_image=read.text("LOADER_SLIM_IMAGE") or loader.slim_image,
                image_pull_secrets=read.words("IMAGE_PULL_SECRETS"),
                gpu_resource=read.text("GPU_RESOURCE") or loader.gpu_resource,
                gpu_count=read.whole("GPU_COUNT", loader.gpu_count),
                ca_configmap=read.text("CA_CONFIGMAP"),
                logins_secret=read.text("LOGINS_SECRET"),
                default_credentials=read.default_credentials("DEFAULT_CREDENTIALS"),
                max_bytes=read.whole("MAX_BYTES", loader.max_bytes, least=1),
                retain_previous_seconds=read.whole(
                    "RETAIN_PREVIOUS_SECONDS",
                    loader.retain_previous_seconds,
                    most=defaults.RETAIN_PREVIOUS_MAX_SECONDS,
                ),
                tmp_size=read.text("LOADER_TMP_SIZE") or loader.tmp_size,
                active_deadline_seconds=read.whole(
                    "ACTIVE_DEADLINE_SECONDS", loader.active_deadline_seconds, least=60
                ),
                load_ttl_seconds=read.whole("LOAD_TTL_SECONDS", loader.load_ttl_seconds),
                remove_ttl_seconds=read.whole("REMOVE_TTL_SECONDS", loader.remove_ttl_seconds),
                default_parts=read.default_parts("LOADER_DEFAULT_PARTS"),
                allow_overrides=read.truth("ALLOW_JOB_OVERRIDES", loader.allow_overrides),
                priority_classes=frozenset(read.words("PRIORITY_CLASSES")),
                kueue_queue=read.text("KUEUE_QUEUE"),
                security_context=read.object("LOADER_SECURITY_CONTEXT"),
                placement=read.placement("LOADER_PLACEMENT"),
            ),
            allowed_hosts=frozenset(host.lower() for host in read.words("ALLOWED_HOSTS")),
            hub_endpoint=read.link("HF_ENDPOINT", env.get("HF_ENDPOINT"), instead=_INSTEAD),
            civitai_endpoint=read.link("CIVITAI_ENDPOINT", instead=_INSTEAD),
            verify_digest=VerifyDigest(
                read.choice("VERIFY_DIGEST", tuple(VerifyDigest), default.verify_digest)
            ),
            pictures=Pictures(read.choice("PICTURES", tuple(Pictures), default.pictures)),
            trained_url_template=read.template("TRAINED_URL_TEMPLATE"),
            https_proxy=read.link("HTTPS_PROXY", instead=_INSTEAD),
            no_proxy=read.text("NO_PROXY") or "",
            logins=read.logins("LOGINS_DIR"),
            webhook_key_file=read.path("WEBHOOK_KEY_FILE"),
            webhook_ca_file=read.path("WEBHOOK_CA_FILE"),
            webhook_retry_seconds=read.numbers("WEBHOOK_RETRY_SECONDS", WEBHOOK_RETRY_SECONDS),
            bind_address=read.text("BIND_ADDRESS") or default.bind_address,
            metrics_port=read.whole("METRICS_PORT", default.metrics_port, most=65535),
            probes_port=read.whole("PROBES_PORT", default.probes_port, most=65535),
            resync_seconds=read.seconds("RESYNC_SECONDS", default.resync_seconds),
            check_seconds=read.whole("CHECK_SECONDS", default.check_seconds, most=YEAR_SECONDS),
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
        """Return the guard that decides which addresses webhooks may call."""
        return Guard(self.allowed_hosts)

    @property
    def own_proxy(self) -> str | None:
        """The proxy of webhook calls, with its login. It must not get into a Job."""
        return with_login(self.https_proxy, self.logins.proxy) if self.https_proxy else None


def _lease_namespace(read: Reader) -> str | None:
    """Return the namespace of the Lease, by default the Pod's; None if there is no election."""
    namespace = read.text("LEASE_NAMESPACE")
    in_pod = "KUBERNETES_SERVICE_HOST" in read.env and not read.env.get("KUBECONFIG")
    if namespace is None and in_pod and POD_NAMESPACE.is_file():
        namespace = POD_NAMESPACE.read_text().strip()
    if not read.truth("LEADER_ELECTION", in_pod and namespace is not None):
        return None
    if namespace is None:
        raise read.wrong("LEASE_NAMESPACE", "must be set for leader election outside a Pod")
    return namespace
