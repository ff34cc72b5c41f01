"""The environment of the loader: the operator writes it into Jobs, the loader reads it.

Each variable is declared once, with functions that read and write its text. All are optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from sd_api.choices import Pictures, VerifyDigest
from sd_api.default_credentials import (
    DefaultSecret,
    format_default_credentials,
    parse_default_credentials,
)
from sd_api.default_parts import format_default_parts, parse_default_parts
from sd_api.defaults import RETAIN_PREVIOUS_MAX_SECONDS
from sd_api.names import LOADER_NAME
from sd_api.trained import check_template

CREDENTIALS_DIR = "/run/secrets/sd"
"""Where a Job mounts the Secret of spec.credentialsSecretRef."""
DEFAULT_CREDENTIALS_DIR = "/run/secrets/sd-defaults"
"""Where a Job mounts the Secrets of the setting for default credentials."""
LOGINS_DIR = "/run/secrets/sd-logins"
"""Where a Job mounts the Secret of the administrator's logins."""
STORE_MOUNT = "/models"
"""Where a Job mounts the volume."""
USER_ENV = {"HOME": "/tmp", "LOGNAME": LOADER_NAME}  # noqa: S108 - the Pod's own emptyDir
"""Variables from which Python learns about its user, who has no entry in /etc/passwd."""
HUB_LIBRARY_ENV = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": "/tmp/hf",  # noqa: S108 - the Pod's own emptyDir
}
"""Settings of the library huggingface_hub."""
TORCH_ENV = {"OMP_WAIT_POLICY": "passive"}
"""Lets torch's waiting threads sleep. By default they spin and use up CPU time."""

_MAX_BYTES = 10**18


class LoaderEnvError(ValueError):
    """A variable has a value that cannot be used; the message names it and what it must be."""


@dataclass(frozen=True)
class _Variable:
    names: tuple[str, ...]
    """The spellings. The first one is written; the first one that is set is read."""
    read: Callable[[str], Any]
    """Raises ValueError for a text that cannot be used."""
    write: Callable[[Any], str]
    is_path: bool = False
    """Whether the text names a file or folder of the container."""
    is_token: bool = False
    """True if the value is a token. The operator never sets such a variable: Jobs get files."""


def _variable(
    *names: str,
    read: Callable[[str], Any] = str,
    write: Callable[[Any], str] = str,
    is_path: bool = False,
    is_token: bool = False,
) -> Any:  # noqa: ANN401 - a dataclass field takes the type of its annotation
    variable = _Variable(names, read, write, is_path, is_token)
    return field(default=None, repr=not is_token, metadata={"variable": variable})


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


def _one_of(choices: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(text: str) -> StrEnum:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(choices)}, not {text[:80]!r}") from None

    return read


