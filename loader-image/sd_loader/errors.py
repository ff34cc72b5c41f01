"""The loader's errors.

    LoaderError               the load failed; it has one of the contract's reasons
      TransientError          the same, but another try within seconds may succeed
    SourceChangedError        the source changed while it was read; the reader starts again

`failures` turns any other exception into a LoaderError; `storage_errors` does so for system errors
of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sd_api.reasons import Reason


class LoaderError(Exception):
    """A failed load. The command line turns it into an exit code and a result.

    The message names the problem and its place, but not the remedy. It contains no secrets, and
    only short, printable snippets of untrusted text.
    """

    def __init__(
        self, reason: Reason, message: str, *, field: str | None = None, remedy: str | None = None
    ) -> None:
        self.reason = reason
        self.message = message if field is None else f"{field}: {message}"
        self.field = field
        """The field of the spec that the message begins with; None if it does not name one."""
        self.remedy = remedy
        """What a person at a shell can do. None if the remedy of the reason applies."""
        super().__init__(self.message)


class TransientError(LoaderError):
    """A failure that may go away within seconds."""

    def __init__(self, reason: Reason, message: str, after: float = 0) -> None:
        super().__init__(reason, message)
        self.after = after
        """Seconds that the server asks to wait before the next try."""


class SourceChangedError(Exception):
    """The server replaced the file behind a link while it was read."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put a field of the spec at the beginning of error messages that do not name one yet."""
    try:
        yield
    except LoaderError as error:
        if error.field is not None:
            raise
        raise LoaderError(error.reason, error.message, field=field, remedy=error.remedy) from error


@contextmanager
def prefixing(words: str) -> Iterator[None]:
    """Put words at the beginning of error messages, such as the component that they are about."""
    try:
        yield
    except LoaderError as error:
        raise LoaderError(error.reason, f"{words}: {error.message}", remedy=error.remedy) from error
