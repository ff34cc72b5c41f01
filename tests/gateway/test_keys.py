"""Tests of the key file: which keys are valid, and how invalid lines are reported."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import pytest

from sd_operator.gateway import keys
from sd_operator.gateway.__main__ import main
from sd_operator.gateway.keys import Keys, parse

DIGEST = hashlib.sha256(b"secret").hexdigest()


def write(path: Path, *lines: str) -> Path:
    """Write a file with these lines and return its path."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_key_is_found_with_its_namespace(tmp_path: Path) -> None:
    """A key is found with its id and namespace; a namespace can have several valid keys."""
    pairs = [keys.new("art", name) for name in ("old", "new")]
    store = Keys(write(tmp_path / "keys", "# rotated in May", "", *(line for _, line in pairs)))
    assert [(entry.id, entry.namespace) for key, _ in pairs if (entry := store.find(key))] == [
        ("old", "art"),
        ("new", "art"),
    ]


@pytest.mark.parametrize("key", ["", "Secret", "secret ", DIGEST, f"one:{DIGEST}:art", "é" * 9999])
def test_other_text_is_not_a_valid_key(tmp_path: Path, key: str) -> None:
    """A digest or line is not a key. An empty text is not a key even if its digest is listed."""
    empty = f"two:{hashlib.sha256(b'').hexdigest()}:art"
    assert Keys(write(tmp_path / "keys", f"one:{DIGEST}:art", empty)).find(key) is None


def test_key_is_compared_with_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison takes constant time, so the duration reveals neither a key nor its line."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    pairs = [keys.new("art") for _ in range(5)]
    store = Keys(write(tmp_path / "keys", *(line for _, line in pairs)))
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for key in (pairs[0][0], pairs[4][0], "wrong"):
        compared.clear()
        store.find(key)
        assert len(compared) == 5


def test_mounted_secret_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """The kubelet updates a mounted Secret by writing a new folder and replacing the link to it."""
    (old, first), (new, second) = keys.new("art"), keys.new("ads")
    for folder, line in (("1", first), ("2", second)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "keys", line)
    data, path = tmp_path / "..data", tmp_path / "keys"
    data.symlink_to("1")
    path.symlink_to("..data/keys")
    store = Keys(path)
    assert store.find(old)
    assert not store.find(new)
    (tmp_path / "swap").symlink_to("2")
    (tmp_path / "swap").rename(data)
    assert not store.find(old)
    assert store.find(new)


def test_no_key_is_valid_while_the_file_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged once, and the keys are valid again when the file is back."""
    key, line = keys.new("art")
    path = write(tmp_path / "keys", line)
    store = Keys(path)
    assert store.find(key)
    path.rename(tmp_path / "away")
    assert not store.find(key)
    assert not store.readable
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"no key is accepted: cannot read {path}: [Errno 2] No such file or directory: '{path}'"
    ]
    (tmp_path / "away").rename(path)
    assert store.find(key)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("supersecret", "is not `id:sha256:namespace`", id="bare key"),
        pytest.param(f"one:{DIGEST}:art:more", "is not `id:sha256:namespace`", id="four parts"),
        pytest.param(f"o ne:{DIGEST}:art", "the id must match", id="invalid id"),
        pytest.param(f"one:{DIGEST[:-1]}:art", "not 64 lower-case hex", id="short digest"),
        pytest.param(f"one:{DIGEST.upper()}:art", "not 64 lower-case hex", id="upper case"),
        pytest.param(
            f"one:{DIGEST}:Art", "the namespace is not a valid name", id="invalid namespace"
        ),
        pytest.param(f"good:{DIGEST}:art", "line 1 has the same id", id="id of another line"),
    ],
)
def test_invalid_line_is_logged_by_its_number(
    caplog: pytest.LogCaptureFixture, line: str, message: str
) -> None:
    """The log does not quote the line, which may be a key; the other lines stay valid."""
    entries = list(parse(f"good:{'0' * 64}:art\n{line}\n"))
    assert [entry.id for entry in entries] == ["good"]
    (record,) = caplog.records
    assert record.message.startswith("line 2 of the key file")
    assert message in record.message
    assert line not in record.message
    assert DIGEST[:-1] not in record.message.lower()


def test_new_key_prints_a_key_and_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed line makes the key valid and does not contain it."""
    assert main(["new-key", "art", "--id", "ci"]) == 0
    key, line = (text.partition(": ")[2].strip() for text in capsys.readouterr().out.splitlines())
    assert key not in line
    entry = Keys(write(tmp_path / "keys", line)).find(key)
    assert entry is not None
    assert (entry.id, entry.namespace) == ("ci", "art")
    assert key not in repr(entry)
    assert entry.digest.hex() not in repr(entry)


@pytest.mark.parametrize("arguments", [["Art"], ["art", "--id", "a:b"], ["art/ads"]])
def test_new_key_rejects_an_invalid_namespace_or_id(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits with code 2 and names the rule."""
    assert main(["new-key", *arguments]) == 2
    assert re.search("is not a (namespace name|key id): use", capsys.readouterr().err)
