"""The loader's one error: a reason of the contract, and what was wrong where."""

from __future__ import annotations

from sd_api.reasons import Reason


class LoaderError(Exception):
    """A load that cannot go on; the command line turns it into exit code and answer.

    The message says what was wrong and where; the remedy belongs to the reason. It holds no
    secrets and no more than short, printable pieces of what came from outside.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
