"""What the source and the file say about a model, as its page shows it. Pure and untrusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_operator.resources.model import Model

WORDS_MAX = 20


@dataclass(frozen=True)
class CardView:
    """The model card. Nobody has checked what it says."""

    title: str
    words: tuple[str, ...]
    """Words for prompts: the embedding's word, or the trigger words."""
    facts: tuple[tuple[str, str], ...]
    """Titles and values."""
    page: str
    """The model's page at its source; empty if it is not known."""

    @property
    def prompt(self) -> str:
        """The words as a part of a prompt."""
        return ", ".join(self.words)


def card_view(model: Model) -> CardView | None:
    """Return the model card. None if the source and the file say nothing."""
    raw = (model.raw_status.get("artifact") or {}).get("card")
    card = raw if isinstance(raw, dict) else {}
    word, page = _text(card, "word"), _text(card, "page")
    listed = card.get("triggerWords")
    words = [item for item in (listed if isinstance(listed, list) else []) if isinstance(item, str)]
    facts = (
        ("Author", _text(card, "author")),
        ("Licence", _text(card, "license")),
        ("Based on", _text(card, "basedOn")),
        ("Resolution", _text(card, "resolution").replace("x", " by ")),
        ("Recommended", _text(card, "recommended")),
    )
    view = CardView(
        title=_text(card, "title"),
        words=(word,) if word else tuple(words[:WORDS_MAX]),
        facts=tuple((title, text) for title, text in facts if text),
        page=page if page.startswith(("https://", "http://")) else "",
    )
    return None if view == CardView("", (), (), "") else view


def _text(card: dict[str, Any], name: str) -> str:
    value = card.get(name)
    return value if isinstance(value, str) else ""
