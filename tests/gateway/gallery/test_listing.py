"""Tests of the list of models: the filter, its choices, the order, storage, related models."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import parse_qsl

import pytest

from sd_operator.base import times
from sd_operator.gateway.gallery import listing, live, views
from sd_operator.gateway.gallery.listing import Filter
from sd_operator.gateway.gallery.pages import render
from sd_operator.gateway.gallery.related import related
from tests.support.gateway.gallerymodels import card_of, loading, ready
from tests.support.rules.observed import UID, body

BORN = datetime(2026, 1, 2, tzinfo=UTC)


def card(name: str, model_type: str, base: str | None = "sd-1", **fields: object) -> views.Card:
    """Return the card of a published model; `fields` are fields of its artifact."""
    status = ready(UID, name, baseModel=base, **fields)
    return card_of(body(status, name=name, modelType=model_type))


SHELF = [
    card("ink", "lora"),
    card("oil", "lora", "sdxl", sizeBytes=3_000),
    card("paint", "custom_ckpt", sizeBytes=9_000, sharedBytes=4_000),
    card_of(body(loading(10), name="young", modelType="lora")),
]


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        pytest.param({}, True, id="no-filter"),
        pytest.param({"text": "SKE"}, True, id="part-of-the-name"),
        pytest.param({"text": "example checkpoint"}, True, id="words-in-different-fields"),
        pytest.param({"text": "example lora"}, False, id="one-word-missing"),
        pytest.param({"text": "SD 1.5"}, True, id="base-model-in-other-words"),
        pytest.param({"text": "sdxl"}, False, id="other-base-model"),
        pytest.param({"text": "secret"}, False, id="secret-in-the-source"),
        pytest.param({"type": "custom_ckpt"}, True, id="type"),
        pytest.param({"type": "lora"}, False, id="other-type"),
        pytest.param({"phase": "Pending"}, True, id="phase"),
        pytest.param({"phase": "Ready"}, False, id="other-phase"),
        pytest.param({"base": "SD 1"}, True, id="base"),
        pytest.param({"base": "SDXL"}, False, id="other-base"),
    ],
)
def test_filter_matches_by_text_type_phase_and_base_model(fields, matches):
    """Every word of the text must occur in some field, or the text names the base model.

    Secrets cannot be searched for.
    """
    link = "https://example.com/m.safetensors?token=secret"
    source = body(url=link, modelType="custom_ckpt")
    assert Filter(**fields).matches(replace(card_of(source), base="SD 1")) is matches


def test_query_of_a_filter_has_only_its_set_fields():
    """An empty filter has an empty query."""
    assert Filter().query == Filter().url() == ""
    assert Filter(text="a&b", phase="Ready").query == "q=a%26b&phase=Ready"
    assert Filter(base="SD 1").url(view="compact", show=120) == "?base=SD+1&view=compact&show=120"


def test_filter_is_read_from_the_url():
    """Unknown orders, views and numbers are ignored; the number of shown models is limited.

    The query of a filter gives the same filter again.
    """
    query = {"q": " ink ", "base": "SDXL", "sort": "size", "view": "compact", "select": "yes"}
    chosen = Filter("ink", "", "SDXL", "", "size", "compact", True, 9)
    assert Filter.of(query | {"show": "9"}) == chosen
    assert Filter.of(dict(parse_qsl(chosen.url(show=9).removeprefix("?")))) == chosen
    assert Filter.of({"sort": "x", "view": "x", "show": "-1"}) == Filter()
    assert Filter.of({"show": "99999999"}).show == listing.SHOWN_MAX
    assert not Filter(sort="size", view="compact", select=True).narrows


@pytest.mark.parametrize(
    ("chosen", "facet", "counts"),
    [
        pytest.param(Filter(), "type", {"Checkpoint": 1, "LoRA": 3}, id="type"),
        pytest.param(Filter(), "base", {"SD 1": 2, "SDXL": 1}, id="base"),
        pytest.param(Filter(), "phase", {"Downloading": 1, "Ready": 3}, id="phase"),
        pytest.param(
            Filter(type="lora"),
            "type",
            {"Checkpoint": 1, "LoRA": 3},
            id="not-its-own-choice",
        ),
        pytest.param(Filter(type="lora"), "base", {"SD 1": 1, "SDXL": 1}, id="other-choice-counts"),
        pytest.param(Filter("in"), "base", {"SD 1": 2, "SDXL": 0}, id="text-counts"),
        pytest.param(
            Filter(phase="Failed"),
            "phase",
            {"Downloading": 1, "Failed": 0, "Ready": 3},
            id="chosen-value-without-models",
        ),
    ],
)
def test_each_choice_of_a_filter_has_the_count_that_it_would_show(chosen, facet, counts):
    """The count of a value takes the text and the other filters into account."""
    found = listing.choices(SHELF, chosen)[facet]
    assert {choice.label: choice.count for choice in found} == counts


@pytest.mark.parametrize(
    ("sort", "names"),
    [("", "big mid new"), ("newest", "new big mid"), ("size", "big mid new")],
)
def test_list_has_the_chosen_order(sort, names):
    """Equal models are in the order of their names."""
    bodies = [body(name="mid"), body(ready(UID, "big"), name="big"), body(name="new")]
    bodies[2]["metadata"]["creationTimestamp"] = times.stamp(BORN)
    assert [one.name for one in listing.ordered(map(card_of, bodies), sort)] == names.split()


def test_storage_counts_shared_files_once():
    """A file that several models share counts once, not once for each of the models."""
    small = listing.storage(SHELF[1:])
    assert (small.models, small.published, small.shared) == (2, 12_000, 4_000)
    assert small.text == "8.0 kB on the volume, 4.0 kB saved by shared files"
    assert listing.storage(SHELF[1:2]).text == "3.0 kB on the volume"
    assert listing.storage(SHELF[3:]).text == ""


def test_pipeline_lists_the_adapters_of_its_base():
    """Models of another base, of an unknown base and unpublished models are left out."""
    (group,) = related(SHELF[2], SHELF)
    assert (group.title, [one.name for one in group.cards]) == ("LoRAs", ["ink"])
    assert group.query == "?type=lora&base=SD+1"
    many = [card(f"ink-{number}", "lora") for number in range(10)]
    (group,) = related(SHELF[2], many)
    assert (len(group.cards), group.more) == (8, 2)


def test_adapter_lists_the_models_of_its_base():
    """A LoRA does not list other LoRAs, and one of unknown base lists nothing."""
    (group,) = related(SHELF[0], SHELF)
    assert (group.title, [one.name for one in group.cards]) == ("Models to use it with", ["paint"])
    assert related(SHELF[3], SHELF) == ()


def test_list_of_a_thousand_models_takes_little_time():
    """Reading, filtering, counting and rendering take less than half a second of processor time."""
    bodies = []
    for number in range(1000):
        bodies.append(body(ready(UID, f"m-{number}"), name=f"m-{number}", modelType="lora"))
        bodies[-1]["metadata"]["uid"] = f"{number:08}{UID[8:]}"
    start = time.process_time()
    cards = [card_of(model) for model in bodies]
    chosen = Filter("m", type="lora")
    matches = listing.ordered(filter(chosen.matches, cards), "newest")
    text = list_page(cards, matches[: chosen.show], chosen, digest=live.digest(bodies))
    assert time.process_time() - start < 0.5
    assert text.count('id="open-m-') == listing.PAGE


def list_page(cards, shown, chosen, digest=""):
    """Render the list."""
    return render(
        "models.html",
        namespace="art",
        filter=chosen,
        cards=shown,
        images={},
        found=len(shown),
        total=len(cards),
        choices=listing.choices(cards, chosen),
        sorts=listing.SORTS,
        views=listing.VIEWS,
        storage=listing.storage(cards),
        starters=(),
        digest=digest,
    )


def test_list_can_be_compact_and_have_check_boxes():
    """Each link and form keeps the filter, the order and the view that it does not change."""
    chosen = Filter("ink", sort="newest", view="compact", select=True)
    text = list_page(SHELF, SHELF[:1], chosen)
    assert '<ul class="cards compact">' in text
    assert 'name="model" value="ink" id="pick-ink" hx-preserve="true"' in text
    assert 'href="/gallery/?q=ink&amp;sort=newest&amp;select=yes">Cards</a>' in text
    assert 'href="/gallery/?q=ink&amp;sort=newest&amp;view=compact">Stop selecting</a>' in text
    assert '<input type="hidden" name="view" value="compact">' in text
    plain = list_page(SHELF, SHELF[:1], Filter())
    assert 'type="checkbox"' not in plain
    assert '<ul class="cards">' in plain
