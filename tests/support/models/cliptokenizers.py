"""Tokenizers of CLIP in the forms that transformers has written, and a function to publish them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sd_loader.convert.plan.repo_tokenizer import tokenizer_files
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file

_MERGES = 2000
WORDS = 512 + _MERGES + 2
"""Number of tokens of the test vocabulary, which is the beginning of CLIP's.

It has all bytes, alone and at the end of a word, the tokens of the first merges, and the start and
end token. CLIP's own vocabulary of 49408 tokens would take a second for each test.
"""
SPECIAL_WORDS = START, END = ("<|startoftext|>", "<|endoftext|>")
SPECIAL = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
Files = dict[str, Any]


@cache
def _vocabulary() -> dict[str, bytes]:
    """The files of the test vocabulary."""
    words, merges = (vocabulary_file(name) for name in VOCABULARY_FILES)
    numbers = json.loads(words)
    first = sorted(numbers, key=numbers.get)[: WORDS - 2]
    ids = {word: number for number, word in enumerate([*first, *SPECIAL_WORDS])}
    lines = merges.split(b"\n")[: _MERGES + 1]
    contents = (json.dumps(ids).encode(), b"\n".join([*lines, b""]))
    return dict(zip(VOCABULARY_FILES, contents, strict=True))


def plain() -> Files:
    """The files of a tokenizer without added tokens, by name. Its configs are dictionaries."""
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **SPECIAL}
    return {
        **_vocabulary(),
        "tokenizer_config.json": config,
        "special_tokens_map.json": dict(SPECIAL),
    }


def described(content: str, **flags: bool) -> dict[str, Any]:
    """The JSON object of an added token. Flags that are not given are false."""
    usual = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    return {"content": content, **usual, **flags}


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write the files of a tokenizer."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(raw)
    return folder


def publish(source: Path, out: Path, rows: int = WORDS + 3) -> Path:
    """Publish a tokenizer for a text encoder with `rows` token embeddings and 77 positions."""
    dimensions = {"text_encoder_vocabulary": rows, "text_encoder_positions": 77}
    templates = load_architecture("sd-1").templates
    for file in tokenizer_files(source, "tokenizer", templates, dimensions):
        path = out / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return out / "tokenizer"


def _newest(files: Files) -> Files:
    """The tokenizer with two added tokens as transformers 5 saves it: in tokenizer.json alone."""
    import tempfile

    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = CLIPTokenizer.from_pretrained(write(Path(folder) / "before", files))
        tokenizer.add_tokens(["<my-cat>"])
        tokenizer.add_tokens(["<My-Dog>"], special_tokens=True)
        tokenizer.save_pretrained(Path(folder) / "after")
        return {path.name: path.read_bytes() for path in (Path(folder) / "after").iterdir()}


def _by_id(files: Files) -> Files:
    files["tokenizer_config.json"]["added_tokens_decoder"] = {
        str(WORDS - 2): described(START, special=True),
        str(WORDS - 1): described(END, special=True),
        str(WORDS): described("<my-cat>", normalized=True),
        str(WORDS + 1): described("<My-Dog>", special=True),
    }
    return files


def _with_flags(files: Files) -> Files:
    files["tokenizer_config.json"]["added_tokens_decoder"] = {
        str(WORDS): described("<my-cat>", lstrip=True, rstrip=True),
        str(WORDS + 1): described("<My-Dog>", single_word=True),
    }
    return files


def _fast(files: Files) -> Files:
    """The files with a tokenizer.json beside them, as transformers before 4.34 saved both."""
    saved = json.loads(_newest(plain())["tokenizer.json"])
    return files | {"tokenizer.json": saved}


def _listed(key: str, file: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        files[file][key] = ["<my-cat>", "<My-Dog>"]
        return files

    return change


def _described_list(files: Files) -> Files:
    dog = {"__type": "AddedToken", **described("<My-Dog>", special=True)}
    files["tokenizer_config.json"]["additional_special_tokens"] = ["<my-cat>", dog]
    return files


def _padded(files: Files) -> Files:
    """Set a pad token and a mask token that the vocabulary does not have."""
    files["tokenizer_config.json"] |= {"pad_token": "<my-cat>", "mask_token": "<My-Dog>"}
    files["special_tokens_map.json"] |= {"pad_token": "<my-cat>", "mask_token": "<My-Dog>"}
    return files


def _in_vocabulary(files: Files) -> Files:
    """Write the tokens into added_tokens.json and, as words of the vocabulary, into vocab.json."""
    words = json.loads(files["vocab.json"]) | {"<my-cat>": WORDS, "<My-Dog>": WORDS + 1}
    return _by_word(files) | {"vocab.json": words}


def _by_word(files: Files) -> Files:
    return files | {"added_tokens.json": {"<my-cat>": WORDS, "<My-Dog>": WORDS + 1}}


FORMS: Mapping[str, Callable[[Files], Files]] = {
    "added_tokens.json": _by_word,
    "added_tokens.json with special tokens": lambda files: (
        _by_word(files)
        | {"special_tokens_map.json": {**SPECIAL, "additional_special_tokens": ["<my-cat>"]}}
    ),
    "added_tokens_decoder": _by_id,
    "added_tokens_decoder with flags": _with_flags,
    "tokenizer.json alone": _newest,
    "tokenizer.json beside vocab.json": _fast,
    "vocab.json": _in_vocabulary,
    "additional_special_tokens of the config": _described_list,
    "additional_special_tokens of the map": _listed(
        "additional_special_tokens", "special_tokens_map.json"
    ),
    "extra_special_tokens of the config": _listed("extra_special_tokens", "tokenizer_config.json"),
    "tokens with names": _padded,
}
"""Functions that put the tokens <my-cat> and <My-Dog> into a tokenizer's files, by form."""
PROMPTS = (
    "a photo of <my-cat>",
    "<my-cat>and <My-Dog>, in the rain",
    "12 <My-Dog>!",
    "Ünïcödé <My-Dog><my-cat>",
    "a<My-Dog>b <|endoftext|> c",
)
