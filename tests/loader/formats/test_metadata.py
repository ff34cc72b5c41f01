"""Metadata of any length is read in little memory: the useful and the short entries are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import header, open_tensor_file
from sd_loader.formats.metadata import LIMIT, MOST_ENTRIES, Selection
from sd_loader.formats.outline import bring_outline

LONG = b"x" * (2 * LIMIT)
TENSOR = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}


def write(path: Path, text: bytes) -> Path:
    """Write a file of one byte with this header."""
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    return path


def read(path: Path, metadata: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the kept metadata of a file with this metadata, and the names of the rest."""
    text = json.dumps({"__metadata__": metadata, **TENSOR}).encode()
    with open_tensor_file(write(path / "model.safetensors", text)) as file:
        assert file.tensors.keys() == {"a"}
        return dict(file.metadata), file.left_out


@pytest.mark.parametrize("length", [8_000_000, pytest.param(99_000_000, marks=pytest.mark.slow)])
def test_a_long_entry_is_left_out_and_named(tmp_path, length):
    """The other entries are kept, and the result names the entry that is left out."""
    kept, left_out = read(
        tmp_path, {"first": "1", "ss_tag_frequency": "x" * length, "ss_network_dim": "4"}
    )
    assert kept == {"first": "1", "ss_network_dim": "4"}
    assert left_out == ("ss_tag_frequency",)


def test_the_longest_entries_are_left_out_first(tmp_path):
    """As many as fit are kept, in the order of the file."""
    lengths = {"long": 2 << 20, "short": 1 << 19, "longest": 5 << 20, "medium": 1 << 20}
    texts = {name: "x" * length for name, length in lengths.items()}
    kept, left_out = read(tmp_path, texts)
    assert list(kept) == ["short", "medium"]
    assert left_out == ("longest", "long")


def test_useful_entries_are_kept_before_shorter_ones(tmp_path):
    """Metadata of a LoRA and a title are kept, and of 40,000 others those that still fit.

    Without lora_adapter_metadata, a LoRA would have a different scale.
    """
    useful = {"lora_adapter_metadata": "x" * 1000, "modelspec.title": "Fish"}
    rest = {f"tag {number}": "x" * 100 for number in range(40_000)}
    kept, left_out = read(tmp_path, {**rest, **useful})
    assert kept.items() >= useful.items()
    assert len(kept) > 10_000
    assert len(left_out) == 5


def test_a_useful_entry_that_is_left_out_is_named_first(tmp_path):
    """lora_adapter_metadata comes before the names of six other entries that are left out."""
    texts = {f"tags {number}": "x" * (4 << 20) for number in range(6)}
    _, left_out = read(tmp_path, {"lora_adapter_metadata": "x" * (LIMIT + 1), **texts})
    assert left_out[0] == "lora_adapter_metadata"


