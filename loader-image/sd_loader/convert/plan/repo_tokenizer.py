"""The CLIP tokenizer of a repo, written so that old and new transformers read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_configs import read_json, read_small
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.diffusers_repo.index import parse_json
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet

_CONFIG_KEYS = (
    "add_prefix_space",
    "added_tokens_decoder",
    "bos_token",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "eos_token",
    "errors",
    "model_max_length",
    "pad_token",
    "unk_token",
)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_MAX_LENGTH = 77
_ABSURD_LENGTH = 10**6
"""transformers writes 10**30 for "unknown", which makes every prompt overflow."""


def tokenizer_files(folder: Path, component: str, templates: Mapping[str, Any]) -> list[SmallFile]:
    """The published folder of a tokenizer: vocabulary, merges and configs.

    folder: the tokenizer's folder in the repo. templates: the bundled files that complete it.
    """
    if all((folder / name).is_file() for name in VOCABULARY_FILES):
        _checked_vocabulary(read_json(folder / VOCABULARY_FILES[0]), component)
        files = [
            SmallFile(f"{component}/{name}", read_small(folder / name)) for name in VOCABULARY_FILES
        ]
    else:
        files = _from_one_file(folder, component)
    config = _optional(folder / "tokenizer_config.json")
    usual = templates[f"{component}/tokenizer_config.json"]
    known = {key: config[key] for key in _CONFIG_KEYS if key in config}
    length = known.get("model_max_length")
    if not isinstance(length, int) or length > _ABSURD_LENGTH:
        known["model_max_length"] = _MAX_LENGTH
    merged = {**usual, **known, "tokenizer_class": "CLIPTokenizer"}
    special = _optional(folder / "special_tokens_map.json")
    if not special:
        special = {
            **templates[f"{component}/special_tokens_map.json"],
            "pad_token": merged["pad_token"],
        }
    chosen = {key: special[key] for key in _SPECIAL_TOKENS if key in special}
    return [
        *files,
        json_file(f"{component}/tokenizer_config.json", merged),
        json_file(f"{component}/special_tokens_map.json", chosen),
    ]


def _from_one_file(folder: Path, component: str) -> list[SmallFile]:
    """Vocabulary and merges from tokenizer.json, the only file that newer transformers save."""
    tokenizer = _optional(folder / "tokenizer.json")
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{component} has neither vocab.json and merges.txt nor a tokenizer.json of their kind",
        )
    vocabulary = _checked_vocabulary(model.get("vocab"), component)
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or content not in vocabulary:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"{component}/tokenizer.json adds a token to its vocabulary:"
                f" {snippet(str(content))}",
            )
    if vocabulary == parse_json(vocabulary_file("vocab.json"), "vocab.json"):
        # The published models have exactly these bytes.
        contents = [vocabulary_file(name) for name in VOCABULARY_FILES]
    else:
        contents = [json.dumps(vocabulary).encode(), _merges(model.get("merges"), component)]
    return [
        SmallFile(f"{component}/{name}", content)
        for name, content in zip(VOCABULARY_FILES, contents, strict=True)
    ]


def _merges(merges: object, component: str) -> bytes:
    """merges.txt from the pairs of tokenizer.json. A pair is a list or, in older files, a line."""
    lines = ["#version: 0.2"]
    for pair in merges if isinstance(merges, list) else [None]:
        words = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(words, list) or [len(str(word).split()) for word in words] != [1, 1]:
            raise LoaderError(
                Reason.CONVERSION_FAILED, f"{component}/tokenizer.json: a merge is not two words"
            )
        lines.append(" ".join(str(word) for word in words))
    return ("\n".join(lines) + "\n").encode(errors="replace")


def _checked_vocabulary(vocabulary: object, component: str) -> dict[str, int]:
    if (
        not isinstance(vocabulary, dict)
        or not vocabulary
        or not all(type(number) is int for number in vocabulary.values())
    ):
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"{component}: the tokenizer's vocabulary is not one"
        )
    return vocabulary


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
