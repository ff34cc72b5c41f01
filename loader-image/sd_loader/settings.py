"""The loader's settings: the only place that reads the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api import defaults
from sd_api.default_parts import parse_default_parts
from sd_api.load import CREDENTIALS_DIR
from sd_api.netguard import Guard
from sd_api.reasons import Reason
from sd_api.trained import check_template
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet

TRAINED_URL_TEMPLATE = "SD_LOADER_TRAINED_URL_TEMPLATE"
DEFAULT_PARTS = "SD_LOADER_DEFAULT_PARTS"


@dataclass(frozen=True)
class Settings:
    """What the administrator set, as the operator passes it on.

    hub_endpoint: base URL of the Hub or its mirror. trained_url_template: link of a trained model,
    with {id}; for loads by hand, as the operator fills in its own. default_parts: for base models,
    the repo of a pipeline that parts come from which a checkpoint lacks. max_bytes: size limit of
    one source. termination_log: where the answer goes; None where nobody reads it.
    """

    hub_endpoint: str = defaults.HUB_ENDPOINT
    trained_url_template: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    proxy: str | None = None
    no_proxy: str = ""
    ca_file: Path | None = None
    default_parts: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int = defaults.MAX_BYTES
    retain_previous_seconds: int = defaults.RETAIN_PREVIOUS_SECONDS
    credentials_dir: Path = Path(CREDENTIALS_DIR)
    termination_log: Path | None = None
    pod: str = "local"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read `SD_LOADER_*` and the usual variables of proxies, certificates and the Hub."""
        ca_file = env.get("SSL_CERT_FILE")
        return cls(
            hub_endpoint=(env.get("HF_ENDPOINT") or defaults.HUB_ENDPOINT).rstrip("/"),
            trained_url_template=_template(env),
            allowed_hosts=frozenset(
                host.strip().lower()
                for host in env.get("SD_LOADER_ALLOWED_HOSTS", "").split(",")
                if host.strip()
            ),
            proxy=env.get("HTTPS_PROXY") or env.get("https_proxy") or None,
            no_proxy=env.get("NO_PROXY") or env.get("no_proxy") or "",
            ca_file=Path(ca_file) if ca_file else None,
            default_parts=_default_parts(env),
            max_bytes=_number(env, "SD_LOADER_MAX_BYTES", defaults.MAX_BYTES),
            retain_previous_seconds=_number(
                env,
                "SD_LOADER_RETAIN_PREVIOUS_SECONDS",
                defaults.RETAIN_PREVIOUS_SECONDS,
                most=defaults.RETAIN_PREVIOUS_MAX_SECONDS,
            ),
            credentials_dir=Path(env.get("SD_LOADER_CREDENTIALS_DIR") or CREDENTIALS_DIR),
            termination_log=_termination_log(env),
            pod=env.get("SD_LOADER_POD") or socket.gethostname(),
        )

    @classmethod
    def for_answers(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Only where the answer goes, which no wrong value keeps from being read."""
        return cls(termination_log=_termination_log(env))

    def guard(self) -> Guard:
        """Which addresses may be called: what the administrator set may be, wherever it is."""
        return Guard(self.allowed_hosts).with_hosts([self.hub_endpoint, self.trained_url_template])


def _termination_log(env: Mapping[str, str]) -> Path | None:
    log = env.get("SD_LOADER_TERMINATION_LOG")
    return Path(log) if log else None


def _template(env: Mapping[str, str]) -> str | None:
    text = env.get(TRAINED_URL_TEMPLATE)
    try:
        return check_template(text) if text else None
    except ValueError as error:
        raise LoaderError(
            Reason.INVALID_SPEC, f"the loader's setting {TRAINED_URL_TEMPLATE} {error}"
        ) from None


def _default_parts(env: Mapping[str, str]) -> dict[str, str]:
    """`sd1=ORG/NAME,sdxl=ORG/NAME`."""
    text = env.get(DEFAULT_PARTS, "")
    try:
        return parse_default_parts(text)
    except ValueError as error:
        raise LoaderError(
            Reason.INVALID_SPEC, f"the loader's setting {DEFAULT_PARTS} {error}"
        ) from None


def _number(env: Mapping[str, str], name: str, default: int, most: int = 10**18) -> int:
    text = env.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > most:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"the loader's setting {name} must be a whole number of at most {most}, such as"
            f" {default}, not {snippet(text)}",
        )
    return int(text)
