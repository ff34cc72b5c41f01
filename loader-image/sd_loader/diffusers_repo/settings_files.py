"""Keeps only known settings in the small files of tokenizers, processors and text generation.

transformers hands every entry of these files to a constructor. Some entries make it open another
repo (`audio_tokenizer`) or another file (`sp_model_kwargs`), replace the vocabulary, or take any
amount of memory. `tools/make_classes.py` generates the list of settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.classes import known
from sd_loader.diffusers_repo.listed_config import is_plain
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet, snippet

GENERATION_CONFIG = "generation_config.json"

_TOKENIZER = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_ADDED_TOKENS = "added_tokens.json"
_PROCESSOR = "processor_config.json"
_PREPROCESSOR = "preprocessor_config.json"
"""The end of the name: the settings for videos are in video_preprocessor_config.json."""
_NESTED = frozenset({"feature_extractor", "image_processor", "video_processor"})
"""Objects in a processor_config.json with the settings of a preprocessor_config.json."""
_TEMPLATE = "chat_template"
_SUFFIX = "_token"
"""End of the keys of special tokens, such as eos_token."""
_TOKEN_LISTS = frozenset({"additional_special_tokens", "extra_special_tokens"})
_DECODER = "added_tokens_decoder"
_FLAGS = frozenset({"lstrip", "normalized", "rstrip", "single_word", "special"})
_MOST_DIGITS = 20
_GENERATION: Mapping[str, tuple[type, ...]] = {
    "bos_token_id": (int,),
    "decoder_start_token_id": (int,),
    "do_sample": (bool,),
    "eos_token_id": (int, list),
    "pad_token_id": (int,),
    "repetition_penalty": (int, float),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "use_cache": (bool,),
}
"""The usual settings of text generation in repos with a language model, and their types."""


def known_settings(name: str, content: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the known settings of a file. Refuse a value that its setting cannot have.

    name: of the file, without its folder. path: the file's path in the repo, for messages.
    """
    kept: dict[str, Any] = {}
    for key, value in content.items():
        if name == _PROCESSOR and key in _NESTED and isinstance(value, dict):
            kept[key] = known_settings(_PREPROCESSOR, value, f"{path}: {key}")
        elif _is_known(name, key):
            if not _is_valid(name, key, value):
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"{path}: {snippet(key)} is {json_snippet(value)}, which transformers cannot"
                    " read",
                )
            kept[key] = value
    return kept


def _is_known(name: str, key: str) -> bool:
    if name == _ADDED_TOKENS:
        return True  # Its keys are the tokens themselves.
    if name == GENERATION_CONFIG:
        return key in _GENERATION
    is_of_tokenizer = name in (_TOKENIZER, _SPECIAL_TOKENS)
    if is_of_tokenizer and (key.endswith(_SUFFIX) or key in _TOKEN_LISTS):
        return True
    if name == _SPECIAL_TOKENS:
        return False
    is_of_preprocessor = name.endswith(_PREPROCESSOR)
    if key == _TEMPLATE:
        return not is_of_preprocessor
    return key in known()["settings"].get(_PREPROCESSOR if is_of_preprocessor else name, ())


def _is_valid(name: str, key: str, value: object) -> bool:
    if name == _ADDED_TOKENS:
        return type(value) is int and value >= 0
    if value is None:
        return True
    if name == GENERATION_CONFIG:
        is_typed = isinstance(value, _GENERATION[key]) and not (
            isinstance(value, bool) and bool not in _GENERATION[key]
        )
        items = value if isinstance(value, list) else ()
        return is_typed and all(type(it) is int for it in items) and is_plain(key, value)
    if key == _TEMPLATE:
        return _is_template(value)
    if key == _DECODER:
        return isinstance(value, dict) and all(
            _is_id(number) and isinstance(token, dict) and _is_token(token, has_type=False)
            for number, token in value.items()
        )
    has_type = name == _TOKENIZER
    if key in _TOKEN_LISTS:
        tokens = value.values() if isinstance(value, dict) else value
        return (
            isinstance(tokens, Iterable)
            and not isinstance(tokens, str)
            and all(_is_token(it, has_type=has_type) for it in tokens)
        )
    if key.endswith(_SUFFIX):
        return _is_token(value, has_type=has_type) or isinstance(value, bool)
    return is_plain(key, value)


def _is_template(value: object) -> bool:
    """Whether a value is a template, or a list of templates with names."""
    if isinstance(value, list):
        return all(
            isinstance(it, dict)
            and it.keys() == {"name", "template"}
            and all(isinstance(text, str) for text in it.values())
            for it in value
        )
    return isinstance(value, str)


def _is_token(value: object, *, has_type: bool) -> bool:
    """Whether a value is a token: its text, or a table of its text and the flags of `AddedToken`.

    has_type: whether transformers reads an object that also states its type.
    """
    if isinstance(value, str):
        return True
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return False
    if has_type and value.get("__type") == "AddedToken":
        value = {key: it for key, it in value.items() if key != "__type"}
    flags = value.keys() - {"content"}
    return flags <= _FLAGS and all(isinstance(value[flag], bool) for flag in flags)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS
