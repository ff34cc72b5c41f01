"""The loader's settings: the only place that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api import defaults
from sd_api.loader_env import CREDENTIALS_DIR, LoaderEnv, LoaderEnvError
from sd_api.netguard import Guard
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError


@dataclass(frozen=True)
class Settings:
    """The variables of LoaderEnv, which describes them; defaults replace those that are not set."""

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
    """None: no result is written."""
    pod: str = "local"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment; raise LoaderError."""
        try:
            given = LoaderEnv.from_env(env)
        except LoaderEnvError as error:
            raise LoaderError(Reason.INVALID_SPEC, f"the loader's setting {error}") from None
        default = cls()
        return cls(
            hub_endpoint=(given.hub_endpoint or default.hub_endpoint).rstrip("/"),
            trained_url_template=given.trained_url_template,
            allowed_hosts=given.allowed_hosts or default.allowed_hosts,
            proxy=given.https_proxy,
            no_proxy=given.no_proxy or default.no_proxy,
            ca_file=_path(given.ca_file),
            default_parts=given.default_parts or default.default_parts,
            max_bytes=_or_default(given.max_bytes, default.max_bytes),
            retain_previous_seconds=_or_default(
                given.retain_previous_seconds, default.retain_previous_seconds
            ),
            credentials_dir=_path(given.credentials_dir) or default.credentials_dir,
            termination_log=_path(given.termination_log),
            pod=given.pod or socket.gethostname(),
        )

    @classmethod
    def for_answers(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Only where the result goes, so that a wrong value of another variable is reported."""
        return cls(termination_log=_path(env.get(LoaderEnv.name_of("termination_log"))))

    def guard(self) -> Guard:
        """Which addresses may be called: what the administrator set may be, wherever it is."""
        return Guard(self.allowed_hosts).with_hosts([self.hub_endpoint, self.trained_url_template])


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
