"""The words of a source that are quoted: those that no viewer turns into a link."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_loader.net.error_body import FROM_PUBLIC_ADDRESS, quotation

SAID = "; the source says: "


@pytest.mark.parametrize(
    "link",
    [
        *(
            "https://evil.com/x",
            "http:/evil.com",
            r"https:\\evil.com\x",
            "//evil.com",
            "ftp:evil.com",
        ),
        *("1.2.3.4/x", "1.2.3.4", "10.0.0.1:9000", "localhost:8080/x", "host-1:80", "[::1]:80"),
        *("fe80::1", "evil.com/x", "evil.com?x", "evil.com:80", "evil.xn--p1ai/x", "www.evil.com"),
        *("[x](javascript:alert(1))", "[x](/y)", "a@evil.com", "@evil", "mailto:a", "javascript:a"),
        *("(https://evil.com)", "<https://evil.com>", "evil\uff0ecom\uff0fx", "ftp\uff1aevil.com"),
    ],
)
def test_no_word_that_may_be_a_link_is_quoted(link: str) -> None:
    """A viewer of the message must not turn any of its words into a link."""
    response = httpx2.Response(403, extensions={FROM_PUBLIC_ADDRESS: True})
    assert quotation(response, json.dumps({"message": f"see {link} now"})) == f"{SAID}see now"
    assert quotation(response, "", f"see {link}, now") == f"{SAID}see now"


@pytest.mark.parametrize(
    "text",
    [
        "Early access ends on 2026-12-01T12:30:00Z, at 12:30",
        "Access to org/name is restricted: ask its owner",
        "No file model.safetensors, version 1.5 and/or 2.0.1 (see the licence)",
    ],
)
def test_words_that_are_not_links_are_quoted(text: str) -> None:
    """Times, repo ids, versions and file names say why a source refuses a request."""
    response = httpx2.Response(403, extensions={FROM_PUBLIC_ADDRESS: True})
    assert quotation(response, "", text) == SAID + text


PIECES = st.sampled_from(
    [
        *("https://x.y", "//", "/", "\\", ":", "::", "@", "?", "#", ".", "..", "](", "<", "-", "_"),
        *(
            "a",
            "evil",
            "com",
            "xn--p1ai",
            "www.",
            "10.0.0.1",
            "8080",
            "ftp",
            "é",
            "\uff0f",
            " ",
            "\n",
        ),
    ]
)
LINK_LIKE = re.compile(r"[\\@]|//|\]\(|www\.|[0-9]+(\.[0-9]+){3}|[a-z]:[a-z0-9]|\w\.\w+[/?#]")


@given(
    st.text(max_size=400) | st.lists(PIECES).map("".join),
    st.sampled_from(["message", "error"]),
)
def test_any_text_is_quoted_harmlessly(text: str, key: str) -> None:
    """Whatever the source says, the quotation is one printable line without a link."""
    response = httpx2.Response(403, extensions={FROM_PUBLIC_ADDRESS: True})
    for quoted in (
        quotation(response, json.dumps({key: text})),
        quotation(response, "", text),
    ):
        words = quoted.removeprefix(SAID)
        assert len(words) <= 160
        assert words.isprintable()
        for word in words.split():
            assert not LINK_LIKE.search(word), word
            assert not (urlsplit(word).scheme and urlsplit(word).path), word
    private: dict[str, Any] = {FROM_PUBLIC_ADDRESS: False}
    assert quotation(httpx2.Response(403, extensions=private), json.dumps({key: text})) == ""
