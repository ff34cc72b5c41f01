"""The administrator's logins are read from files, and put into urls that no Job has."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.logins import KEYS, Logins, basic, with_login

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


def test_each_file_is_one_login(tmp_path: Path) -> None:
    """Each known file in the folder is one login. Files are optional; other files are ignored."""
    assert Logins.read(None) == Logins()
    assert Logins.read(tmp_path / "missing") == Logins()
    (tmp_path / "proxy").write_text("user:word\n")
    (tmp_path / "trained").write_text("")
    (tmp_path / "token").write_text("hf_not-ours")
    assert Logins.read(tmp_path) == Logins(proxy="user:word")
    assert KEYS == ("proxy", "hub", "trained")


@pytest.mark.parametrize("content", [b"a:b\nc:d", b"a:\xff", b"a:b\r\nX-Header: 1", "a:é".encode()])
def test_a_login_that_cannot_be_sent_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message names the file and does not quote it."""
    (tmp_path / "hub").write_bytes(content)
    with pytest.raises(ValueError, match=r"^the login hub is not one line of printable ASCII$"):
        Logins.read(tmp_path)


def test_no_login_is_shown_by_accident() -> None:
    """The `repr` of logins has no login, since settings may be logged."""
    assert "word" not in repr(Logins("user:word", "user:word", "word"))


def test_every_secret_is_known_by_its_value() -> None:
    """`secrets` has passwords and keys, plain and as they are sent: base64 or percent-encoded."""
    logins = Logins(proxy="user:a long word", trained="a/key")
    encoded = basic("user:a long word").removeprefix("Basic ")
    assert set(logins.secrets()) == {"a long word", encoded, "a/key", "a%2Fkey"}


@given(PRINTABLE.filter(lambda user: ":" not in user), PRINTABLE)
def test_a_login_never_changes_the_host(user: str, password: str) -> None:
    """User and password are quoted; an earlier login is replaced."""
    for url in ("http://proxy.example.com:3128/x?y", "http://old:one@proxy.example.com:3128/x?y"):
        parts = urlsplit(with_login(url, f"{user}:{password}"))
        assert (parts.hostname, parts.port, parts.path) == ("proxy.example.com", 3128, "/x")
        assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert with_login("http://proxy.example.com", None) == "http://proxy.example.com"
