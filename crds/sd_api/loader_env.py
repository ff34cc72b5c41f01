"""The environment of the loader: the operator writes it into Jobs, the loader reads it.

Each variable is declared once, with the text that it has. All are optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from sd_api.default_parts import format_default_parts, parse_default_parts
from sd_api.defaults import RETAIN_PREVIOUS_MAX_SECONDS
from sd_api.trained import check_template

CREDENTIALS_DIR = "/run/secrets/sd"
"""Where a Job mounts the Secret of spec.credentialsSecretRef."""
STORE_MOUNT = "/models"
"""Where a Job mounts the volume."""

_MAX_BYTES = 10**18


class LoaderEnvError(ValueError):
    """A variable has a value that cannot be used; the message names it and what it must be."""


@dataclass(frozen=True)
class _Variable:
    """An environment variable: how its text is read (or raises ValueError) and written."""

    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    also: str | None = None
    """Another spelling that is read if the variable is not set."""


def _variable(
    name: str,
    read: Callable[[str], Any] = str,
    write: Callable[[Any], str] = str,
    also: str | None = None,
) -> Any:  # noqa: ANN401 - a dataclass field takes the type of its annotation
    return field(default=None, metadata={"variable": _Variable(name, read, write, also)})


def _read_hosts(text: str) -> frozenset[str]:
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


def _write_hosts(hosts: frozenset[str]) -> str:
    return ",".join(sorted(hosts))


def _whole(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > most:
            raise ValueError(f"must be a whole number of at most {most}, not {text[:80]!r}")
        return int(text)

    return read


@dataclass(frozen=True, kw_only=True)
class LoaderEnv:
    """The variables of a loader container. None: the variable is not set."""

    termination_log: str | None = _variable("SD_LOADER_TERMINATION_LOG")
    """File for the result, which Kubernetes reads as the termination message."""
    allowed_hosts: frozenset[str] | None = _variable(
        "SD_LOADER_ALLOWED_HOSTS", _read_hosts, _write_hosts
    )
    """Hosts (`host` or `host:port`, separated by commas) that may have private addresses and may be
    called over plain http."""
    max_bytes: int | None = _variable("SD_LOADER_MAX_BYTES", _whole(_MAX_BYTES))
    """Size limit of one source, in bytes."""
    retain_previous_seconds: int | None = _variable(
        "SD_LOADER_RETAIN_PREVIOUS_SECONDS", _whole(RETAIN_PREVIOUS_MAX_SECONDS)
    )
    """How long the previous version of a model stays on the volume after a reload."""
    hub_endpoint: str | None = _variable("HF_ENDPOINT")
    """Base URL of a mirror of the Hugging Face Hub."""
    https_proxy: str | None = _variable("HTTPS_PROXY", also="https_proxy")
    """The proxy for downloads."""
    no_proxy: str | None = _variable("NO_PROXY", also="no_proxy")
    """Hosts, domains and networks that are called without the proxy, separated by commas."""
    ca_file: str | None = _variable("SSL_CERT_FILE")
    """File with the certificates of the authorities that are trusted in place of the system's."""
    credentials_dir: str | None = _variable("SD_LOADER_CREDENTIALS_DIR")
    """Folder with the files `token` and `host` of the source's credentials."""
    default_parts: Mapping[str, str] | None = _variable(
        "SD_LOADER_DEFAULT_PARTS", parse_default_parts, format_default_parts
    )
    """For base models, the Hub repo of what a checkpoint lacks: `sd1=ORG/NAME,sdxl=ORG/NAME`."""
    trained_url_template: str | None = _variable("SD_LOADER_TRAINED_URL_TEMPLATE", check_template)
    """Link of a trained model, with {id} where its id goes. Only for loads by hand: in a Job the
    operator has put the id in."""
    pod: str | None = _variable("SD_LOADER_POD")
    """Name of the Pod, which owns its staging folder. Default: the host name."""

    @classmethod
    def name_of(cls, name: str) -> str:
        """The variable of a field."""
        return _variables(cls)[name].name

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the variables; raise LoaderEnvError. An empty variable is not set."""
        values = {}
        for name, variable in _variables(cls).items():
            text = env.get(variable.name) or (variable.also and env.get(variable.also))
            if text:
                try:
                    values[name] = variable.read(text)
                except ValueError as error:
                    raise LoaderEnvError(f"{variable.name} {error}") from None
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables that are set, in the order of the fields."""
        values = {
            variable.name: variable.write(value)
            for name, variable in _variables(type(self)).items()
            if (value := getattr(self, name)) is not None
        }
        return {name: text for name, text in values.items() if text}


def _variables(cls: type[LoaderEnv]) -> dict[str, _Variable]:
    return {one.name: one.metadata["variable"] for one in fields(cls)}
