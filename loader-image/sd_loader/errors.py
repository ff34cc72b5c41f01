"""The loader's errors.

    LoaderError               the load cannot go on; its reason is one of the contract's
      TransientError          the same, but another try within seconds may succeed
    SourceChangedError        the source was replaced while it was read; the reader starts again

`failures` turns any other exception into a LoaderError, and `storage_errors` those of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sd_api.reasons import Reason


class LoaderError(Exception):
    """A load that cannot go on; the command line turns it into exit code and result.

    The message says what is wrong and where; the remedy belongs to the reason. It holds no secrets
    and only short, printable pieces of what came from outside.
    """

    def __init__(self, reason: Reason, message: str, *, field: str | None = None) -> None:
        self.reason = reason
        self.message = message if field is None else f"{field}: {message}"
        self.field = field
        """The field of the spec that the message begins with; None if it does not name one."""
        super().__init__(self.message)


class TransientError(LoaderError):
    """A failure that may pass within seconds."""

    def __init__(self, reason: Reason, message: str, after: float = 0) -> None:
        super().__init__(reason, message)
        self.after = after
        """Seconds that the server asks to wait before the next try."""


class SourceChangedError(Exception):
    """A link leads to another version of its file than a moment ago."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Begin the messages of errors with a field of the spec, unless they begin with one."""
    try:
        yield
    except LoaderError as error:
        if error.field is not None:
            raise
        raise LoaderError(error.reason, error.message, field=field) from error
