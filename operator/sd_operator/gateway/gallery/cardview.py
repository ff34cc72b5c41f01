"""The texts of a model card for the page of a model. Pure; the texts are untrusted."""

from __future__ import annotations

from dataclasses import dataclass

from sd_operator.resources.model import Model


@dataclass(frozen=True)
class CardView:
    """The texts of a model card. Nobody has checked them."""

    title: str
    words: tuple[str, ...]
    """Words for prompts: the embedding's word, or the trigger words."""
    facts: tuple[tuple[str, str], ...]
    """Titles and values."""
    settings: tuple[tuple[str, str], ...]
    """Titles and values of the settings with which the model is meant to be used."""
    page: str
    """The link to the model's web page at its source; empty if it is not known."""

    @property
    def prompt(self) -> str:
        """The words as a part of a prompt."""
        return ", ".join(self.words)


def card_view(model: Model) -> CardView | None:
    """Return the model card. None before the model is published, or if its card is empty."""
    card = model.status.artifact.card if model.status.artifact else None
    if card is None or card.or_none() is None:
        return None
    facts = (
        ("Author", card.author),
        ("Licence", card.license),
        ("Based on", card.based_on),
    )
    settings = (
        ("Native resolution", card.resolution and card.resolution.replace("x", " by ")),
        ("Settings", card.recommended),
    )
    return CardView(
        title=card.title or "",
        words=(card.word,) if card.word else card.trigger_words,
        facts=tuple((title, text) for title, text in facts if text),
        settings=tuple((title, text) for title, text in settings if text),
        page=card.page or "",
    )
