"""Tests of the gallery's session cookie, of the check of a form's origin, and of previews."""

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
    """A key file with two keys."""
    path = tmp_path / "keys"
    path.write_text("".join(keys.new("art", name)[1] + "\n" for name in ("ann", "bob.b")))
    return path


def key_of(file: Path, name: str = "ann") -> keys.Key:
    """Return the key with this id from the file."""
    key = keys.Keys(file).by_id(name)
    assert key is not None
    return key


@pytest.mark.parametrize("name", ["ann", "bob.b"])
def test_session_is_valid_on_every_replica(file, name):
    """A process that reads the same key file accepts the session, although it did not create it."""
    value = session.issue(key_of(file, name), NOW)
    assert session.read(value, keys.Keys(file), NOW + 60) == key_of(file, name)


def test_session_does_not_contain_the_keys_digest(file):
    """The cookie does not contain the key's digest, with which anyone could sign sessions."""
    key = key_of(file)
    assert key.digest.hex() not in session.issue(key, NOW)


def test_session_expires_after_its_lifetime(file):
    """The session is valid until the last second before it expires."""
    value = session.issue(key_of(file), NOW)
    end = NOW + session.LIFETIME_SECONDS
    assert session.read(value, keys.Keys(file), end - 1)
    assert session.read(value, keys.Keys(file), end) is None


def test_a_session_ends_with_its_key(file):
    """The session ends when its key is removed, and when another key gets the same id."""
    value = session.issue(key_of(file), NOW)
    current = keys.Keys(file)
    assert session.read(value, current, NOW)
    file.write_text(keys.new("art", "ann")[1])
    assert session.read(value, current, NOW) is None
    file.write_text("# no keys\n")
    assert session.read(value, current, NOW) is None


@given(data=st.data(), position=st.integers(min_value=0), letter=st.characters())
def test_changed_session_is_invalid(data, position, letter, tmp_path_factory):
    """A change of any character in id, expiry time or signature makes it invalid."""
    file = tmp_path_factory.getbasetemp() / "fixed-keys"
    if not file.exists():
        file.write_text(keys.new("art", "ann")[1])
    value = session.issue(key_of(file), NOW)
    index = position % len(value)
    changed = value[:index] + letter + value[index + 1 :]
    if changed != value:
        assert session.read(changed, keys.Keys(file), NOW) is None
    assert session.read(data.draw(st.text()), keys.Keys(file), NOW) is None


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        pytest.param({"sec-fetch-site": "same-origin"}, True, id="same-origin"),
        pytest.param({"sec-fetch-site": "none"}, True, id="opened-by-the-user"),
        pytest.param({"sec-fetch-site": "cross-site"}, False, id="cross-site"),
        pytest.param({"sec-fetch-site": "same-site"}, False, id="another-subdomain"),
        pytest.param(
            {"sec-fetch-site": "cross-site", "origin": "http://gallery:8000"},
            False,
            id="sec-fetch-site-has-precedence",
        ),
        pytest.param({"origin": "http://gallery:8000"}, True, id="origin-is-host"),
        pytest.param({"origin": "https://models.example.com"}, True, id="origin-is-public-url"),
        pytest.param({"origin": "http://models.example.com"}, False, id="public-url-over-http"),
        pytest.param({"origin": "https://evil.example.com"}, False, id="foreign-origin"),
        pytest.param({"origin": "http://gallery:8000.evil.example"}, False, id="starts-like-host"),
        pytest.param({"origin": "http://gallery"}, False, id="another-port"),
        pytest.param({"origin": "null"}, False, id="null-origin"),
        pytest.param({"origin": ""}, False, id="empty-origin"),
        pytest.param({}, False, id="neither-header"),
    ],
)
def test_form_must_come_from_a_page_of_the_gateway(headers, same):
    """A form is accepted (`same`) only if headers show that its page is the gateway's own.

    Browsers set these headers, and pages cannot forge them.
    """
    request_headers = {"host": "gallery:8000", **headers}
    assert session.is_same_origin(request_headers, "https://models.example.com") is same


# Previews


def store_of(tmp_path: Path) -> tuple[Path, Path]:
    """Create a volume; return its folder and the folder of the model's version on it."""
    folder = tmp_path / "store" / ".store" / UID / HASH
    folder.mkdir(parents=True)
    return tmp_path / "store", folder


PATH = f".store/{UID}/{HASH}/preview.png"


def test_png_file_is_read_as_a_preview(tmp_path):
    """A regular PNG file in the version's folder is a preview, and a JPEG file is a picture."""
    store, folder = store_of(tmp_path)
    (folder / "preview.png").write_bytes(PNG)
    assert previews.exists(store, PATH)
    assert previews.read(store, PATH) == PNG
    picture = PATH.replace("preview.png", "picture.jpg")
    (folder / "picture.jpg").write_bytes(PNG)
    assert previews.read(store, picture) is None, "a PNG is not a JPEG"
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xffrest")
    assert previews.read(store, picture) == b"\xff\xd8\xffrest"


@pytest.mark.parametrize("kind", ["html", "link", "link to a folder", "fifo", "folder", "huge"])
def test_other_files_are_not_read_as_previews(tmp_path, monkeypatch, kind):
    """Links, folders, FIFOs, other formats and huge files are rejected without blocking."""
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
def test_path_outside_the_volume_is_not_read(tmp_path, path):
    """Even if a status contains a path outside the volume, the gateway does not open the file."""
    store, _ = store_of(tmp_path)
    (tmp_path / "outside.png").write_bytes(PNG)
    assert previews.read(store, path) is None


@pytest.mark.parametrize(
    ("preview_path", "accepted"),
    [
        pytest.param(PATH, PATH, id="own-preview"),
        pytest.param(f".store/{CLAIM_UID}/{HASH}/preview.png", None, id="preview-of-another-model"),
        pytest.param("../../etc/preview.png", None, id="outside-the-store"),
        pytest.param(None, None, id="no-preview"),
    ],
)
def test_only_a_models_own_preview_is_accepted(preview_path, accepted):
    """The path in the status must be that of names.preview_path. The preview comes first."""
    artifact = {
        "path": "sketch",
        "immutablePath": f".store/{UID}/{HASH}",
        "claimName": "models",
        "digest": "blake3:" + "a" * 64,
        "sizeBytes": 1,
        "size": "1 B",
        "files": 1,
        "lastUpdateTime": "2026-01-02T03:04:05Z",
        **({"previewPath": preview_path} if preview_path else {}),
    }
    found = previews.paths(Model.from_body(body({"artifact": artifact})))
    assert found == ({"preview.png": accepted} if accepted else {})
    picture = f".store/{UID}/{HASH}/picture.jpg"
    found = previews.paths(
        Model.from_body(body({"artifact": {**artifact, "picturePath": picture}}))
    )
    assert found.get("picture.jpg") == picture
    assert list(found)[-1] == "picture.jpg", "the preview comes first"
