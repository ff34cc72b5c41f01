"""The type of a function that may read parts of a remote file before the download."""

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
    """Do nothing, so that the file is downloaded without reading parts of it first."""
