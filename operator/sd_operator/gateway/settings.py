"""The gateway's settings. Only this module reads the environment variables `SD_GATEWAY_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api import defaults
from sd_api.logins import Logins, with_login
from sd_api.netguard import Guard
from sd_operator.base.environment import Reader, kubeconfig

PREFIX = "SD_GATEWAY_"
_INSTEAD = (
    f"put USER:PASSWORD into the file proxy or hub of the folder that {PREFIX}LOGINS_DIR names"
)


@dataclass(frozen=True)
class GatewaySettings:
    """Everything an administrator may set."""

    keys_file: Path
    """Key file: one line for each API key. `sd-gateway new-key NAMESPACE` prints a line."""
    kubeconfig: Path | None = None
    """Kubeconfig of the cluster. Default: in a Pod the Pod's own account, else ~/.kube/config."""
    claim_name: str = defaults.CLAIM_NAME
    """PersistentVolumeClaim of models without spec.storage."""
    allowed_claims: frozenset[str] = frozenset()
    """Names of further PersistentVolumeClaims that models may use without the label
    sd-operator.dev/models, separated by commas."""
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts, as host or host:port and separated by commas, that webhooks may name and that
    sync_models and look-ups may call at private addresses and over plain http."""
    hub_endpoint: str | None = None
    """Base URL of a mirror of the Hugging Face Hub. Empty: the Hub itself."""
    civitai_endpoint: str | None = None
    """Base URL of a mirror of Civitai, with its API. Empty: Civitai itself."""
    lookups: bool = True
    """Whether the load form of the gallery asks the source of a link about the model. Set it to
    false if the gateway has no internet."""
    https_proxy: str | None = None
    """URL of the proxy for the calls of sync_models and for look-ups. If it is set, the gateway
    resolves hosts of webhooks only if they are in NO_PROXY: the operator's proxy resolves the
    others."""
    no_proxy: str = ""
    """Hosts, domains and networks that are called without the proxy, separated by commas."""
    logins: Logins = field(default_factory=Logins)
    """Folder with logins for the calls of sync_models and for look-ups: the files proxy and hub
    with USER:PASSWORD. It is read once, at the start."""
    ca_file: Path | None = None
    """PEM file; sync_models and look-ups trust its authorities instead of the public ones."""
    store: Path | None = None
    """Folder where the volume is mounted read-only, to show previews. Models on other PVCs, and
    all models if this is empty, are shown with a picture of their type."""
    public_url: str | None = None
    """URL under which browsers reach the gateway. If it begins with http://, cookies are sent over
    plain http, too."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of the proxies whose X-Forwarded-For header is trusted, separated by
    commas. max_connections_per_address does not apply to them."""
    calls_per_minute: int = 600
    """How many calls one key may make in a minute. 0: no limit."""
    failures_per_minute: int = 10
    """How many calls with a wrong key or an unreadable body one address may make in a minute. 0: no
    limit."""
    max_connections: int = 512
    """How many connections may be open. If there is one more, the gateway closes the connection
    that has waited longest for its client. At least 1."""
    max_connections_per_address: int = 128
    """How many connections may come from one address, or one /64 network of IPv6. At least 1."""
    max_body_bytes: int = 65536
    """Size limit of a request's body, in bytes. At least 1024."""
    bind_address: str = "0.0.0.0"  # noqa: S104 - other hosts must reach it
    """Address of the API, of metrics and of probes."""
    port: int = defaults.GATEWAY_PORT
    """Port of the API, the gallery, /healthz and /readyz. 0: any free port."""
    probes_port: int = defaults.PROBES_PORT
    """Port of /healthz and /readyz for the kubelet. The limits of the API's port do not apply here.
    0: any free port."""
    metrics_port: int = defaults.METRICS_PORT
    """Port of /metrics. 0: any free port."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal, else json."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> GatewaySettings:
        """Read the settings from the environment; raise SettingsError if one is invalid."""
        read = Reader(env, PREFIX)
        default = cls(keys_file=_keys_file(read))
        return cls(
            keys_file=default.keys_file,
            kubeconfig=kubeconfig(env),
            claim_name=read.text("CLAIM_NAME") or default.claim_name,
            allowed_claims=frozenset(read.words("ALLOWED_CLAIMS")),
            allowed_hosts=frozenset(host.lower() for host in read.words("ALLOWED_HOSTS")),
            hub_endpoint=read.link("HF_ENDPOINT", env.get("HF_ENDPOINT"), instead=_INSTEAD),
            civitai_endpoint=read.link("CIVITAI_ENDPOINT"),
            lookups=read.truth("LOOKUPS", default.lookups),
            https_proxy=read.link("HTTPS_PROXY", instead=_INSTEAD),
            no_proxy=read.text("NO_PROXY") or "",
            logins=read.logins("LOGINS_DIR"),
            ca_file=read.path("CA_FILE"),
            store=read.path("STORE"),
            public_url=read.link("PUBLIC_URL"),
            trusted_proxies=read.networks("TRUSTED_PROXIES"),
            calls_per_minute=read.whole("CALLS_PER_MINUTE", default.calls_per_minute),
            failures_per_minute=read.whole("FAILURES_PER_MINUTE", default.failures_per_minute),
            max_connections=read.whole("MAX_CONNECTIONS", default.max_connections, least=1),
            max_connections_per_address=read.whole(
                "MAX_CONNECTIONS_PER_ADDRESS", default.max_connections_per_address, least=1
            ),
            max_body_bytes=read.whole("MAX_BODY_BYTES", default.max_body_bytes, least=1024),
            bind_address=read.text("BIND_ADDRESS") or default.bind_address,
            port=read.whole("PORT", default.port, most=65535),
            probes_port=read.whole("PROBES_PORT", default.probes_port, most=65535),
            metrics_port=read.whole("METRICS_PORT", default.metrics_port, most=65535),
            log_level=read.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
            log_format=read.choice("LOG_FORMAT", ("auto", "json", "text"), default.log_format),
        )

    @property
    def cookie_secure(self) -> bool:
        """Whether browsers send cookies over https only: yes, unless public_url is http."""
        return self.public_url is None or self.public_url.startswith("https://")

    @property
    def proxy(self) -> str | None:
        """The proxy with its login."""
        return with_login(self.https_proxy, self.logins.proxy) if self.https_proxy else None

    @property
    def hub(self) -> str:
        """The Hub or its mirror, with its login."""
        mirror = self.hub_endpoint
        return with_login(mirror, self.logins.hub) if mirror else defaults.HUB_ENDPOINT

    @property
    def hub_page(self) -> str:
        """The Hub or its mirror, without a login."""
        return self.hub_endpoint or defaults.HUB_ENDPOINT

    @property
    def civitai(self) -> str:
        """Civitai or its mirror."""
        return (self.civitai_endpoint or defaults.CIVITAI_ENDPOINT).rstrip("/")

    def guard(self) -> Guard:
        """Return the guard that decides which addresses sync_models and look-ups may call."""
        return Guard(self.allowed_hosts).with_hosts([self.hub_endpoint, self.civitai_endpoint])


def _keys_file(read: Reader) -> Path:
    path = read.path("KEYS_FILE")
    if path is None:
        why = "must name the key file; run `sd-gateway new-key NAMESPACE` to make a line for it"
        raise read.wrong("KEYS_FILE", why)
    return path
