"""Plans a repo's CLIP tokenizer so that all versions of transformers make the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_added_tokens import (
    ADDITIONAL,
    DECODER,
    TokenizerConfigs,
    added_tokens,
    check_ids,
    check_word,
    refuse,
)
from sd_loader.convert.plan.repo_configs import read_json, read_small
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.diffusers_repo.index import parse_json
from sd_loader.errors import LoaderError, prefixing
from sd_loader.snippet import snippet

_FLAGS = ("add_prefix_space", "clean_up_tokenization_spaces", "do_lower_case")
_ERRORS = ("ignore", "replace", "strict")
"""Allowed values of a tokenizer's setting `errors`: names of Python's error handlers."""
_LEAST_LENGTH = 3
"""Minimum of model_max_length: the start token, a word and the end token."""
_VERSION = "#version"
_MOST_MERGES = 49152 - 256 - 2
"""Maximum number of merges. Older versions of transformers ignore all further ones."""


def tokenizer_files(
    folder: Path, component: str, templates: Mapping[str, Any], dimensions: Dimensions
) -> list[SmallFile]:
    """The published folder of a tokenizer: vocabulary, merges and configs.

    folder: the tokenizer's folder in the repo. templates: the bundled files that complete it.
    dimensions: those of its text encoder, among others.
    """
    configs = TokenizerConfigs(
        config=_optional(folder / "tokenizer_config.json"),
        special=_optional(folder / "special_tokens_map.json"),
        added=_optional(folder / "added_tokens.json"),
        single=_optional(folder / "tokenizer.json"),
    )
    vocabulary, merges = (folder / name for name in VOCABULARY_FILES)
    pair = None
    if vocabulary.is_file() and merges.is_file():
        pair = read_json(vocabulary), read_small(merges)
    encoder = component.replace("tokenizer", "text_encoder")
    with prefixing(component):
        files = _files(
            configs,
            _from_one_file(configs.single) if pair is None else _from_two_files(*pair),
            templates[f"{component}/tokenizer_config.json"],
            rows=dimensions[f"{encoder}_vocabulary"],
            positions=dimensions[f"{encoder}_positions"],
        )
    return [replace(file, path=f"{component}/{file.path}") for file in files]


def _files(
    configs: TokenizerConfigs,
    words: tuple[object, Iterable[object]],
    usual: Mapping[str, Any],
    rows: int,
    positions: int,
) -> list[SmallFile]:
    """Return the files of the tokenizer's folder.

    The published vocabulary contains the tokens that were added, so that they keep their ids:
    transformers since 5 gives new ids to tokens that are not in the vocabulary.

    words: the vocabulary, and pairs of words to merge. rows: how many tokens the text encoder
    knows. positions: how many tokens it reads at a time.
    """
    vocabulary = _vocabulary(words[0])
    merges = _merges(words[1], vocabulary)
    added = added_tokens(configs, usual, vocabulary)
    ids = {**vocabulary, **added.ids}
    check_ids(ids, rows)
    special = {**added.named, **({ADDITIONAL: added.additional} if added.additional else {})}
    config = {
        **{key: usual[key] for key in (*_FLAGS, "errors")},
        **_settings(configs.config, positions),
        **special,
        DECODER: added.decoder,
        "tokenizer_class": "CLIPTokenizer",
    }
    return [
        SmallFile(VOCABULARY_FILES[0], _vocabulary_file(ids)),
        SmallFile(VOCABULARY_FILES[1], _merges_file(merges)),
        json_file("tokenizer_config.json", config),
        json_file("special_tokens_map.json", special),
    ]


def _settings(config: Mapping[str, Any], positions: int) -> dict[str, Any]:
    """Return the repo's valid settings. None of these changes the tokens of a prompt."""
    kept: dict[str, Any] = {key: config[key] for key in _FLAGS if type(config.get(key)) is bool}
    if config.get("errors") in _ERRORS:
        kept["errors"] = config["errors"]
    # transformers writes 10**30 for "unknown". With that, a long prompt would not be cut.
    length = config.get("model_max_length")
    is_fitting = type(length) is int and _LEAST_LENGTH <= length <= positions
    return {**kept, "model_max_length": length if is_fitting else positions}


def _from_two_files(vocabulary: object, merges: bytes) -> tuple[object, Iterable[object]]:
    try:
        lines = merges.decode().split("\n")
    except UnicodeDecodeError:
        refuse("merges.txt is not a text in UTF-8")
    return vocabulary, [
        line.removesuffix("\r").split(" ")
        for line in lines
        if line.strip() and not line.startswith(_VERSION)
    ]


def _from_one_file(tokenizer: Mapping[str, Any]) -> tuple[object, Iterable[object]]:
    """Vocabulary and merges from tokenizer.json, the only file that newer transformers save."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            "it has neither vocab.json and merges.txt nor a tokenizer.json of type BPE",
        )
    merges = model.get("merges")
    # A pair is a list or, in older files, a text of two words.
    return model.get("vocab"), [
        pair.split(" ") if isinstance(pair, str) else pair
        for pair in (merges if isinstance(merges, list) else [None])
    ]


def _vocabulary(vocabulary: object) -> dict[str, int]:
    if (
        not isinstance(vocabulary, dict)
        or not vocabulary
        or not all(type(number) is int for number in vocabulary.values())
    ):
        refuse("the tokenizer's vocabulary is not a table of ids by word")
    for word in vocabulary:
        check_word(word)
    return vocabulary


def _merges(pairs: Iterable[object], vocabulary: Mapping[str, int]) -> list[str]:
    """The lines of merges.txt. Refuse a merge that the tokenizers library does not accept."""
    lines = []
    for pair in pairs:
        if not isinstance(pair, list) or not all(isinstance(word, str) for word in pair):
            refuse("a merge is not two words")
        line = " ".join(pair)
        if len(pair) != 2 or line.split() != pair:
            refuse(f"a merge is not two words: {snippet(line, 40)}")
        if not all(word in vocabulary for word in (*pair, "".join(pair))):
            refuse(f"a merge has words that are not in the vocabulary: {snippet(line, 40)}")
        lines.append(line)
    if len(lines) > _MOST_MERGES:
        refuse(f"{len(lines)} merges; older versions of transformers read at most {_MOST_MERGES}")
    return lines


def _vocabulary_file(ids: Mapping[str, int]) -> bytes:
    name = VOCABULARY_FILES[0]
    bundled = vocabulary_file(name)
    # Most published models have exactly these bytes.
    return bundled if ids == parse_json(bundled, name) else json.dumps(ids).encode()


def _merges_file(lines: list[str]) -> bytes:
    return "\n".join([f"{_VERSION}: 0.2", *lines, ""]).encode()


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, rewritten=True) if path.is_file() else {}
