"""The model card: statements about a model from its source and its file, for people.

A card is untrusted text, which `sd_api.sites` and `sd_loader.card` read. Whoever wrote the card,
this module limits its size, and removes the characters that could control a terminal or reorder a
line.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints

from sd_api.fields import Extensible

CARD_MAX_BYTES = 900
"""Maximum size of a card in results and in the status: bytes of its JSON in UTF-8."""
TEXT_MAX = 120
"""Maximum number of characters in a text of a card."""
WORD_MAX = 64
"""Maximum number of characters in an embedding's word."""
TRIGGER_WORDS_MAX = 20
PAGE_PATTERN = r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9/._~:?#@!$&'()*+,;=%-]*)?$"
"""A page has no userinfo and is ASCII only, so that it leads where it seems to lead."""
_SHOWN_WORDS = 8
"""Maximum number of trigger words in a line for people."""


def plain(text: str) -> str:
    """Return the text on one line, without control, format and other unprintable characters."""
    printable = (char for char in " ".join(text.split()) if char.isprintable())
    return " ".join("".join(printable).split())


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


CardText = Annotated[
    str, BeforeValidator(_plain), StringConstraints(min_length=1, max_length=TEXT_MAX)
]
Page = Annotated[str, StringConstraints(max_length=512, pattern=PAGE_PATTERN)]


class Card(Extensible):
    """Statements about a model from its source and its file. Nobody has checked them.

    If not all fields fit, `short` prefers those that are declared first.
    """

    title: CardText | None = Field(default=None, description="The model's name at its source.")
    word: (
        Annotated[
            str, BeforeValidator(_plain), StringConstraints(min_length=1, max_length=WORD_MAX)
        ]
        | None
    ) = Field(default=None, description="The word by which prompts name an embedding.")
    based_on: CardText | None = Field(
        default=None, description="The base model by its trade name, such as Pony."
    )
    license: CardText | None = Field(default=None, description="The licence's name.")
    author: CardText | None = Field(default=None, description="Who made or uploaded the model.")
    resolution: (
        Annotated[str, StringConstraints(max_length=11, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$")] | None
    ) = Field(default=None, description="Width and height in pixels of the training images.")
    page: Page | None = Field(default=None, description="The model's page at its source.")
    trigger_words: Annotated[tuple[CardText, ...], Field(max_length=TRIGGER_WORDS_MAX)] = Field(
        default_factory=tuple,
        exclude_if=lambda words: not words,
        description="Words in prompts that the model was trained to answer to.",
    )
    recommended: CardText | None = Field(default=None, description="Recommended settings.")

    def over(self, other: Card) -> Card:
        """Return this card; fields that it lacks come from the other card."""
        own = self.model_dump(exclude_defaults=True)
        return Card.model_validate({**other.model_dump(exclude_defaults=True), **own})

    def short(self, limit: int = CARD_MAX_BYTES) -> Card | None:
        """Return a card of at most `limit` bytes. None if no field is left.

        A field that does not fit is shortened, or left out if its beginning would mean something
        else.
        """
        kept = NO_CARD
        for name in Card.model_fields:
            value = getattr(self, name)
            if not value:
                continue
            with_all = kept.model_copy(update={name: value})
            if with_all.nbytes <= limit:
                kept = with_all
            elif name not in _WHOLE:
                kept = kept._with_beginning(name, value, limit)
        return kept.or_none()

    def _with_beginning(self, name: str, value: str | tuple[str, ...], limit: int) -> Card:
        """Return this card with as much of a field's value as fits. Add nothing if none fits."""

        def with_first(count: int) -> Card:
            first = f"{value[:count].rstrip()}…" if isinstance(value, str) else value[:count]
            return self.model_copy(update={name: first})

        counts = range(1, len(value))
        fit = bisect_right(counts, limit, key=lambda count: with_first(count).nbytes)
        return with_first(counts[fit - 1]) if fit else self

    @property
    def nbytes(self) -> int:
        """Bytes of the card as JSON."""
        return len(self.encode().encode())

    def or_none(self) -> Card | None:
        """Return the card. None if it has no field."""
        return None if self == NO_CARD else self

    def encode(self, indent: int | None = None) -> str:
        """The card as JSON, without fields at their default."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True, indent=indent)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a card. Raise ValueError if the content is not a card."""
        return cls.model_validate_json(content, strict=True)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield title and text of each field that has a value, for people."""
        more = len(self.trigger_words) - _SHOWN_WORDS
        words = ", ".join(self.trigger_words[:_SHOWN_WORDS])
        yield from (
            (title, text)
            for title, text in (
                ("title", self.title),
                ("word", self.word),
                ("trigger words", f"{words} and {more} more" if more > 0 else words),
                ("based on", self.based_on),
                ("license", self.license),
                ("author", self.author),
                ("resolution", self.resolution),
                ("recommended", self.recommended),
                ("page", self.page),
            )
            if text
        )


_WHOLE = frozenset({"word", "resolution", "page"})
"""Fields that are never shortened, because a part of the value would mean something else."""

NO_CARD = Card()
"""The card of a model about which nothing is known."""
