"""The list of models: the visitor's filter, its choices with counts, the order, storage. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from urllib.parse import urlencode

from sd_api.humanize import size
from sd_api.taxonomy import canonical, title_of
from sd_operator.gateway.gallery.views import Card

PAGE = 60
"""How many cards the list shows at first."""
SHOWN_MAX = 10_000
TEXT_MAX = 200

SORTS = {"": "Name", "newest": "Newest", "size": "Largest"}
"""The orders of the list by their value in the URL, with their labels."""
VIEWS = {"": "Cards", "compact": "Compact"}

_FIELDS = {"q": "text", "type": "type", "base": "base", "phase": "phase"}
"""The parameters of the URL that leave models out, and the attribute of Filter for each."""
_FACETS = ("type", "base", "phase")


@dataclass(frozen=True)
class Filter:
    """Which models the list shows, and how. An empty field matches every model."""

    text: str = ""
    type: str = ""
    base: str = ""
    phase: str = ""
    sort: str = ""
    """A key of SORTS."""
    view: str = ""
    """A key of VIEWS."""
    select: bool = False
    """Whether each model has a check box, to delete several."""
    show: int = PAGE
    """The maximum number of cards."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """Return the filter of a URL's query; invalid values of sort, view and show are ignored."""
        sort, view, show = (query.get(name, "") for name in ("sort", "view", "show"))
        return cls(
            text=query.get("q", "").strip()[:TEXT_MAX],
            type=query.get("type", ""),
            base=query.get("base", ""),
            phase=query.get("phase", ""),
            sort=sort if sort in SORTS else "",
            view=view if view in VIEWS else "",
            select=query.get("select", "") != "",
            show=min(int(show), SHOWN_MAX) if show.isdecimal() and len(show) < 9 else PAGE,
        )

    @property
    def narrows(self) -> bool:
        """Whether the filter may leave models out."""
        return any(getattr(self, field) for field in _FIELDS.values())

    @property
    def query(self) -> str:
        """The filter as a URL query, without empty fields and without `show`."""
        fields = {name: getattr(self, field) for name, field in _FIELDS.items()}
        fields |= {"sort": self.sort, "view": self.view, "select": "yes" if self.select else ""}
        return urlencode({name: value for name, value in fields.items() if value})

    def url(self, *, view: str | None = None, select: bool | None = None, show: int = PAGE) -> str:
        """Return this filter as a URL query with some values changed: "?…", or empty."""
        changed = replace(
            self,
            view=self.view if view is None else view,
            select=self.select if select is None else select,
        )
        query = "&".join(filter(None, (changed.query, f"show={show}" if show != PAGE else "")))
        return f"?{query}" if query else ""

    def matches(self, card: Card) -> bool:
        """Return whether a card matches all fields: text, type, base and phase."""
        return self.has_words(card) and self.fits(card)

    def fits(self, card: Card, besides: str = "") -> bool:
        """Return whether a card has the filter's type, base and phase, apart from `besides`.

        besides: the name of a field that is ignored.
        """
        return all(
            getattr(self, facet) in ("", getattr(card, facet))
            for facet in _FACETS
            if facet != besides
        )

    def has_words(self, card: Card) -> bool:
        """Return whether the text names the card's base, or the card has all words of the text."""
        words = f"{card.name} {card.model_id} {card.type_name} {card.base} {card.source}".lower()
        return (self._named_base != "" and self._named_base == card.base) or all(
            word in words for word in self.text.lower().split()
        )

    @cached_property
    def _named_base(self) -> str:
        """The base model that the text names; empty if it names none."""
        base = canonical(self.text)
        return title_of(base) if base is not None else ""


@dataclass(frozen=True)
class Choice:
    """A value of a filter, and how many models it would show together with the other filters."""

    value: str
    label: str
    count: int


@dataclass(frozen=True)
class Storage:
    """The storage that the published files of models take."""

    models: int
    """How many models have published files."""
    published: int
    """Bytes of all published files, as if no files were shared."""
    shared: int
    """How many of these bytes are not stored twice, because models share equal files."""

    @property
    def text(self) -> str:
        """The storage in words; empty if nothing is published."""
        if not self.models:
            return ""
        if not self.shared:
            return f"{size(self.published)} on the volume"
        used = size(max(0, self.published - self.shared))
        return f"{used} on the volume, {size(self.shared)} saved by shared files"


def ordered(cards: Iterable[Card], sort: str) -> list[Card]:
    """Return the cards in an order of SORTS; cards with the same date or size by name."""
    by_name = sorted(cards, key=attrgetter("name"))
    match sort:
        case "newest":
            return sorted(by_name, key=attrgetter("created"), reverse=True)
        case "size":
            return sorted(by_name, key=attrgetter("bytes"), reverse=True)
        case _:
            return by_name


def choices(cards: Sequence[Card], chosen: Filter) -> dict[str, list[Choice]]:
    """Return the values of each filter, by its name in the URL, with their counts.

    A value that is chosen is listed even if no model has it.
    """
    worded = [card for card in cards if chosen.has_words(card)]
    return {facet: _choices(facet, cards, worded, chosen) for facet in _FACETS}


def _choices(
    facet: str, cards: Sequence[Card], worded: Sequence[Card], chosen: Filter
) -> list[Choice]:
    counts = Counter(getattr(card, facet) for card in worded if chosen.fits(card, besides=facet))
    labels = {
        getattr(card, facet): card.type_name if facet == "type" else getattr(card, facet)
        for card in cards
    }
    chosen_value = getattr(chosen, facet)
    labels.setdefault(chosen_value, chosen_value)
    labels.pop("", None)
    return [
        Choice(value, label, counts[value])
        for value, label in sorted(labels.items(), key=lambda item: item[1].lower())
    ]


def storage(cards: Iterable[Card]) -> Storage:
    """Return the storage that the published files of these models take."""
    published = [card for card in cards if card.version]
    return Storage(
        models=len(published),
        published=sum(card.bytes for card in published),
        shared=sum(card.shared_bytes for card in published),
    )
