"""Makes a card from what Civitai's API says about a version of a model."""

from __future__ import annotations

from collections.abc import Iterator

from sd_api.card import Card
from sd_api.choices import Pictures
from sd_api.sites.civitai_facts import CivitaiFacts, CivitaiImage, CivitaiLicence
from sd_api.sites.clean import page, text, words

_SAFE = 1
"""Civitai's rating PG, for everyone. Other ratings are higher powers of two."""
_NO_USE = "None"
"""The only item of a list of commercial uses if the creator allows none."""


def card_of_civitai(facts: CivitaiFacts, endpoint: str) -> Card:
    """Return the card of a version. endpoint: the site that has the version's page."""
    return Card(
        title=_title(facts),
        based_on=text(facts.base_model),
        license=text("; ".join(_terms(facts.licence))),
        author=text(facts.creator),
        page=_page(facts, endpoint),
        trigger_words=words(facts.trained_words),
    )


def picture_of(facts: CivitaiFacts, allowed: Pictures) -> str | None:
    """Return the url of the first picture that is allowed. None if none is allowed."""
    for image in facts.images:
        if not image.is_video and _is_allowed(image, allowed):
            return image.url
    return None


def _is_allowed(image: CivitaiImage, allowed: Pictures) -> bool:
    match allowed:
        case Pictures.SAFE:
            return image.nsfw_level == _SAFE
        case Pictures.ALL:
            return True
        case Pictures.NONE:
            return False


def _title(facts: CivitaiFacts) -> str | None:
    name, version = text(facts.model_name), text(facts.version_name)
    return text(f"{name} ({version})") if name and version else name


def _page(facts: CivitaiFacts, endpoint: str) -> str | None:
    found = page(f"{endpoint}/models/{facts.model_id}") if facts.model_id is not None else None
    # The version is added last, because `page` removes the query of a link.
    return f"{found}?modelVersionId={facts.version_id}" if found else None


def _terms(licence: CivitaiLicence) -> Iterator[str]:
    """Yield what the creator demands or forbids by Civitai's switches."""
    if licence.no_credit is False:
        yield "credit the creator"
    if licence.commercial_use is not None:
        uses = [use for use in licence.commercial_use if use != _NO_USE]
        yield f"commercial use: {', '.join(uses)}" if uses else "no commercial use"
    if licence.derivatives is False:
        yield "no merges"
    if licence.different_licence is False:
        yield "merges under the same permissions"
