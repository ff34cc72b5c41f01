"""Finds the models that work together with a model: those of the same base model. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from sd_api.choices import PIPELINES, ModelType
from sd_operator.gateway.gallery.listing import Filter
from sd_operator.gateway.gallery.views import Card

SHOWN_MAX = 8

_ADAPTERS = {
    ModelType.LORA: "LoRAs",
    ModelType.CONTROLNET: "ControlNets",
    ModelType.VAE: "VAEs",
    ModelType.EMBEDDINGS: "Embeddings",
}


@dataclass(frozen=True)
class Related:
    """Published models of the same base and of one kind."""

    title: str
    cards: tuple[Card, ...]
    """The first SHOWN_MAX of these models, by name."""
    more: int
    """How many further models there are."""
    query: str
    """The query of the list that shows all these models."""


def related(card: Card, others: Iterable[Card]) -> tuple[Related, ...]:
    """Return the published models that work together with this one, in groups.

    A pipeline takes adapters of its base; an adapter is for pipelines of its base.
    """
    if not card.base:
        return ()
    same = [other for other in others if other.base == card.base and other.version]
    same = sorted((other for other in same if other.name != card.name), key=attrgetter("name"))
    if card.type in PIPELINES:
        groups = [_of_type(kind, card.base, same) for kind in _ADAPTERS]
    else:
        pipelines = [other for other in same if other.type in PIPELINES]
        groups = [_group("Models to use it with", pipelines, Filter(base=card.base))]
    return tuple(group for group in groups if group.cards)


def _of_type(kind: ModelType, base: str, cards: list[Card]) -> Related:
    matches = [card for card in cards if card.type == kind]
    return _group(_ADAPTERS[kind], matches, Filter(type=kind.value, base=base))


def _group(title: str, cards: list[Card], shows_all: Filter) -> Related:
    return Related(
        title=title,
        cards=tuple(cards[:SHOWN_MAX]),
        more=max(0, len(cards) - SHOWN_MAX),
        query=shows_all.url(),
    )
