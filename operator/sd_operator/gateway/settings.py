"""The gateway's settings: environment variables `SD_GATEWAY_*`, read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api import defaults
from sd_api.netguard import Guard
from sd_operator.base.environment import Reader, kubeconfig
from sd_operator.base.settings import LoaderSettings

PREFIX = "SD_GATEWAY_"


@dataclass(frozen=True)
class Settings:
    """Everything an administrator may set.

    kubeconfig: None means the Pod's own account. keys_file: see `keys`. claim_name: the volume of
    models that name none, which clear_cache sweeps. loader: of it only what a sweep has.
    allowed_hosts, hub_endpoint, https_proxy, no_proxy, ca_file: how sync_models asks the sources.
    store: where the volume is mounted, to read previews from; None where it is not. public_url:
    what browsers call this gateway. trusted_proxies: the addresses whose X-Forwarded-For is
    believed. calls_per_minute: of one key; failures_per_minute: wrong keys of one address; 0 is no
    limit. Ports: 0 takes any free one.
    """

    keys_file: Path
    kubeconfig: Path | None = None
    claim_name: str = defaults.CLAIM_NAME
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    allowed_hosts: frozenset[str] = frozenset()
    hub_endpoint: str | None = None
    https_proxy: str | None = None
    no_proxy: str = ""
    ca_file: Path | None = None
    store: Path | None = None
    public_url: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    calls_per_minute: int = 600
    failures_per_minute: int = 10
    max_body_bytes: int = 65536
    bind_address: str = "0.0.0.0"  # noqa: S104 - it is there to be called
    port: int = defaults.GATEWAY_PORT
    metrics_port: int = defaults.METRICS_PORT
    log_level: str = "INFO"
    log_format: str = "auto"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment; raises SettingsError."""
        read = Reader(env, PREFIX)
        keys_file = read.path("KEYS_FILE")
        if keys_file is None:
            why = "must name the file of the keys; `sd-gateway new-key NAMESPACE` makes its lines"
            raise read.wrong("KEYS_FILE", why)
        default = cls(keys_file)
        loader = default.loader
        return cls(
            keys_file=keys_file,
            kubeconfig=kubeconfig(env),
            claim_name=read.text("CLAIM_NAME") or default.claim_name,
            loader=LoaderSettings(
                slim_image=read.text("LOADER_SLIM_IMAGE") or loader.slim_image,
                image_pull_secrets=read.words("IMAGE_PULL_SECRETS"),
                retain_previous_seconds=read.whole(
                    "RETAIN_PREVIOUS_SECONDS",
                    loader.retain_previous_seconds,
                    most=defaults.RETAIN_PREVIOUS_MAX_SECONDS,
                ),
                tmp_size=read.text("LOADER_TMP_SIZE") or loader.tmp_size,
                security_context=read.object("LOADER_SECURITY_CONTEXT"),
                placement=read.placement("LOADER_PLACEMENT"),
            ),
            allowed_hosts=frozenset(host.lower() for host in read.words("ALLOWED_HOSTS")),
            hub_endpoint=read.link("HF_ENDPOINT") or env.get("HF_ENDPOINT") or None,
            https_proxy=read.link("HTTPS_PROXY"),
            no_proxy=read.text("NO_PROXY") or "",
            ca_file=read.path("CA_FILE"),
            store=read.path("STORE"),
            public_url=read.link("PUBLIC_URL"),
            trusted_proxies=read.words("TRUSTED_PROXIES"),
            calls_per_minute=read.whole("CALLS_PER_MINUTE", default.calls_per_minute),
            failures_per_minute=read.whole("FAILURES_PER_MINUTE", default.failures_per_minute),
            max_body_bytes=read.whole("MAX_BODY_BYTES", default.max_body_bytes, least=1024),
            bind_address=read.text("BIND_ADDRESS") or default.bind_address,
            port=read.whole("PORT", default.port, most=65535),
            metrics_port=read.whole("METRICS_PORT", default.metrics_port, most=65535),
            log_level=read.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
            log_format=read.choice("LOG_FORMAT", ("auto", "json", "text"), default.log_format),
        )

    @property
    def cookie_secure(self) -> bool:
        """Whether browsers may send cookies over https only; so it is, unless told otherwise."""
        return self.public_url is None or self.public_url.startswith("https://")

    def guard(self) -> Guard:
        """Which addresses may be called."""
        return Guard(self.allowed_hosts).with_hosts([self.hub_endpoint])
