"""The gateway's settings. Only this module reads the environment variables `SD_GATEWAY_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api.load import RETAIN_MAX_SECONDS
from sd_api.netguard import Guard
from sd_operator.base.environment import Reader, kubeconfig
from sd_operator.base.settings import LoaderSettings

PREFIX = "SD_GATEWAY_"


@dataclass(frozen=True)
class Settings:
    """Everything that an administrator may set."""

    keys_file: Path
    """File with one line per API key; `sd-gateway new-key NAMESPACE` makes the lines."""
    kubeconfig: Path | None = None
    """Kubeconfig of the cluster. Default: the Pod's ServiceAccount."""
    claim_name: str = "models"
    """PVC that clear_cache sweeps."""
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    """The loader Job that clear_cache starts; only the settings that a sweep uses are read."""
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts, with or without a port, that sync_models may call over http and at private IPs."""
    hub_endpoint: str | None = None
    """URL of the Hugging Face Hub that sync_models calls. Default: https://huggingface.co."""
    https_proxy: str | None = None
    """Proxy for the calls of sync_models."""
    no_proxy: str = ""
    """Hosts that sync_models calls without the proxy, separated by commas."""
    ca_file: Path | None = None
    """File with the CA certificates that sync_models trusts. Default: those of the system."""
    store: Path | None = None
    """Folder where the models' volume is mounted. Without it the gallery shows no previews."""
    public_url: str | None = None
    """URL that browsers use for the gateway. If it is http, cookies are sent without TLS."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of the proxies whose X-Forwarded-For header is trusted."""
    calls_per_minute: int = 600
    """Calls per minute that one key may make; 0 is no limit."""
    failures_per_minute: int = 10
    """Calls per minute with a wrong key that one address may make; 0 is no limit."""
    max_body_bytes: int = 65536
    """Largest request body, in bytes."""
    bind_address: str = "0.0.0.0"  # noqa: S104 - other hosts must reach it
    """Address that both ports listen on."""
    port: int = 8000
    """Port of the API and the gallery; 0 takes any free port."""
    metrics_port: int = 8080
    """Port of /metrics; 0 takes any free port."""
    log_level: str = "INFO"
    """Least severe log level that is written."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal, else json."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from the environment; raise SettingsError if one is invalid."""
        read = Reader(env, PREFIX)
        keys_file = read.path("KEYS_FILE")
        if keys_file is None:
            why = "must name the key file; run `sd-gateway new-key NAMESPACE` to make a line for it"
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
                    most=RETAIN_MAX_SECONDS,
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
        """Whether browsers send cookies over https only: yes, unless public_url is http."""
        return self.public_url is None or self.public_url.startswith("https://")

    def guard(self) -> Guard:
        """Return the guard that decides which addresses sync_models may call."""
        return Guard(self.allowed_hosts).with_hosts([self.hub_endpoint])
