"""Decides which metadata of a file is kept. A LoRA publishes only entries that are kept.

Training programs store their options there, and also the tags of every image, which may take many
megabytes. Useful entries are kept first, then the shortest.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

ADAPTER = "lora_adapter_metadata"
"""The entry in which diffusers stores the arguments of PEFT's LoraConfig, such as the scale."""

LIMIT = 3 << 20
"""Maximum bytes of all kept entries. kohya's tag counts may take one or two million bytes."""

MOST_ENTRIES = 100_000
"""Maximum number of entries. Reading an entry takes some 10 microseconds. Training programs write
about a hundred entries."""

_USEFUL = (ADAPTER, "modelspec.", "ss_base_model_version")
"""Beginnings of names that the loader and diffusers read."""

_ENTRY = 100
"""Bytes that an entry takes in memory besides its text."""
_NAMED = 5
"""Maximum number of names in `Metadata.left_out`."""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file, without entries that are too long."""

    entries: dict[str, str]

    left_out: tuple[str, ...] = ()
    """Names of entries that are left out. If there are many: the useful, then the longest ones."""


class Selection:
    """Selects the entries to keep while a file's metadata is read. Its memory is bounded."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}
        self._nbytes = 0
        # The entry to leave out next is the first of this heap.
        self._order: list[tuple[bool, int, str]] = []
        self._left_out: list[tuple[bool, int, str]] = []

    def add(self, name: str, text: str, nbytes: int) -> None:
        """Keep the entry. Then leave out entries while LIMIT is exceeded. nbytes: its length."""
        self._kept[name] = text
        self._nbytes += nbytes + _ENTRY
        heapq.heappush(self._order, (_is_useful(name), -nbytes, name))
        while self._nbytes > LIMIT:
            useful, negative, dropped = heapq.heappop(self._order)
            del self._kept[dropped]
            self._nbytes += negative - _ENTRY
            self._note(useful, -negative, dropped)

    def leave_out(self, name: str) -> None:
        """Note an entry that is too long to be read."""
        self._note(_is_useful(name), LIMIT, name)

    def result(self) -> Metadata:
        """Return the kept entries in the order of the file, and the names of others."""
        named = sorted(self._left_out, reverse=True)
        return Metadata(self._kept, tuple(name for _, _, name in named))

    def _note(self, useful: bool, nbytes: int, name: str) -> None:
        heapq.heappush(self._left_out, (useful, nbytes, name))
        if len(self._left_out) > _NAMED:
            heapq.heappop(self._left_out)


def _is_useful(name: str) -> bool:
    return name.startswith(_USEFUL)
