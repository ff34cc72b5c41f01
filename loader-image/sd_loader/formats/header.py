"""Splits the header of a safetensors file into the JSON of its tensors and the kept metadata.

The metadata may take most of the 100 MB that the format allows. It is read in pieces, and entries
that are too long to be kept never lie in memory as a whole.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.formats.metadata import LIMIT, MOST_ENTRIES, Metadata, Selection
from sd_loader.snippet import snippet

_PIECE = LIMIT + (1 << 20)
"""Bytes that are read at a time. No kept entry is longer, so few entries are searched twice."""
_JSON = json.JSONDecoder()
_S = rb"[ \t\n\r]*"
_OPENING = re.compile(rb'"__metadata__"' + _S + rb":" + _S + rb"\{")
_EMPTY = re.compile(_S + rb"\}")
_NAME = _S + rb'"([^"]*)"' + _S + rb":" + _S
_ENTRY = re.compile(_NAME + rb'"([^"]*)"' + _S + rb"([,}])")
_LONG_ENTRY = re.compile(_NAME + rb'"')
_OTHER_VALUE = re.compile(_NAME + rb'([^" \t\n\r,}][^,}]{0,40})')
_END_OF_ENTRY = re.compile(_S + rb"([,}])")
_ESCAPE = 6
"""Bytes of the longest escape sequence, such as \\u1234."""


def split_header(fd: int, start: int, length: int, limit: int) -> tuple[str, Metadata]:
    """Return the header with empty metadata, and the metadata that is kept.

    Raise ValueError for damaged metadata. The rest of the header is not checked, except that it
    has at most `limit` bytes.
    """
    text = _Text(fd, start, length)
    while (opening := _OPENING.search(text.plain)) is None:
        if len(text.plain) > limit:
            _refuse_too_long(length, limit)
        if not text.more():
            return text.raw.decode(), Metadata({})
    before = text.raw[: opening.end()]
    text.position = opening.end()
    metadata = _read_metadata(text)
    if len(before) + text.left > limit:
        _refuse_too_long(len(before) + text.left, limit)
    while text.more():
        pass
    return (before + b"}" + text.raw[text.position :]).decode(), metadata


class _Text:
    """A window of the header that moves forward. The bytes before `position` are forgotten."""

    def __init__(self, fd: int, start: int, length: int) -> None:
        self.position = 0
        self.raw = b""
        self.plain = b""
        """`raw` with dots instead of escaped quotes and backslashes, so that each quote in it
        delimits a string."""
        self._fd = fd
        self._offset = start
        self._end = start + length
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    @property
    def left(self) -> int:
        """How many bytes of the header follow the position."""
        return len(self.raw) - self.position + len(self._held) + self._end - self._offset

    def more(self) -> bool:
        """Read the next piece. Return whether there is one."""
        if self._offset == self._end:
            return False
        count = min(_PIECE, self._end - self._offset)
        piece = self._held + read_at(self._fd, self._offset, count)
        self._offset += count
        is_last = self._offset == self._end
        plain = piece.replace(rb"\\", b"..").replace(rb"\"", b"..")
        # The next piece may continue an escape sequence.
        cut = -1 if is_last else plain.rfind(b"\\", -_ESCAPE)
        end = len(piece) if cut < 0 else cut
        self._held = piece[end:]
        self._decoder.decode(piece[:end], is_last)
        self.raw = self.raw[self.position :] + piece[:end]
        self.plain = self.plain[self.position :] + plain[:end]
        self.position = 0
        return True

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Match a pattern at the position, and move behind it. The window grows up to LIMIT."""
        while (match := pattern.match(self.plain, self.position)) is None:
            if len(self.plain) - self.position > LIMIT or not self.more():
                return None
        self.position = match.end()
        return match

    def skip_string(self) -> None:
        """Move behind the end of the string that the position is in. Check it as JSON does."""
        quote = -1
        while quote < 0:
            quote = self.plain.find(b'"', self.position)
            end = len(self.plain) if quote < 0 else quote
            # Every byte is a character of latin-1, so that a cut character does no harm.
            _parse_string(self.plain[self.position : end].decode("latin-1"))
            self.position = end
            if quote < 0 and not self.more():
                raise ValueError("metadata that is cut off")
        self.position += 1


def _read_metadata(text: _Text) -> Metadata:
    """Read the entries, and move behind the bracket that closes them."""
    selection = Selection()
    seen: set[int] = set()  # The names themselves may take as much memory as the header.
    count = 0
    delimiter = b","
    while delimiter == b",":
        if entry := text.take(_ENTRY):
            name = _string(text.raw[entry.start(1) : entry.end(1)])
            value = _string(text.raw[entry.start(2) : entry.end(2)])
            selection.add(name, value, entry.end() - entry.start())
            delimiter = entry[3]
        elif entry := text.take(_LONG_ENTRY):
            name = _string(text.raw[entry.start(1) : entry.end(1)])
            text.skip_string()
            selection.leave_out(name)
            end = text.take(_END_OF_ENTRY)
            delimiter = end[1] if end else b""
        elif not seen and text.take(_EMPTY):
            break
        else:
            if entry := text.take(_OTHER_VALUE):
                name = _string(text.raw[entry.start(1) : entry.end(1)])
                value = text.raw[entry.start(2) : entry.end(2)].decode(errors="replace")
                _refuse(
                    f"the safetensors metadata has {snippet(value, 20)} as {snippet(name)}, and the"
                    " format allows strings only: save the file again with strings"
                )
            delimiter = b""
        if not delimiter:
            raise ValueError("metadata that is not a JSON object")
        seen.add(hash(name))
        count += 1
        if len(seen) < count:
            raise ValueError("a name occurs twice")
        if count > MOST_ENTRIES:
            _refuse(
                f"metadata of more than {MOST_ENTRIES} entries; the loader reads at most that many"
            )
    return selection.result()


def _string(raw: bytes) -> str:
    parsed = _parse_string(raw.decode())
    if b"\\u" in raw:
        try:
            parsed.encode()
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair.
            _refuse("the safetensors metadata is not valid Unicode")
    return parsed


def _parse_string(text: str) -> str:
    parsed: str
    parsed, _end = _JSON.raw_decode(f'"{text}"')
    return parsed


def _refuse_too_long(nbytes: int, limit: int) -> NoReturn:
    _refuse(
        f"a safetensors header of {nbytes} bytes besides its metadata; at most {limit} are read"
    )


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.DAMAGED_FILE, problem)
