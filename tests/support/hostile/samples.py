"""Describes a hostile file: its bytes, the expected error and the reader that it attacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sd_api.reasons import Reason
from tests.support.formats.torchfiles import archive

UNSAFE = Reason.UNSAFE_MODEL
DAMAGED = Reason.DAMAGED_FILE
UNKNOWN = Reason.UNSUPPORTED_FORMAT
_NOT_A_MODEL = re.compile(r"the file is (?!damaged)|holds no |without tensors")


@dataclass(frozen=True)
class Sample:
    """A file that the loader must reject; only malicious files have a control."""

    content: bytes | Callable[[], bytes]
    """The bytes of the file, or a function that makes them."""
    says: str
    """A pattern that the error's message must match."""
    reason: Reason = DAMAGED
    """The reason of the error; for a damaged file see also `expected`."""
    control: str | None = None
    """The reader in `naive` that runs the file's code, which creates `canary` in its folder."""
    model_type: str | None = None
    """The modelType to load it as; None for a checkpoint. Tests inspect only checkpoints."""

    def expected(self, message: str) -> Reason:
        """Return the reason that an error with this message must have.

        A damaged file may not be recognised as a model at all; then the reason is NOT_A_MODEL.
        """
        is_no_model = self.reason is DAMAGED and _NOT_A_MODEL.search(message)
        return Reason.NOT_A_MODEL if is_no_model else self.reason

    def bytes(self) -> bytes:
        """Return the content of the file."""
        return self.content if isinstance(self.content, bytes) else self.content()


Samples = dict[str, Sample]


def in_archives(pickles: dict[str, bytes], says: str = "the pickle is refused") -> Samples:
    """Return samples of torch archives with these malicious pickles."""
    return {
        name: Sample(archive(content), says, UNSAFE, "archive") for name, content in pickles.items()
    }
