"""The tokens that were added to a tokenizer, in each form in which transformers has written them.

    added_tokens.json                              ids by word; until 4.57
    tokenizer_config.json, added_tokens_decoder    tokens by id; from 4.34 to 4.57
    tokenizer.json, added_tokens                   a list of tokens with ids
    bos_token, eos_token, …                        a word, or a token without an id
    additional_special_tokens                      a list of such words or tokens
    extra_special_tokens                           the same list, since 5

The numbers are versions of transformers. Since 5, tokenizer.json is the only file with ids. The
last three forms are in tokenizer_config.json or special_tokens_map.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet, snippet

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that have a name, in the order in which transformers adds them."""
ADDITIONAL = "additional_special_tokens"
DECODER = "added_tokens_decoder"

_LISTS = (ADDITIONAL, "extra_special_tokens")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_MOST_CHARS = 512
_MOST_DIGITS = 20


@dataclass(frozen=True)
class TokenizerConfigs:
    """The parsed JSON files of a tokenizer. A file that the repo does not have is empty."""

    config: Mapping[str, Any]
    """tokenizer_config.json"""

    special: Mapping[str, Any]
    """special_tokens_map.json"""

    added: Mapping[str, Any]
    """added_tokens.json"""

    single: Mapping[str, Any]
    """tokenizer.json"""


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that were added to a tokenizer, which never splits them."""

    ids: Mapping[str, int]
    """The id of each of these tokens."""

    decoder: Mapping[str, Mapping[str, Any]]
    """The tokens in the form of `added_tokens_decoder`."""

    named: Mapping[str, str]
    """The special tokens that have a name, such as `eos_token`, by this name."""

    additional: tuple[str, ...]
    """The special tokens without names."""


@dataclass(frozen=True)
class _Token:
    content: str
    flags: Mapping[str, bool]
    id: int | None = None


def added_tokens(
    configs: TokenizerConfigs, usual: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> AddedTokens:
    """Find the tokens that were added, and their ids. Refuse forms that contradict each other.

    usual: the bundled values of special tokens, for those that the repo does not name. A token
    without an id gets the id of its word in the vocabulary, or else the next number.
    """
    named = {
        name: _token(value, name, is_special=True) for name, value in _named(configs, usual).items()
    }
    additional = list(_additional(configs))
    tokens: dict[str, _Token] = {}
    for token in chain(_with_ids(configs, named, additional), named.values(), additional):
        known = tokens.setdefault(token.content, token)
        if token.id not in (None, known.id):
            refuse(f"the token {snippet(token.content)} has two ids")
    ids = dict(vocabulary)
    for token in tokens.values():
        number = ids.get(token.content, len(ids)) if token.id is None else token.id
        if ids.setdefault(token.content, number) != number:
            refuse(f"the token {snippet(token.content)} has two ids")
    own = sorted(
        ((ids[content], token) for content, token in tokens.items()), key=lambda entry: entry[0]
    )
    return AddedTokens(
        ids={token.content: number for number, token in own},
        decoder={str(number): {"content": token.content, **token.flags} for number, token in own},
        named={name: token.content for name, token in named.items()},
        additional=tuple(dict.fromkeys(token.content for token in additional)),
    )


def check_ids(ids: Mapping[str, int], rows: int) -> None:
    """Refuse an id that two tokens share, and an id for which the text encoder has no row."""
    words: dict[int, str] = {}
    for word, number in ids.items():
        if not 0 <= number < rows:
            refuse(
                f"the token {snippet(word)} has the id {snippet(str(number), _MOST_DIGITS)}; its"
                f" text encoder has {rows} tokens, with ids from 0 to {rows - 1}"
            )
        other = words.setdefault(number, word)
        if other != word:
            refuse(f"the tokens {snippet(other)} and {snippet(word)} have the same id, {number}")


def check_word(word: object) -> str:
    """Return a token's text. Refuse one that the tokenizers library does not read."""
    if not isinstance(word, str) or not 0 < len(word) <= _MOST_CHARS:
        refuse(f"a token is not a text of 1 to {_MOST_CHARS} characters: {json_snippet(word, 20)}")
    try:
        word.encode()
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair.
        refuse(f"a token is not valid Unicode: {snippet(word)}")
    return word


def _named(configs: TokenizerConfigs, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens by name. transformers since 4.34 prefers tokenizer_config.json.

    Older versions, whose config has no added_tokens_decoder, prefer special_tokens_map.json.
    """
    order = (configs.config, configs.special)
    first, second = order if DECODER in configs.config else order[::-1]
    values = {name: first.get(name) or second.get(name) or usual.get(name) for name in NAMED}
    return {name: value for name, value in values.items() if value is not None}


def _additional(configs: TokenizerConfigs) -> Iterator[_Token]:
    for content in (configs.config, configs.special):
        for key in _LISTS:
            values = content.get(key) or []
            if isinstance(values, dict):  # Since 5, each token has a name.
                values = list(values.values())
            if not isinstance(values, list):
                refuse(f"{key} is not a list of tokens")
            for value in values:
                yield _token(value, key, is_special=True)


def _with_ids(
    configs: TokenizerConfigs, named: Mapping[str, _Token], additional: list[_Token]
) -> Iterator[_Token]:
    """Yield the tokens of the forms that have ids. The form with the most details comes first."""
    decoder = configs.config.get(DECODER, {})
    if not isinstance(decoder, dict):
        refuse(f"{DECODER} in tokenizer_config.json is not a table of tokens by id")
    for number, value in decoder.items():
        is_number = number.isascii() and number.isdigit() and len(number) < _MOST_DIGITS
        yield _token(value, DECODER, _id(int(number) if is_number else number, DECODER))
    entries = configs.single.get("added_tokens") or []
    if not isinstance(entries, list):
        refuse("added_tokens in tokenizer.json is not a list of tokens")
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        yield _token(entry, "added_tokens in tokenizer.json", _id(number, "tokenizer.json"))
    special = {token.content for token in (*named.values(), *additional)}
    for word, number in configs.added.items():
        name = "added_tokens.json"
        yield _token(word, name, _id(number, name), is_special=word in special)


def _id(value: object, where: str) -> int:
    if type(value) is not int:
        refuse(f"an id in {where} is not a whole number: {json_snippet(value, 20)}")
    return value


def _token(
    value: object, where: str, number: int | None = None, *, is_special: bool = False
) -> _Token:
    """Read a word, or a token with its flags. is_special: the default of the flag `special`."""
    entry = {"content": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or "content" not in entry:
        refuse(f"{where} has a value that is not a token: {json_snippet(value, 20)}")
    special = entry.get("special", is_special)
    defaults = {**dict.fromkeys(_FLAGS, False), "normalized": not special, "special": special}
    flags = {flag: entry.get(flag, default) for flag, default in defaults.items()}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        refuse(f"{where} has a token whose flags are not true or false")
    return _Token(check_word(entry["content"]), flags, number)


def refuse(problem: str) -> NoReturn:
    """Refuse a tokenizer that transformers does not read, or that its versions read differently."""
    raise LoaderError(Reason.CONVERSION_FAILED, problem)
