"""Lets a caller see a remote file before all of it is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd_loader.net.ranges import RemoteFile

Peek = Callable[[int, "Callable[[], RemoteFile | None]"], None]
"""Takes a file's size, and a function that opens it for reading ranges.

The function returns None if the server cannot serve ranges of one version. An exception from
Peek ends the load.
"""


def no_peek(_size: int, _open: Callable[[], RemoteFile | None]) -> None:
    """Download the file without looking at it."""
