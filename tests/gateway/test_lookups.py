"""Tests of look-ups: what Civitai, the Hub and plain servers say before a model is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakefiles import Faults
from devkit.fakehub import FakeHub
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.gateway import lookups
from sd_operator.gateway.facts import Facts
from sd_operator.gateway.keys import Key
from sd_operator.gateway.lookups import Lookups, Pasted
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import no_names

KEY = Key("painter", "art", b"")
WEIGHTS = b"weights" * 100
HOSTILE = '"><script>alert(1)</script>\u202e\x1b'


@dataclass
class Sources:
    """A Civitai and a Hub on loopback, and look-ups that may call them."""

    civitai: FakeCivitai
    hub: FakeHub
    folder: Path
    settings: GatewaySettings
    now: list[float] = field(default_factory=lambda: [0.0])
    """The monotonic clock's time."""

    def ask(self, *urls: str, **settings: Any) -> list[Facts | None]:
        """Look up these urls, one after the other."""

        async def run() -> list[Facts | None]:
            clock = replace(SYSTEM_CLOCK, monotonic=lambda: self.now[0])
            made = Lookups(replace(self.settings, **settings), clock, no_names)
            try:
                return [await made.find(Pasted(url), KEY) for url in urls]
            finally:
                await made.close()

        return asyncio.run(run())

    def facts(self, url: str, **settings: Any) -> Facts:
        """Return the facts about a url that means a source."""
        (found,) = self.ask(url, **settings)
        assert found is not None
        return found

    @property
    def requests(self) -> list[Any]:
        """All requests to both."""
        return [*self.civitai.requests, *self.hub.requests]


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    """The model 7 at Civitai, and the repo org/style at the Hub."""
    weights = tmp_path / "weights"
    weights.write_bytes(WEIGHTS)
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "style.safetensors").write_bytes(WEIGHTS)
    with ExitStack() as stack:
        civitai, hub = stack.enter_context(FakeCivitai()), stack.enter_context(FakeHub())
        version = Version(70, [File(700, weights)], trained_words=["fishy"], base_model="Pony")
        civitai.add(Model(7, "LORA", [version], name="Fish Stylé 魚"))
        card = {"license": "mit", "base_model": "stabilityai/stable-diffusion-xl-base-1.0"}
        hub.add_repo("org/Style.v2", repo, card_data=card)
        settings = GatewaySettings(
            tmp_path / "keys", hub_endpoint=hub.url, civitai_endpoint=civitai.url
        )
        yield Sources(civitai, hub, tmp_path, settings)


@pytest.mark.parametrize(
    "url",
    [
        "https://civitai.com/models/7/fish?modelVersionId=70",
        "https://civitai.com/models/7",
        "urn:air:sdxl:lora:civitai:7@70",
        "https://civitai.com/api/download/models/70",
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
        "Licence": "commercial use: Image, RentCivit, merges under the same permissions",
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
        pytest.param({"usage_control": "Generation"}, "may only be used on Civitai", id="usage"),
        pytest.param({"files": "gguf"}, "no file that the loader reads", id="format"),
        pytest.param({"files": "two"}, "The version has 2 files", id="choice"),
    ],
)
def test_a_note_says_what_keeps_a_version_from_loading(
    sources: Sources, change: dict[str, Any], note: str
) -> None:
    """The loader gives the same reasons."""
    weights = sources.folder / "weights"
    files = {
        "gguf": [File(700, weights, format="GGUF")],
        "two": [File(700, weights), File(701, weights, fp="fp32")],
    }
    if "files" in change:
        change = {"files": files[change["files"]]}
    version = Version(70, change.pop("files", files["two"][:1]), **change)
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
    assert sources.facts(f"{link}other.safetensors").notes == ("The repo has no such file.",)


def test_a_gated_repo_says_how_a_token_is_used(sources: Sources) -> None:
    """Its terms are accepted on its page; the token is in a Secret of the namespace."""
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
        pytest.param({"ignore_range": True}, {"Size": "700 B"}, "", id="without ranges"),
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
        ),
        pytest.param(
            {"headers": {"Content-Type": "text/html"}}, {}, "leads to a web page", id="web page"
        ),
        pytest.param({"status": 404}, {}, "has no such model or file", id="missing"),
        pytest.param({"status": 403}, {}, "to nobody without an account", id="refused"),
        pytest.param({"status": 500}, {}, "answered with status 500", id="broken"),
    ],
)
def test_a_link_shows_host_name_and_size(
    sources: Sources, faults: dict[str, Any], rows: dict[str, str], note: str
) -> None:
    """Whatever the server answers, the form has the host, a file name and a proposed name."""
    url = sources.hub.serve_file("/files/v2.safetensors", WEIGHTS, **faults)
    found = sources.facts(url)
    expected = {"Host": sources.hub.host, "Type": "is found when it loads", **rows}
    assert expected.items() <= dict(found.rows).items()
    assert found.name
    assert note in " ".join(found.notes)
    assert bool(note) == bool(found.notes)
    assert sources.hub.bytes_served <= len(WEIGHTS)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://127.0.0.1/model.safetensors", id="loopback"),
        pytest.param("https://169.254.169.254/latest/meta-data", id="metadata service"),
        pytest.param("https://kubernetes.default.svc/api", id="name in the cluster"),
        pytest.param("http://example.com/model.safetensors", id="plain http"),
        pytest.param("https://example.com:6443/model.safetensors", id="another port"),
    ],
)
def test_a_look_up_calls_no_private_address(sources: Sources, url: str) -> None:
    """The note says why the load would be refused, too."""
    (note,) = sources.facts(url).notes
    assert note.startswith("A load would be refused: ")


