"""The gallery's session cookie, the check of a form's origin, and what is read for previews."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_operator.gateway import keys
from sd_operator.gateway.gallery import previews, session
from sd_operator.resources.model import Model
from tests.support.rules.observed import CLAIM_UID, UID, body

NOW = 1_800_000_000.0
HASH = "0123456789abcdef"
PNG = b"\x89PNG\r\n\x1a\nrest"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of two keys."""
    path = tmp_path / "keys"
    path.write_text("".join(keys.new("art", name)[1] + "\n" for name in ("ann", "bob.b")))
    return path


def key_of(file: Path, name: str = "ann") -> keys.Key:
    """A key of the file."""
    found = keys.Keys(file).by_id(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["ann", "bob.b"])
def test_a_session_is_its_keys_with_every_replica(file, name):
    """Another process that reads the same file knows it, without having seen the login."""
    value = session.issue(key_of(file, name), NOW)
    assert session.read(value, keys.Keys(file), NOW + 60) == key_of(file, name)


def test_a_session_holds_no_key(file):
    """Neither the key nor its digest can be read from the cookie."""
    key = key_of(file)
    assert key.digest.hex() not in session.issue(key, NOW)


def test_a_session_ends(file):
    """After twelve hours."""
    value = session.issue(key_of(file), NOW)
    end = NOW + session.LIFETIME_SECONDS
    assert session.read(value, keys.Keys(file), end - 1)
    assert session.read(value, keys.Keys(file), end) is None


def test_a_session_ends_with_its_key(file):
    """When its line goes, and when another key takes the id."""
    value = session.issue(key_of(file), NOW)
    known = keys.Keys(file)
    assert session.read(value, known, NOW)
    file.write_text(keys.new("art", "ann")[1])
    assert session.read(value, known, NOW) is None
    file.write_text("# nobody\n")
    assert session.read(value, known, NOW) is None


@given(data=st.data(), position=st.integers(min_value=0), letter=st.characters())
def test_a_changed_session_is_none(data, position, letter, tmp_path_factory):
    """Whatever is changed in it: id, time or signature."""
    file = tmp_path_factory.getbasetemp() / "fixed-keys"
    if not file.exists():
        file.write_text(keys.new("art", "ann")[1])
    value = session.issue(key_of(file), NOW)
    at = position % len(value)
    changed = value[:at] + letter + value[at + 1 :]
    if changed != value:
        assert session.read(changed, keys.Keys(file), NOW) is None
    assert session.read(data.draw(st.text()), keys.Keys(file), NOW) is None


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        pytest.param({"sec-fetch-site": "same-origin"}, True, id="browser-says-same"),
        pytest.param({"sec-fetch-site": "none"}, True, id="typed-by-the-user"),
        pytest.param({"sec-fetch-site": "cross-site"}, False, id="browser-says-cross"),
        pytest.param({"sec-fetch-site": "same-site"}, False, id="another-subdomain"),
        pytest.param(
            {"sec-fetch-site": "cross-site", "origin": "http://gallery:8000"},
            False,
            id="what-the-browser-says-first",
        ),
        pytest.param({"origin": "http://gallery:8000"}, True, id="origin-is-host"),
        pytest.param({"origin": "https://models.example.com"}, True, id="origin-is-public-url"),
        pytest.param({"origin": "http://models.example.com"}, False, id="public-url-over-http"),
        pytest.param({"origin": "https://evil.example.com"}, False, id="foreign"),
        pytest.param({"origin": "http://gallery:8000.evil.example"}, False, id="looks-like-host"),
        pytest.param({"origin": "http://gallery"}, False, id="another-port"),
        pytest.param({"origin": "null"}, False, id="null"),
        pytest.param({"origin": ""}, False, id="empty"),
        pytest.param({}, False, id="neither"),
    ],
)
def test_a_form_must_come_from_our_own_pages(headers, same):
    """By what the browser says of it, which no page can forge."""
    given_headers = {"host": "gallery:8000", **headers}
    assert session.is_same_origin(given_headers, "https://models.example.com") is same


# Previews


def store_of(tmp_path: Path) -> tuple[Path, Path]:
    """A volume, and the folder of the model's version on it."""
    folder = tmp_path / "store" / ".store" / UID / HASH
    folder.mkdir(parents=True)
    return tmp_path / "store", folder


PATH = f".store/{UID}/{HASH}/preview.png"


def test_a_preview_is_read(tmp_path):
    """Where it is a PNG file."""
    store, folder = store_of(tmp_path)
    (folder / "preview.png").write_bytes(PNG)
    assert previews.exists(store, PATH)
    assert previews.read(store, PATH) == PNG


@pytest.mark.parametrize("kind", ["html", "link", "link to a folder", "fifo", "folder", "huge"])
def test_what_is_no_preview_is_not_read(tmp_path, monkeypatch, kind):
    """Other files, links out of the volume, and what would keep a reader waiting."""
    monkeypatch.setattr(previews, "MAX_BYTES", 1000)
    store, folder = store_of(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "preview.png").write_bytes(PNG)
    target = folder / "preview.png"
    match kind:
        case "html":
            target.write_bytes(b"<script>alert(1)</script>")
        case "link":
            target.symlink_to(outside / "preview.png")
        case "link to a folder":
            folder.rmdir()
            folder.symlink_to(outside)
        case "fifo":
            os.mkfifo(target)
        case "folder":
            target.mkdir()
        case "huge":
            target.write_bytes(PNG + bytes(1000))
    assert previews.read(store, PATH) is None
    if kind not in ("html", "huge"):
        assert not previews.exists(store, PATH)


@pytest.mark.parametrize(
    "path", ["../outside.png", "a/../../outside.png", "/etc/hostname", "..", ""]
)
def test_a_path_cannot_leave_the_volume(tmp_path, path):
    """Should a status ever hold such a one."""
    store, _ = store_of(tmp_path)
    (tmp_path / "outside.png").write_bytes(PNG)
    assert previews.read(store, path) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        pytest.param(PATH, PATH, id="its-own"),
        pytest.param(f".store/{CLAIM_UID}/{HASH}/preview.png", None, id="another-models"),
        pytest.param("../../etc/preview.png", None, id="outside"),
        pytest.param(None, None, id="none"),
    ],
)
def test_only_a_models_own_preview_is_looked_for(said, found):
    """The path in the status must be the one that the contract makes."""
    artifact = {
        "path": "sketch",
        "immutablePath": f".store/{UID}/{HASH}",
        "claimName": "models",
        "digest": "a" * 64,
        "sizeBytes": 1,
        "size": "1 B",
        "files": 1,
        "lastUpdateTime": "2026-01-02T03:04:05Z",
        **({"previewPath": said} if said else {}),
    }
    assert previews.preview_path(Model.from_body(body({"artifact": artifact}))) == found
