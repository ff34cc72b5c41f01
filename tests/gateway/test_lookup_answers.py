"""Tests of look-ups whose sources send a hostile or unreadable answer, or do not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from devkit.fakecivitai import File, Model, Version
from devkit.fakefiles import Faults
from sd_operator.gateway import lookups
from tests.support.gateway.lookupsources import WEIGHTS, Sources

HOSTILE = '"><script>alert(1)</script>\u202e\x1b'


def api_faults(**faults: Any) -> Callable[[Sources], None]:
    """Return a function that gives both APIs these faults."""

    def apply(sources: Sources) -> None:
        sources.hub.api_faults = sources.civitai.api_faults = Faults(**faults)

    return apply


def hostile_fields(sources: Sources) -> None:
    """Fill every text with markup."""
    more = {"name": HOSTILE, "type": HOSTILE, "creator": {"username": HOSTILE}}
    version = Version(
        70,
        [File(700, sources.folder / "weights", name=HOSTILE, format=HOSTILE)],
        name=HOSTILE,
        base_model=HOSTILE,
        trained_words=[HOSTILE],
        more={"model": {"name": HOSTILE, "type": HOSTILE}},
    )
    sources.civitai.add(Model(7, HOSTILE, [version], commercial_use=[HOSTILE], more=more))
    card = {"license": HOSTILE, "base_model": [HOSTILE], "instance_prompt": HOSTILE}
    sources.hub.add_repo("org/Style.v2", sources.folder / "repo", card_data=card)


def wrong_types(sources: Sources) -> None:
    """Give every field a value of another type."""
    names = ("model", "files", "images", "baseModel", "name", "trainedWords", "modelId")
    version = Version(70, more=dict.fromkeys(names, 7.5))
    wrong = {key: [[7]] for key in ("name", "creator", "modelVersions", "allowCommercialUse")}
    sources.civitai.add(Model(7, "LORA", [version], more=wrong))
    sources.hub.add_repo("org/Style.v2", sources.folder / "repo", card_data=[{"license": 7}])


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(hostile_fields, id="markup"),
        pytest.param(wrong_types, id="wrong types"),
        pytest.param(
            api_faults(status=200, body=b"<html>"), id="a web page", marks=pytest.mark.slow
        ),
        pytest.param(api_faults(status=500), id="an error", marks=pytest.mark.slow),
    ],
)
def test_an_untrusted_answer_stays_inert(
    sources: Sources, break_it: Callable[[Sources], None]
) -> None:
    """Texts are short and printable, a page is an http(s) link, and a name is always proposed."""
    break_it(sources)
    for found in sources.ask("civitai:7@70", "civitai:7", "org/Style.v2"):
        assert found is not None
        texts = [text for row in found.rows for text in row] + list(found.notes)
        assert all(text.isprintable() and len(text) < 600 for text in texts), texts
        assert found.page == "" or found.page.startswith("http://127.0.0.1")
        assert found.name


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="deep", marks=pytest.mark.slow),
        pytest.param(b'{"id":"' + b"x" * 10_000_000 + b'"}', id="10 MB"),
        pytest.param(b"[]", id="a list", marks=pytest.mark.slow),
        pytest.param(b"\xff", id="not UTF-8", marks=pytest.mark.slow),
    ],
)
def test_an_answer_of_another_form_is_not_read(sources: Sources, body: bytes) -> None:
    """An answer that is not a JSON object, or is longer than 2 MB, leads to a note."""
    path = "/api/models/org/Style.v2/revision/main"
    sources.hub.links[path] = (body, Faults(headers={"Content-Type": "application/json"}))
    (note,) = sources.facts("org/Style.v2").notes
    assert "cannot be read" in note


def test_an_odd_description_hides_no_facts(sources: Sources) -> None:
    """The creator's description has half of a surrogate pair; the other facts are shown."""
    answer = b'{"id": "org/Style.v2", "description": "\\ud83d", "cardData": {"license": "mit"}}'
    path = "/api/models/org/Style.v2/revision/main"
    sources.hub.links[path] = (answer, Faults(headers={"Content-Type": "application/json"}))
    facts = sources.facts("org/Style.v2")
    assert ("Licence", "mit") in facts.rows
    assert facts.notes == ()


def test_a_server_that_does_not_answer_is_given_up(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After LOOKUP_SECONDS, the visitor gets a note, or for a link the proposed name."""
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 0.1)
    url = sources.hub.serve_file("/slow.ckpt", WEIGHTS * 100, rate=1)
    path = "/api/models/org/Style.v2/revision/main"
    sources.hub.links[path] = (WEIGHTS * 1000, Faults(rate=1))
    (note,) = sources.facts("org/Style.v2").notes
    assert "did not answer within" in note
    assert sources.facts(url).name == "slow"
