"""Tests of look-ups: what Civitai, the Hub and other servers report before a load."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from devkit.fakecivitai import File, Model, Version
from devkit.fakehub import FakeHub
from sd_operator.gateway import lookups
from sd_operator.gateway.lookups import Pasted
from tests.support.gateway.lookupsources import KEY, WEIGHTS, Sources


@pytest.mark.parametrize(
    "url",
    [
        "https://civitai.com/models/7/fish?modelVersionId=70",
        pytest.param("https://civitai.com/models/7", marks=pytest.mark.slow),
        pytest.param("urn:air:sdxl:lora:civitai:7@70", marks=pytest.mark.slow),
        pytest.param("https://civitai.com/api/download/models/70", marks=pytest.mark.slow),
    ],
)
def test_a_model_of_civitai_is_described(sources: Sources, url: str) -> None:
    """Title, type, base model, size and licence come from the API, without a token."""
    found = sources.facts(url)
    assert dict(found.rows) == {
        "Title": "Fish Stylé 魚 (v1.0)",
        "Type": "LoRA",
        "Base model": "Pony (SDXL)",
        "Size": "700 B",
        "File": "tiny.safetensors (SafeTensor, pruned, fp16)",
        "Licence": "commercial use: Image, RentCivit; merges under the same permissions",
        "Author": "someone",
        "Words for prompts": "fishy",
    }
    assert (found.host, found.name, found.notes) == (sources.civitai.host, "fish-style", ())
    assert found.page == f"{sources.civitai.url}/models/7?modelVersionId=70"
    assert not any("authorization" in request.headers for request in sources.requests)
    assert all(request.path.startswith("/api/v1/") for request in sources.requests)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        pytest.param(
            {"early_access_ends": "2999-01-01T00:00:00Z"}, "early access until", id="early"
        ),
        pytest.param(
            {"usage_control": "Generation"}, "may only be used", id="usage", marks=pytest.mark.slow
        ),
        pytest.param({"files": "gguf"}, "no file that the loader reads", id="format"),
        pytest.param({"files": "two"}, "The version has 2 files", id="choice"),
    ],
)
def test_a_note_says_what_keeps_a_version_from_loading(
    sources: Sources, change: dict[str, Any], note: str
) -> None:
    """Early access, a usage limit, an unreadable format and a choice of files lead to a note."""
    weights = sources.folder / "weights"
    files = {
        "one": [File(700, weights)],
        "gguf": [File(700, weights, format="GGUF")],
        "two": [File(700, weights), File(701, weights, fp="fp32")],
    }
    version = Version(70, **change | {"files": files[change.get("files", "one")]})
    sources.civitai.add(Model(7, "Checkpoint", [version]))
    (text,) = sources.facts("civitai:7@70").notes
    assert note in text


def test_a_repo_of_the_hub_is_described(sources: Sources) -> None:
    """A pipeline is recognised by its index; the size is that of all files."""
    found = sources.facts("org/Style.v2")
    assert dict(found.rows) == {
        "Title": "Style.v2",
        "Type": "is found when it loads",
        "Base model": "stabilityai/stable-diffusion-xl-base-1.0",
        "Size": "700 B in the repo; a load takes what it needs",
        "Licence": "mit",
        "Author": "org",
    }
    assert (found.name, found.notes, found.is_gated) == ("style-v2", (), False)
    (sources.folder / "repo" / "model_index.json").write_text("{}")
    assert dict(sources.facts("org/Style.v2").rows)["Type"] == "Diffusers pipeline"
    assert not any("authorization" in request.headers for request in sources.requests)


def test_a_file_of_the_hub_is_described(sources: Sources) -> None:
    """A link to a file shows the size of the file, or that the repo does not have it."""
    link = f"{sources.hub.url}/org/Style.v2/resolve/main/"
    found = dict(sources.facts(f"{link}style.safetensors").rows)
    assert (found["File"], found["Size"]) == ("style.safetensors", "700 B")
    assert sources.facts(f"{link}other.safetensors").notes == (
        "The repo does not have this file; correct the link.",
    )


def test_a_gated_repo_says_how_a_token_is_used(sources: Sources) -> None:
    """The note says where to accept the terms and where to name the Secret with the token."""
    sources.hub.add_repo("org/gated", sources.folder / "repo", gated=True, token="hf_secret")
    found = sources.facts("org/gated")
    assert found.is_gated
    (note,) = found.notes
    assert f"Accept its terms on {sources.hub.url}/org/gated" in note
    assert "name the Secret under “Access”" in note


@pytest.mark.parametrize(
    ("faults", "rows", "note"),
    [
        pytest.param({}, {"File": "v2.safetensors", "Size": "700 B"}, "", id="range"),
        pytest.param(
            {"ignore_range": True}, {"Size": "700 B"}, "", id="whole", marks=pytest.mark.slow
        ),
        pytest.param(
            {"headers": {"Content-Disposition": 'attachment; filename="Big Fish.ckpt"'}},
            {"File": "Big Fish.ckpt"},
            "",
            id="name from the server",
        ),
        pytest.param(
            {"headers": {"Content-Disposition": "attachment; filename*=odd''%41"}},
            {"Size": "700 B"},
            "",
            id="name in an unknown character set",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"headers": {"Content-Type": "text/html"}}, {}, "leads to a web page", id="web page"
        ),
        pytest.param({"status": 404}, {}, "has no such model or file", id="missing"),
        pytest.param(
            {"status": 403},
            {},
            "only to users with an account",
            id="refused",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"status": 500}, {}, "answered with status 500", id="broken", marks=pytest.mark.slow
        ),
    ],
)
def test_a_link_shows_host_name_and_size(
    sources: Sources, faults: dict[str, Any], rows: dict[str, str], note: str
) -> None:
    """Whatever the server answers, the facts have the host, a type and a proposed name."""
    url = sources.hub.serve_file("/files/v2.safetensors", WEIGHTS, **faults)
    found = sources.facts(url)
    expected = {"Host": sources.hub.host, "Type": "is found when it loads", **rows}
    assert expected.items() <= dict(found.rows).items()
    assert found.name
    assert note in " ".join(found.notes)
    assert bool(note) == bool(found.notes)
    assert sources.hub.bytes_served <= len(WEIGHTS)


def test_a_look_up_calls_no_private_address(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is tried, and the note says that a load would be refused."""
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    urls = (
        "https://127.0.0.1/model.safetensors",
        "https://169.254.169.254/latest/meta-data",
        "https://kubernetes.default.svc/api",
        "http://example.com/model.safetensors",
        "https://example.com:6443/model.safetensors",
    )
    for url, found in zip(urls, sources.ask(*urls), strict=True):
        assert found is not None
        (note,) = found.notes
        assert note.startswith("A load would be refused: "), url
    assert connected == []