@dataclass(frozen=True, kw_only=True)
class LoaderEnv:
    """The variables of a loader container. None: the variable is not set."""

    termination_log: str | None = _variable("SD_LOADER_TERMINATION_LOG", is_path=True)
    """File for the result, which Kubernetes reads as the termination message. Empty: no result is
    written."""
    allowed_hosts: frozenset[str] | None = _variable(
        "SD_LOADER_ALLOWED_HOSTS", read=_read_hosts, write=_write_hosts
    )
    """Hosts, as host or host:port and separated by commas, that may be called at private addresses
    and over plain http."""
    max_bytes: int | None = _variable("SD_LOADER_MAX_BYTES", read=_whole(_MAX_BYTES))
    """Size limit of one source, in bytes."""
    retain_previous_seconds: int | None = _variable(
        "SD_LOADER_RETAIN_PREVIOUS_SECONDS", read=_whole(RETAIN_PREVIOUS_MAX_SECONDS)
    )
    """How long the previous version of a model stays on the volume after a reload."""
    hub_endpoint: str | None = _variable("HF_ENDPOINT")
    """Base URL of the Hugging Face Hub or of a mirror."""
    civitai_endpoint: str | None = _variable("SD_LOADER_CIVITAI_ENDPOINT")
    """Base URL of Civitai or of a mirror."""
    verify_digest: VerifyDigest | None = _variable(  # noqa: RUF009 - it is a field, as all are
        "SD_LOADER_VERIFY_DIGEST", read=_one_of(VerifyDigest)
    )
    """always: the SHA-256 that Civitai states is compared. whenWhole: it is not compared if the
    conversion leaves out more than 1 GB of the file."""
    pictures: Pictures | None = _variable(  # noqa: RUF009 - it is a field, as all are
        "SD_LOADER_PICTURES", read=_one_of(Pictures)
    )
    """safe: keep the first picture that the source rates as safe for everyone. all: keep the first
    picture, whatever its rating. none: keep no picture."""
    https_proxy: str | None = _variable("HTTPS_PROXY", "https_proxy")
    """URL of the proxy for downloads."""
    no_proxy: str | None = _variable("NO_PROXY", "no_proxy")
    """Hosts, domains and networks that are called without the proxy, separated by commas."""
    ca_file: str | None = _variable("SSL_CERT_FILE", is_path=True)
    """PEM file; downloads trust its authorities instead of the public ones."""
    credentials_dir: str | None = _variable("SD_LOADER_CREDENTIALS_DIR", is_path=True)
    """Folder with the source's credentials: the file token and, optionally, the file host."""
    default_credentials: Mapping[str, DefaultSecret] | None = _variable(
        "SD_LOADER_DEFAULT_CREDENTIALS",
        read=parse_default_credentials,
        write=format_default_credentials,
    )
    """For each host, the Secret of loads that name no Secret of their own: HOST=SECRET,HOST=SECRET.
    `:private` after a Secret's name lets it open private repos, too; only the operator reads
    `:gateway`.
    """
    default_credentials_dir: str | None = _variable(
        "SD_LOADER_DEFAULT_CREDENTIALS_DIR", is_path=True
    )
    """Folder with the files HOST.token (HOST_PORT.token) and, optionally, HOST.host of these
    Secrets."""
    hub_token: str | None = _variable("HF_TOKEN", is_token=True)
    """Token for the Hub, for `sd-loader load` and `inspect` by hand. Jobs never have it."""
    civitai_token: str | None = _variable("CIVITAI_TOKEN", is_token=True)
    """Token for Civitai, for `sd-loader load` and `inspect` by hand. Jobs never have it."""
    logins_dir: str | None = _variable("SD_LOADER_LOGINS_DIR", is_path=True)
    """Folder with the administrator's logins, all optional: the files proxy and hub with
    USER:PASSWORD, and the file trained with the key of the trained models' link template."""
    default_parts: Mapping[str, str] | None = _variable(
        "SD_LOADER_DEFAULT_PARTS", read=parse_default_parts, write=format_default_parts
    )
    """For each family, the Hub repo of components that a file lacks:
    sdxl=ORG/NAME,flux=ORG/NAME@REVISION."""
    trained_url_template: str | None = _variable(
        "SD_LOADER_TRAINED_URL_TEMPLATE", read=check_template
    )
    """Link of a trained model, with {id} where its id goes, and {key} where the key goes."""
    pod: str | None = _variable("SD_LOADER_POD")
    """Name of the Pod, which owns its staging folder. Default: the host's name."""

    @classmethod
    def names_of(cls, field_name: str) -> tuple[str, ...]:
        """Return all spellings of a field's variable, the usual one first."""
        return _variables(cls)[field_name].names

    @classmethod
    def name_of(cls, field_name: str) -> str:
        """Return the usual spelling of a field's variable."""
        return cls.names_of(field_name)[0]

    @classmethod
    def every_name(cls) -> frozenset[str]:
        """Return all variables that a Job's container may have, including those for libraries."""
        variables = [it for it in _variables(cls).values() if not it.is_token]
        spellings = {name for variable in variables for name in variable.names}
        return frozenset(spellings | USER_ENV.keys() | HUB_LIBRARY_ENV.keys() | TORCH_ENV.keys())

    @classmethod
    def path_names(cls) -> frozenset[str]:
        """Return those variables of `every_name` whose value is a path in the container."""
        variables = _variables(cls).values()
        paths = {name for variable in variables if variable.is_path for name in variable.names}
        return frozenset(paths | {"HOME", "HF_HOME"})

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the variables; raise LoaderEnvError for a bad value. Empty ones count as not set."""
        values = {}
        for name, variable in _variables(cls).items():
            spelling = next((spelling for spelling in variable.names if env.get(spelling)), None)
            if spelling is not None:
                try:
                    values[name] = variable.read(env[spelling])
                except ValueError as error:
                    raise LoaderEnvError(f"{spelling} {error}") from None
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """Return the variables that are set and not empty, in the order of the fields."""
        values = {
            variable.names[0]: variable.write(value)
            for name, variable in _variables(type(self)).items()
            if (value := getattr(self, name)) is not None
        }
        return {name: text for name, text in values.items() if text}


def _variables(cls: type[LoaderEnv]) -> dict[str, _Variable]:
    return {one.name: one.metadata["variable"] for one in fields(cls)}