def test_a_redirect_of_a_look_up_leads_to_no_private_address(sources: Sources) -> None:
    """The guard checks each redirect."""
    inside = FakeHub()
    with inside:
        url = sources.hub.serve_file("/x", b"", redirect=f"{inside.url}/secret")
        assert sources.facts(url).notes
    assert inside.requests == []


def test_a_link_with_a_secret_is_not_called(sources: Sources) -> None:
    """Only the load sends it."""
    for secret in ("/m.ckpt?token=geheim", "/m.ckpt?X-Amz-Signature=geheim"):
        found = sources.facts(f"{sources.hub.url}{secret}")
        assert "secret in it" in found.notes[0]
        assert "geheim" not in str(found)
    assert sources.requests == []


@pytest.mark.parametrize(
    "url", ["", "not a link", "bare-id", "s3://bucket/x", "https://civitai.com/user/x", "x" * 5000]
)
def test_an_unreadable_url_is_not_looked_up(sources: Sources, url: str) -> None:
    """The form's own errors say what is wrong with it."""
    assert sources.ask(url) == [None]
    assert sources.requests == []


def test_look_ups_can_be_switched_off(sources: Sources) -> None:
    """Without requests, the name comes from the link."""
    urls = ("org/Style.v2", "civitai:7@70", "https://example.com/Big_Fish.safetensors")
    found = sources.ask(*urls, lookups=False)
    assert [facts and facts.name for facts in found] == ["style-v2", "civitai-7", "big-fish"]
    assert sources.requests == []


def test_an_answer_is_kept_for_ten_minutes_and_a_failure_for_less(sources: Sources) -> None:
    """The same link in other words is one source."""
    urls = ("org/Style.v2", "hf://org/Style.v2", "org/missing", "org/missing")
    found = sources.ask(*urls)
    assert found[0] == found[1]
    assert found[2] is found[3]
    assert len(sources.requests) == 2


def test_kept_answers_expire(sources: Sources) -> None:
    """A look-up after their time asks again."""

    async def run() -> list[int]:
        clock = replace(SYSTEM_CLOCK, monotonic=lambda: sources.now[0])
        made = Lookups(sources.settings, clock, no_names)
        counts = []
        for moment, url in (
            (0, "org/missing"),
            (lookups.FAILURE_SECONDS + 1, "org/missing"),
            (lookups.FAILURE_SECONDS + 2, "org/Style.v2"),
            (lookups.CACHE_SECONDS, "org/Style.v2"),
            (2 * lookups.CACHE_SECONDS, "org/Style.v2"),
        ):
            sources.now[0] = moment
            await made.find(Pasted(url), KEY)
            counts.append(len(sources.requests))
        await made.close()
        return counts

    assert asyncio.run(run()) == [1, 2, 3, 3, 4]


def test_look_ups_of_a_key_and_kept_answers_are_limited(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that asks too often gets a note instead of facts, and the name all the same."""
    monkeypatch.setattr(lookups, "LOOKUPS_PER_MINUTE", 3)
    urls = [f"org/missing-{number}" for number in range(5)]
    found = sources.ask(*urls)
    assert len(sources.requests) == 3
    assert found[4] is not None
    assert "too many links" in found[4].notes[0]
    assert found[4].name == "missing-4"
    sources.hub.forget()
    monkeypatch.setattr(lookups, "LOOKUPS_PER_MINUTE", 30)
    monkeypatch.setattr(lookups, "CACHED_MAX", 2)
    sources.ask(*urls[:3], urls[0])
    assert len(sources.requests) == 4, "the oldest answer is forgotten"


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
        pytest.param(api_faults(status=200, body=b"<html>"), id="a web page"),
        pytest.param(api_faults(status=500), id="an error"),
    ],
)
def test_an_untrusted_answer_stays_inert(
    sources: Sources, break_it: Callable[[Sources], None]
) -> None:
    """Texts are short and printable, a page is an http(s) link, and a name is always proposed."""
    break_it(sources)
    for url in ("civitai:7@70", "civitai:7", "org/Style.v2"):
        found = sources.facts(url)
        texts = [text for row in found.rows for text in row] + list(found.notes)
        assert all(text.isprintable() and len(text) < 600 for text in texts), texts
        assert found.page == "" or found.page.startswith("http://127.0.0.1")
        assert found.name


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"[" * 100_000, "cannot be read", id="deep"),
        pytest.param(b'{"id":"' + b"x" * 10_000_000 + b'"}', "cannot be read", id="10 MB"),
        pytest.param(b"[]", "cannot be read", id="a list"),
        pytest.param(b"\xff", "cannot be read", id="not UTF-8"),
    ],
)
def test_an_answer_of_another_form_is_not_read(sources: Sources, body: bytes, why: str) -> None:
    """At most 2 MB are read."""
    path = "/api/models/org/Style.v2/revision/main"
    sources.hub.links[path] = (body, Faults(headers={"Content-Type": "application/json"}))
    (note,) = sources.facts("org/Style.v2").notes
    assert why in note


def test_a_server_that_does_not_answer_is_given_up(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The visitor waits for a few seconds at most."""
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 0.1)
    url = sources.hub.serve_file("/slow.ckpt", WEIGHTS * 100, rate=1)
    path = "/api/models/org/Style.v2/revision/main"
    sources.hub.links[path] = (WEIGHTS * 1000, Faults(rate=1))
    (note,) = sources.facts("org/Style.v2").notes
    assert "did not answer within" in note
    assert sources.facts(url).name == "slow"
