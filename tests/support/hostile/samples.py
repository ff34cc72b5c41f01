"""What a hostile file is to the tests: its bytes, why it is refused, and what proves it hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sd_api.reasons import Reason
from tests.support.formats.torchfiles import archive

UNSAFE = Reason.UNSAFE_MODEL
DAMAGED = Reason.NOT_A_MODEL
UNKNOWN = Reason.UNSUPPORTED_FORMAT


@dataclass(frozen=True)
class Sample:
    """A file that must be refused. A malicious one has a control, a malformed one has none.

    content: its bytes, or what makes them. reason, says: of the refusal. control: the reader of
    `naive` that runs the file's code, which creates the file `canary` in the current folder.
    model_type: what it is loaded as, where that is no checkpoint; `inspect` does not see such.
    """

    content: bytes | Callable[[], bytes]
    says: str
    reason: Reason = DAMAGED
    control: str | None = None
    model_type: str | None = None

    def bytes(self) -> bytes:
        """The file."""
        return self.content if isinstance(self.content, bytes) else self.content()


Samples = dict[str, Sample]


def in_archives(pickles: dict[str, bytes], says: str = "the pickle is refused") -> Samples:
    """Malicious pickles, each the content of a torch archive."""
    return {
        name: Sample(archive(content), says, UNSAFE, "archive") for name, content in pickles.items()
    }
