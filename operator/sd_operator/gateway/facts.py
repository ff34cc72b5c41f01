"""Turns what a source says about a model into rows and notes for people. Pure.

`lookups` asks the sources. Every text from a source is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from sd_api.card import Card, plain
from sd_api.humanize import size
from sd_api.sites import clean
from sd_api.sites.civitai_answers import ModelAnswer, VersionAnswer, obstacle_of
from sd_api.sites.civitai_card import card_of_civitai
from sd_api.sites.civitai_choice import Chosen, NoFileError, choose, describe
from sd_api.sites.hub_answers import RepoAnswer
from sd_api.sources import FileChoice
from sd_api.taxonomy import canonical, title_of
from sd_operator.gateway.naming import proposed_name

Rows = tuple[tuple[str, str], ...]
"""Titles and values."""

FOUND_LATER = "is found when it loads"
_SUFFIX_MAX_LENGTH = 11
"""Maximum length of a suffix that is cut off before a name is proposed, such as "safetensors". A
longer text after the last dot stays: the file has no suffix."""
_TYPES = {
    "checkpoint": "Checkpoint",
    "controlnet": "ControlNet",
    "dora": "DoRA",
    "locon": "LoCon, a kind of LoRA",
    "lora": "LoRA",
    "textualinversion": "Embedding",
    "vae": "VAE",
}
"""Words for the types that Civitai's API names. Types that are not listed are shown as they are."""


@dataclass(frozen=True)
class Facts:
    """What a source says about a model."""

    host: str
    """The source's host, with its port if the url names one."""

    rows: Rows = ()

    page: str = ""
    """The link to the model's web page at the source; empty if it has no page."""

    notes: tuple[str, ...] = ()
    """Sentences: what may keep the model from loading, and what to do."""

    name: str = ""
    """The proposed name of the resource; empty if no name can be made from the source's texts."""

    is_gated: bool = False
    """Whether the source asks for a token."""

    def with_notes(self, *notes: str) -> Facts:
        """Return these facts with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def of_civitai(
    version: VersionAnswer,
    model: ModelAnswer | None,
    choice: FileChoice,
    endpoint: str,
    today: str,
) -> Facts:
    """Return the facts about a version at Civitai.

    model: None if it is not known. choice: the file that the url asks for. endpoint: the URL of
    Civitai or its mirror. today: as YYYY-MM-DD.
    """
    stated = version.facts
    if model is not None:
        stated = stated.model_copy(update={"creator": model.creator, "licence": model.licence})
    card = card_of_civitai(stated, endpoint)
    obstacle = obstacle_of(version, today)
    notes = []
    if obstacle:
        notes.append(f"This version {obstacle.words}.")
    chosen: Chosen | None = None
    try:
        chosen = choose(version, choice, None)
    except NoFileError as error:
        if not obstacle:
            notes.append(f"This version cannot be loaded: {error}.")
    if chosen and chosen.others and choice == FileChoice():
        notes.append(
            f"The version has {chosen.others + 1} files. To load another one, add ?format=, ?size="
            " or ?fp= to the link."
        )
    file_size = chosen.file.size_bytes if chosen else None
    rows = _rows(
        card,
        _type_at_civitai(clean.text(stated.model_type)),
        None if file_size is None else size(file_size),
        None if chosen is None else describe(chosen.file),
        licence=card.license or ("no conditions" if model else None),
    )
    name = proposed_name(stated.model_name or "", f"civitai-{stated.model_id or stated.version_id}")
    return Facts(host_of(endpoint), rows, card.page or "", tuple(notes), name)


def of_repo(repo: RepoAnswer, path: str | None, endpoint: str) -> Facts:
    """Return the facts about a repo of the Hub, or about one of its files.

    path: the file's path; None for the whole repo. endpoint: the URL of the Hub or its mirror.
    """
    card = repo.card
    notes = [_gated(card.page)] if repo.is_gated else []
    kind, stated_size = None, None
    if path is not None:
        file_size = repo.files.get(path)
        stated_size = None if file_size is None else size(file_size)
        if path not in repo.files:
            notes.append("The repo does not have this file; correct the link.")
    else:
        if repo.is_pipeline:
            kind = "Diffusers pipeline"
            kind += f" ({repo.pipeline_class})" if repo.pipeline_class else ""
        if repo.files and repo.size_bytes is not None:
            stated_size = f"{size(repo.size_bytes)} in the repo; a load takes what it needs"
    name = proposed_name(card.title or "", repo.repo_id)
    file = None if path is None else clean.text(path)
    rows = _rows(card, kind, stated_size, file, licence=card.license)
    return Facts(host_of(endpoint), rows, card.page or "", tuple(notes), name, repo.is_gated)


def of_link(url: str, file_name: str | None = None, file_size: int | None = None) -> Facts:
    """Return the facts about a link.

    file_name: the name that the server states; if it is None, the name in the link is shown.
    file_size: None if it is not known.
    """
    shown = clean.text(file_name) or clean.text(_file_in(url))
    rows = (
        ("Host", host_of(url)),
        ("File", shown),
        ("Size", None if file_size is None else size(file_size)),
        ("Type", FOUND_LATER),
    )
    stem, dot, suffix = (shown or "").rpartition(".")
    has_suffix = dot and len(suffix) <= _SUFFIX_MAX_LENGTH
    name = proposed_name(stem if has_suffix else shown or "", host_of(url))
    return Facts(host_of(url), _known(rows), name=name)


def of_name(url: str, text: str) -> Facts:
    """Return the facts about a source that was not asked.

    url: the source's url. text: the part of the url from which the resource's name is made.
    """
    host = host_of(url)
    return Facts(host, (("Host", host), ("Type", FOUND_LATER)), name=proposed_name(text))


def _file_in(url: str) -> str:
    try:
        return unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        return ""


def host_of(url: str) -> str:
    """Return a link's host, with its port if the link names one; empty if it cannot be read."""
    try:
        return plain(urlsplit(url).netloc.rpartition("@")[2])
    except ValueError:
        return ""


def _rows(
    card: Card, kind: str | None, file_size: str | None, file: str | None, *, licence: str | None
) -> Rows:
    return _known(
        (
            ("Title", card.title),
            ("Type", kind or FOUND_LATER),
            ("Base model", _base(card.based_on)),
            ("Size", file_size),
            ("File", file),
            ("Licence", licence or "not stated"),
            ("Author", card.author),
            ("Words for prompts", ", ".join(card.trigger_words)),
        )
    )


def _known(rows: Iterable[tuple[str, str | None]]) -> Rows:
    return tuple((title, text) for title, text in rows if text)


def _base(stated: str | None) -> str | None:
    """Return a base model as the source names it; add the family if it is not in the name."""
    family = canonical(stated) if stated else None
    title = title_of(family) if family else None
    is_shown = not title or _folded(title) in _folded(stated or "")
    return stated if is_shown else f"{stated} ({title})"


def _folded(text: str) -> str:
    return text.lower().replace(" ", "")


def _type_at_civitai(stated: str | None) -> str | None:
    return stated and _TYPES.get(stated.lower(), stated)


def _gated(page: str | None) -> str:
    where = f"on {page}" if page else "on its page"
    return (
        f"This repo is gated. Accept its terms {where}. A load then needs your account's token: put"
        " it into a Secret of this namespace, and name the Secret under “Access”. If you name none,"
        " the load uses the token that the administrator keeps for this host, if callers of the"
        " gateway may use it."
    )
