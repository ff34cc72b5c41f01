"""The loader's settings: the only place that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_api import defaults
from sd_api.choices import Pictures, VerifyDigest
from sd_api.default_credentials import DefaultSecret
from sd_api.loader_env import (
    CREDENTIALS_DIR,
    DEFAULT_CREDENTIALS_DIR,
    LoaderEnv,
    LoaderEnvError,
)
from sd_api.logins import Logins, with_login
from sd_api.netguard import Guard
from sd_api.reasons import Reason
from sd_api.redaction import secrets_of
from sd_api.trained import with_key
from sd_loader.errors import LoaderError


@dataclass(frozen=True)
class Settings:
    """The values of the variables that LoaderEnv describes, or their defaults."""

    hub_endpoint: str = defaults.HUB_ENDPOINT
    civitai_endpoint: str = defaults.CIVITAI_ENDPOINT
    trained_url_template: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    proxy: str | None = None
    no_proxy: str = ""
    ca_file: Path | None = None
    default_parts: Mapping[str, str] = field(default_factory=dict)
    verify_digest: VerifyDigest = VerifyDigest.ALWAYS
    pictures: Pictures = Pictures.SAFE
    max_bytes: int = defaults.MAX_BYTES
    retain_previous_seconds: int = defaults.RETAIN_PREVIOUS_SECONDS
    credentials_dir: Path = Path(CREDENTIALS_DIR)
    default_credentials: Mapping[str, DefaultSecret] = field(default_factory=dict)
    default_credentials_dir: Path = Path(DEFAULT_CREDENTIALS_DIR)
    hub_token: str | None = field(default=None, repr=False)
    civitai_token: str | None = field(default=None, repr=False)
    own_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The tokens of the person at the command line, by host. Empty in a Job."""
    logins: Logins = field(default_factory=Logins)
    """The administrator's logins. `proxy` and `trained_url_template` already contain theirs."""
    termination_log: Path | None = None
    """File for the result. None if no result is written."""
    pod: str = "local"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment. Raise LoaderError for a value that cannot be used."""
        try:
            values = LoaderEnv.from_env(env)
        except LoaderEnvError as error:
            raise LoaderError(Reason.INVALID_SPEC, f"the loader's setting {error}") from None
        try:
            logins = Logins.read(_path(values.logins_dir))
        except ValueError as error:
            raise LoaderError(Reason.SECRET_NOT_FOUND, str(error)) from None
        default = cls()
        template, proxy = values.trained_url_template, values.https_proxy
        return cls(
            hub_endpoint=(values.hub_endpoint or default.hub_endpoint).rstrip("/"),
            civitai_endpoint=(values.civitai_endpoint or default.civitai_endpoint).rstrip("/"),
            trained_url_template=with_key(template, logins.trained) if template else None,
            allowed_hosts=values.allowed_hosts or default.allowed_hosts,
            proxy=with_login(proxy, logins.proxy) if proxy else None,
            no_proxy=values.no_proxy or default.no_proxy,
            ca_file=_path(values.ca_file),
            default_parts=values.default_parts or default.default_parts,
            verify_digest=values.verify_digest or default.verify_digest,
            pictures=values.pictures or default.pictures,
            max_bytes=_or_default(values.max_bytes, default.max_bytes),
            retain_previous_seconds=_or_default(
                values.retain_previous_seconds, default.retain_previous_seconds
            ),
            credentials_dir=_path(values.credentials_dir) or default.credentials_dir,
            default_credentials=values.default_credentials or default.default_credentials,
            default_credentials_dir=(
                _path(values.default_credentials_dir) or default.default_credentials_dir
            ),
            hub_token=values.hub_token,
            civitai_token=values.civitai_token,
            logins=logins,
            termination_log=_path(values.termination_log),
            pod=values.pod or socket.gethostname(),
        )

    @classmethod
    def for_results(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read only where to write the result, which works even if another variable is invalid."""
        return cls(termination_log=_path(env.get(LoaderEnv.name_of("termination_log"))))

    def secrets(self, given: object, *tokens: str) -> frozenset[str]:
        """Return the tokens, and the secrets in these settings and in `given` (a request)."""
        urls = (self.proxy, self.hub_endpoint, self.civitai_endpoint, self.trained_url_template)
        return secrets_of((given, urls), *tokens, *self.own_tokens.values(), *self.logins.secrets())

    def guard(self) -> Guard:
        """Return the guard of all requests. Hosts that the administrator configured are allowed."""
        return Guard(self.allowed_hosts).with_hosts(
            [self.hub_endpoint, self.civitai_endpoint, self.trained_url_template]
        )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