def test_metadata_may_stand_anywhere_in_the_header(tmp_path):
    """Metadata before and after the tensors gives the same entries."""
    entry = {"__metadata__": {"long": "x" * (4 << 20), "short": "1"}}
    for content in ({**entry, **TENSOR}, {**TENSOR, **entry}):
        text = json.dumps(content, indent=1).encode() + b"   "
        with open_tensor_file(write(tmp_path / "model.safetensors", text)) as file:
            assert (dict(file.metadata), file.left_out) == ({"short": "1"}, ("long",))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b'{"a":"%b\\x","b":"c"}' % LONG, "Invalid .*escape"),
        (b'{"a":"%b\\u12","b":"c"}' % LONG, "Invalid .*escape"),
        (b'{"a":"%b\n","b":"c"}' % LONG, "Invalid control character"),
        (b'{"a":"%b\xff","b":"c"}' % LONG, "damaged"),
        (b'{"a":"%b" "b":"c"}' % LONG, "not a JSON object"),
        (b'{"a":"%b",}' % LONG, "not a JSON object"),
        (b'{"a":"%b","a":"c"}' % LONG, "a name occurs twice"),
        (b'{"a":"%b","\\u0061":"c"}' % LONG, "a name occurs twice"),
        (b'{"a":"%b","b":1}' % LONG, "strings only"),
        (b'{"a":"b","a":"c"}', "a name occurs twice"),
        (b'{"a":"\x01"}', "damaged"),
        (b'{"a"}', "not a JSON object"),
        (b'{"a":["b"]}', "strings only"),
        (
            b"{%b}" % b",".join(b'"%d":""' % number for number in range(MOST_ENTRIES + 1)),
            f"of more than {MOST_ENTRIES} entries",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_metadata_is_refused(tmp_path, metadata, message):
    """Damage is also found inside an entry that is left out, and behind it."""
    text = b'{"__metadata__":' + metadata + b"," + json.dumps(TENSOR).encode()[1:]
    with pytest.raises(LoaderError, match=message) as caught:
        open_tensor_file(write(tmp_path / "model.safetensors", text))
    assert caught.value.reason is Reason.DAMAGED_FILE


def test_metadata_may_be_null(tmp_path):
    """Null is read as no metadata."""
    text = b'{"__metadata__":null,' + json.dumps(TENSOR).encode()[1:]
    with open_tensor_file(write(tmp_path / "model.safetensors", text)) as file:
        assert dict(file.metadata) == {}


def test_metadata_without_an_end_is_refused(tmp_path):
    """The header ends inside the text of an entry."""
    with pytest.raises(LoaderError, match="metadata that is cut off"):
        open_tensor_file(write(tmp_path / "cut.safetensors", b'{"__metadata__":{"a":"' + LONG))


TEXTS = st.text(st.sampled_from('ab"\\/\n\x00ä€😀{}:, ') | st.characters(), max_size=20)


@given(st.dictionaries(TEXTS, TEXTS, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_metadata_is_read_as_the_library_reads_it(tmp_path_factory, metadata, ascii_only, indent):
    """Both read the same texts, or both refuse the file."""
    path = tmp_path_factory.mktemp("metadata") / "model.safetensors"
    content: dict[str, Any] = {"__metadata__": metadata, **TENSOR}
    try:
        text = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return
    write(path, text)
    try:
        with safe_open(path, "pt") as theirs:
            expected = theirs.metadata() or {}
    except SafetensorError:
        expected = None
    try:
        with open_tensor_file(path) as file:
            assert dict(file.metadata) == expected
    except LoaderError:
        assert expected is None


@pytest.mark.parametrize("piece", [8, 9, 10, 11, 12, 13, 14, 15, 16])
def test_text_may_continue_in_the_next_piece(tmp_path, monkeypatch, piece):
    """Texts are read whole where a piece ends within an escape sequence or a character."""
    monkeypatch.setattr(header, "_PIECE", piece)
    metadata = {
        "plain": "abc",
        "escapes": '\\"\u1234\\\\"' * 9,
        "characters": "a\u00e4\u20ac\U0001f600" * 9,
        "end": "\\",
    }
    for ascii_only in (True, False):
        text = json.dumps({"__metadata__": metadata, **TENSOR}, ensure_ascii=ascii_only)
        with open_tensor_file(write(tmp_path / "model.safetensors", text.encode())) as file:
            assert file.metadata == metadata


MEASURE = """
import resource, sys
from pathlib import Path
from sd_loader.formats import open_tensor_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_tensor_file(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_metadata(tmp_path):
    """A header of 95 MB takes less than 60 MB of memory."""
    metadata = {str(number): "\u1234" * (5 << 20) for number in range(3)}
    text = json.dumps({"__metadata__": metadata, **TENSOR}).encode()
    assert len(text) > 90 << 20
    path = write(tmp_path / "model.safetensors", text)
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    assert int(ended.stdout) < 60 << 10


def test_a_long_header_is_downloaded_in_pieces(tmp_path):
    """The outline of a file behind a link gives the same metadata as the file, in little memory."""
    text = json.dumps({"__metadata__": {"a": "x" * (20 << 20), "b": "c"}, **TENSOR}).encode()
    content = write(tmp_path / "model.safetensors", text).read_bytes()
    lengths = []

    def download(start: int, end: int) -> bytes:
        lengths.append(end - start)
        return content[start:end]

    path = tmp_path / "outline"
    with path.open("w+b") as outline:
        bring_outline(outline.fileno(), content[: 1 << 20], len(content), download)
    with open_tensor_file(path) as file:
        assert (dict(file.metadata), file.left_out) == ({"b": "c"}, ("a",))
        assert file.tensors.keys() == {"a"}
    assert max(lengths) <= 4 << 20


def test_the_selection_is_bounded():
    """Of 100,000 short entries, fewer than 40,000 are kept."""
    selection = Selection()
    for number in range(100_000):
        selection.add(str(number), "", len(str(number)))
    assert 10_000 < len(selection.result().entries) < 40_000
