"""Reads settings from environment variables.

Errors name the variable. They do not show the value of a link, which may contain a password or a
key.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from sd_api.default_credentials import DefaultSecret, parse_default_credentials
from sd_api.default_parts import parse_default_parts
from sd_api.logins import Logins
from sd_api.netguard import effective_port
from sd_api.spec import JobOverrides
from sd_api.trained import KEY, KEY_FREE_RULE, check_template, contains_key
from sd_operator.base.errors import SettingsError

_PLACEMENT = {"nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"}


def kubeconfig(env: Mapping[str, str]) -> Path | None:
    """Return the first file of KUBECONFIG, or ~/.kube/config; None means the Pod's account."""
    first = env.get("KUBECONFIG", "").partition(os.pathsep)[0]
    if not first and "KUBERNETES_SERVICE_HOST" in env:
        return None
    path = Path(first) if first else Path.home() / ".kube" / "config"
    if not path.is_file():
        raise SettingsError(f"KUBECONFIG must name a file; {path} is not a file")
    return path


@dataclass(frozen=True)
class Reader:
    """Reads typed values. An empty variable counts as absent."""

    env: Mapping[str, str]
    prefix: str

    def text(self, name: str) -> str | None:
        """Return the value without surrounding spaces; None for an absent variable."""
        return self.env.get(self.prefix + name, "").strip() or None

    def words(self, name: str) -> tuple[str, ...]:
        """Words, separated by commas."""
        text = self.text(name) or ""
        return tuple(word.strip() for word in text.split(",") if word.strip())

    def path(self, name: str) -> Path | None:
        """A path, which need not exist."""
        text = self.text(name)
        return Path(text) if text else None

    def number(self, name: str, default: float) -> float:
        """Any number."""
        text = self.text(name)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            raise self.wrong(name, "must be a number") from None

    def seconds(self, name: str, default: float) -> float:
        """A time above 0."""
        value = self.number(name, default)
        if not 0 < value < float("inf"):
            raise self.wrong(name, "must be a number of seconds above 0")
        return value

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Times, separated by commas."""
        words = self.words(name)
        try:
            values = tuple(float(word) for word in words) or default
        except ValueError:
            values = (-1.0,)
        if not all(0 <= value < float("inf") for value in values):
            raise self.wrong(name, "must be numbers of seconds, separated by commas")
        return values

    def whole(self, name: str, default: int, least: int = 0, most: int | None = None) -> int:
        """A whole number within limits."""
        text = self.text(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdecimal():
            raise self.wrong(name, "must be a whole number")
        value = int(text)
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" if value < least else f"at most {most}"
            raise self.wrong(name, f"must be {limit}")
        return value

    def networks(self, name: str) -> tuple[str, ...]:
        """Addresses and networks, separated by commas."""
        words = self.words(name)
        for word in words:
            try:
                ipaddress.ip_network(word)
            except ValueError:
                raise self.wrong(
                    name, "must be addresses and networks, separated by commas"
                ) from None
        return words

    def truth(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.choice(name, ("true", "false"), str(default).lower()) == "true"

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        text = self.text(name) or default
        if text not in choices:
            raise self.wrong(name, "must be one of " + ", ".join(choices))
        return text

    def link(self, name: str, default: str | None = None, instead: str = "") -> str | None:
        """An http(s) link without a login; instead: where a login belongs."""
        text = self.text(name) or default
        if not text:
            return None
        try:
            parts = urlsplit(text)
            is_plain = not ("@" in parts.netloc or parts.query or parts.fragment)
            is_link = text.startswith(("http://", "https://")) and effective_port(parts) > 0
        except ValueError:
            raise self.refused(name, "must be an http(s) link whose host can be read") from None
        if not is_plain:
            rule = "must not have a user name, a password, a query or a fragment"
            raise self.refused(name, f"{rule}{instead and ': '}{instead}")
        if not is_link:
            raise self.refused(name, "must be an http(s) link")
        return text

    def template(self, name: str) -> str | None:
        """A link that has the placeholder {id} for a trained model's id, and no key."""
        text = self.text(name)
        if text is None:
            return None
        try:
            check_template(text)
        except ValueError as error:
            raise self.refused(name, str(error)) from None
        if contains_key(text):
            why = (
                f"{KEY_FREE_RULE}. Every reader of a Job would see a key: write {KEY} in its place,"
                " and put the key into the key `trained` of the Secret that"
                f" {self.prefix}LOGINS_SECRET names in each namespace with models"
            )
            raise self.refused(name, why)
        return text

    def logins(self, name: str) -> Logins:
        """A folder with logins."""
        try:
            return Logins.read(self.path(name))
        except ValueError as error:
            raise self.refused(name, f"must name a folder with logins: {error}") from None

    def default_parts(self, name: str) -> Mapping[str, str]:
        """Base models with the repos of their components."""
        try:
            return parse_default_parts(self.text(name) or "")
        except ValueError as error:
            raise self.wrong(name, str(error)) from None

    def default_credentials(self, name: str) -> Mapping[str, DefaultSecret]:
        """Hosts with the Secrets of their tokens."""
        try:
            return parse_default_credentials(self.text(name) or "")
        except ValueError as error:
            raise self.wrong(name, str(error)) from None

    def object(self, name: str) -> Mapping[str, Any] | None:
        """Security contexts of Pod and container, as JSON."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not set(value) <= {"pod", "container"}:
            raise self.wrong(name, 'must be JSON of the shape {"pod": {…}, "container": {…}}')
        return value

    def placement(self, name: str) -> JobOverrides:
        """Fields of a Pod that decide where and how it runs, as JSON."""
        text = self.text(name) or "{}"
        try:
            value = JobOverrides.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "it"
            why = f"must be JSON of a Pod's fields: {where}: {first['msg']}"
            raise self.wrong(name, why) from None
        if not set(json.loads(text)) <= _PLACEMENT:
            raise self.wrong(name, "may have the fields " + ", ".join(sorted(_PLACEMENT)))
        return value

    def wrong(self, name: str, why: str) -> SettingsError:
        """Return the error for an invalid value."""
        value = self.text(name)
        return self.refused(name, why if value is None else f"{why}; it is {value!r}")

    def refused(self, name: str, why: str) -> SettingsError:
        """Return an error that does not show the value, which may be secret."""
        return SettingsError(f"{self.prefix}{name} {why}")