def test_a_redirect_of_a_look_up_leads_to_no_private_address(sources: Sources) -> None:
    """A redirect to a private address is not followed: the guard checks each redirect."""
    inside = FakeHub()
    with inside:
        url = sources.hub.serve_file("/x", b"", redirect=f"{inside.url}/secret")
        assert sources.facts(url).notes
    assert inside.requests == []


def test_a_link_with_a_secret_is_not_called(sources: Sources) -> None:
    """A link with a secret is not called, and the note says so; only a load sends the secret."""
    for secret in ("/m.ckpt?token=geheim", "/m.ckpt?X-Amz-Signature=geheim"):
        found = sources.facts(f"{sources.hub.url}{secret}")
        assert "contains a secret" in found.notes[0]
        assert "geheim" not in str(found)
    assert sources.requests == []


def test_an_unreadable_url_is_not_looked_up(sources: Sources) -> None:
    """There are no facts and no request; the form's own errors say what is wrong."""
    urls = ("", "not a link", "bare-id", "s3://bucket/x", "https://civitai.com/user/x", "x" * 5000)
    assert sources.ask(*urls) == [None] * len(urls)
    assert sources.requests == []


def test_look_ups_can_be_switched_off(sources: Sources) -> None:
    """If look-ups are off, no request is sent, and the proposed name comes from the link."""
    urls = ("org/Style.v2", "civitai:7@70", "https://example.com/Big_Fish.safetensors")
    found = sources.ask(*urls, lookups=False)
    assert [facts and facts.name for facts in found] == ["style-v2", "civitai-7", "big-fish"]
    assert sources.requests == []


def test_an_answer_is_kept_even_if_it_is_a_failure(sources: Sources) -> None:
    """The source is asked once, even for two spellings of its url, and even if it fails."""
    urls = ("org/Style.v2", "hf://org/Style.v2", "org/missing", "org/missing")
    found = sources.ask(*urls)
    assert found[0] == found[1]
    assert found[2] is found[3]
    assert len(sources.requests) == 2


def test_kept_answers_expire(sources: Sources) -> None:
    """A failure is kept for a shorter time than facts; then a look-up asks the source again."""

    async def run() -> list[int]:
        made = sources.lookups()
        counts = []
        for moment, url in (
            (0, "org/missing"),
            (lookups.FAILURE_SECONDS + 1, "org/missing"),
            (lookups.FAILURE_SECONDS + 2, "org/Style.v2"),
            (lookups.CACHE_SECONDS, "org/Style.v2"),
            (2 * lookups.CACHE_SECONDS, "org/Style.v2"),
        ):
            sources.now = moment
            await made.find(Pasted(url), KEY)
            counts.append(len(sources.requests))
        await made.close()
        return counts

    assert asyncio.run(run()) == [1, 2, 3, 3, 4]


def test_look_ups_of_a_key_and_kept_answers_are_limited(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that asks too often gets a note instead of facts, and still a name."""
    monkeypatch.setattr(lookups, "LOOKUPS_PER_MINUTE", 3)
    urls = [f"org/missing-{number}" for number in range(5)]
    found = sources.ask(*urls)
    assert len(sources.requests) == 3
    assert found[4] is not None
    assert "looked up too many links" in found[4].notes[0]
    assert found[4].name == "missing-4"
    sources.hub.forget()
    monkeypatch.setattr(lookups, "LOOKUPS_PER_MINUTE", 30)
    monkeypatch.setattr(lookups, "CACHED_MAX", 2)
    sources.ask(*urls[:3], urls[0])
    assert len(sources.requests) == 4, "the oldest answer is forgotten"
