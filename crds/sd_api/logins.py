"""The administrator's logins: a Secret that is mounted as a folder, with one file for each login.

Settings are copied into Jobs, which every reader of a namespace sees. So a setting has an address
only, and the login for it comes from the Secret.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlsplit

_MAX_BYTES = 16 * 1024
_PRINTABLE = re.compile(r"[ -~]+")


@dataclass(frozen=True)
class Logins:
    """The logins in the mounted folder. A login is None if its file is missing or empty."""

    proxy: str | None = field(default=None, repr=False)
    """USER:PASSWORD for the proxy."""
    hub: str | None = field(default=None, repr=False)
    """USER:PASSWORD for the mirror of the Hub."""
    trained: str | None = field(default=None, repr=False)
    """The key for {key} in the link template of trained models."""

    @classmethod
    def read(cls, folder: Path | None) -> Self:
        """Read the logins in a folder; None: there are none.

        Raise a ValueError without secrets if a login cannot be read or sent.
        """
        return cls() if folder is None else cls(*(_read(folder / key) for key in KEYS))

    def secrets(self) -> Iterator[str]:
        """Yield the texts that messages must not show: passwords and key, plain and encoded."""
        for login in (self.proxy, self.hub):
            if login is not None:
                yield login.partition(":")[2]
                yield basic(login).partition(" ")[2]
        if self.trained is not None:
            yield self.trained
            yield quote(self.trained, safe="")


KEYS = tuple(entry.name for entry in fields(Logins))
"""The keys of the Secret, which are the names of the files."""


def basic(login: str) -> str:
    """Return the Authorization header for USER:PASSWORD."""
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def with_login(url: str, login: str | None) -> str:
    """Return the url with USER:PASSWORD in it; without a login, return it as it is."""
    if login is None:
        return url
    user, colon, password = login.partition(":")
    parts = urlsplit(url)
    userinfo = f"{quote(user, safe='')}{colon}{quote(password, safe='')}"
    return parts._replace(netloc=f"{userinfo}@{parts.netloc.rpartition('@')[2]}").geturl()


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"the login {path.name} cannot be read: {error.strerror}") from None
    if text and not _PRINTABLE.fullmatch(text):
        raise ValueError(f"the login {path.name} is not one line of printable ASCII")
    return text or None
