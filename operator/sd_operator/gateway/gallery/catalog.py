"""The starter catalog as the gallery offers it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sd_api import names
from sd_api.starters import STARTERS, Starter
from sd_operator.gateway.gallery.views import TYPES, Card


@dataclass(frozen=True)
class Offer:
    """A model of the starter catalog."""

    starter: Starter
    type_name: str
    card: Card | None
    """The existing model with the starter's name; None if there is no such model."""


@dataclass(frozen=True)
class Offers:
    """The starter catalog, with the ControlNets in a separate group."""

    models: tuple[Offer, ...]
    controlnets: tuple[Offer, ...]


def offers(cards: Iterable[Card]) -> Offers:
    """Return the starter catalog. cards: the existing models, which are matched by name."""
    present = {card.name: card for card in cards}
    all_offers = [
        Offer(starter, TYPES[starter.model_type], present.get(starter.name)) for starter in STARTERS
    ]
    return Offers(
        models=tuple(offer for offer in all_offers if offer.starter.url is not None),
        controlnets=tuple(offer for offer in all_offers if offer.starter.url is None),
    )


def manifest(name: str) -> dict[str, Any] | None:
    """Return the resource of a starter model. None if the catalog does not have the name."""
    starter = next((starter for starter in STARTERS if starter.name == name), None)
    if starter is None:
        return None
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": starter.name},
        "spec": starter.spec,
    }
