"""The file of keys: who is let in, and what is said of bad lines."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from sd_operator.gateway import keys
from sd_operator.gateway.__main__ import main
from sd_operator.gateway.keys import Keys, parse

DIGEST = hashlib.sha256(b"secret").hexdigest()


def write(path: Path, *lines: str) -> Path:
    """A file of lines."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_key_is_found_with_its_namespace(tmp_path: Path) -> None:
    """Two keys of one namespace are good at once."""
    made = [keys.new("art", name) for name in ("old", "new")]
    found = Keys(write(tmp_path / "keys", "# rotated in May", "", *(line for _, line in made)))
    assert [(one.id, one.namespace) for key, _ in made if (one := found.find(key))] == [
        ("old", "art"),
        ("new", "art"),
    ]


@pytest.mark.parametrize("key", ["", "Secret", "secret ", DIGEST, f"one:{DIGEST}:art", "é" * 9999])
def test_nothing_else_is_a_key(tmp_path: Path, key: str) -> None:
    """Neither its digest nor its line is; an empty key is none even where a line has its digest."""
    empty = f"two:{hashlib.sha256(b'').hexdigest()}:art"
    assert Keys(write(tmp_path / "keys", f"one:{DIGEST}:art", empty)).find(key) is None


def test_every_line_is_compared_whichever_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In constant time each: neither the line's place nor a wrong key can be told by the time."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    made = [keys.new("art") for _ in range(5)]
    found = Keys(write(tmp_path / "keys", *(line for _, line in made)))
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for key in (made[0][0], made[4][0], "wrong"):
        compared.clear()
        found.find(key)
        assert len(compared) == 5


def test_a_mounted_secret_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """The kubelet writes a new folder, and replaces the link to it."""
    (old, first), (new, second) = keys.new("art"), keys.new("ads")
    for folder, line in (("1", first), ("2", second)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "keys", line)
    data, path = tmp_path / "..data", tmp_path / "keys"
    data.symlink_to("1")
    path.symlink_to("..data/keys")
    found = Keys(path)
    assert found.find(old)
    assert not found.find(new)
    (tmp_path / "swap").symlink_to("2")
    (tmp_path / "swap").rename(data)
    assert not found.find(old)
    assert found.find(new)


def test_without_the_file_nobody_is_let_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; when the file is back, so are its keys."""
    key, line = keys.new("art")
    path = write(tmp_path / "keys", line)
    found = Keys(path)
    assert found.find(key)
    path.rename(tmp_path / "away")
    assert not found.find(key)
    assert not found.readable
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"no key is accepted: {path}: [Errno 2] No such file or directory: '{path}'"
    ]
    (tmp_path / "away").rename(path)
    assert found.find(key)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("supersecret", "is not `id:sha256:namespace`", id="a bare key"),
        pytest.param(f"one:{DIGEST}:art:more", "is not `id:sha256:namespace`", id="four parts"),
        pytest.param(f"o ne:{DIGEST}:art", "the id must match", id="id"),
        pytest.param(f"one:{DIGEST[:-1]}:art", "not 64 lower-case hex", id="short digest"),
        pytest.param(f"one:{DIGEST.upper()}:art", "not 64 lower-case hex", id="upper case"),
        pytest.param(f"one:{DIGEST}:Art", "the namespace is not one", id="namespace"),
        pytest.param(f"good:{DIGEST}:art", "line 1 has this id", id="taken"),
    ],
)
def test_a_bad_line_is_named_by_its_number(
    caplog: pytest.LogCaptureFixture, line: str, why: str
) -> None:
    """Without what stands in it, which may be a key; the other lines hold."""
    found = list(parse(f"good:{'0' * 64}:art\n{line}\n"))
    assert [one.id for one in found] == ["good"]
    (record,) = caplog.records
    assert record.message.startswith("line 2 of the keys")
    assert why in record.message
    assert line not in record.message
    assert DIGEST[:-1] not in record.message.lower()


def test_new_key_prints_a_key_and_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line lets the key in, and does not hold it."""
    assert main(["new-key", "art", "--id", "ci"]) == 0
    key, line = (text.partition(": ")[2].strip() for text in capsys.readouterr().out.splitlines())
    assert key not in line
    found = Keys(write(tmp_path / "keys", line)).find(key)
    assert found is not None
    assert (found.id, found.namespace) == ("ci", "art")
    assert key not in repr(found)
    assert found.digest.hex() not in repr(found)


@pytest.mark.parametrize("arguments", [["Art"], ["art", "--id", "a:b"], ["art/ads"]])
def test_new_key_refuses_what_no_line_could_hold(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2."""
    assert main(["new-key", *arguments]) == 2
    assert "is no" in capsys.readouterr().err
