"""Embeddings with random numbers, and the tokens that diffusers adds to a pipeline for them."""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.support.models import tinyrepo
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.conversions import identical


def vectors(width, count=2, dtype=torch.float32, seed=0):
    """Random vectors for a token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, width), generator=generator).to(dtype)


def save(path: Path, content, *, legacy: bool = False) -> Path:
    """Save the content in the container of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        return save_safetensors(path, content)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@cache
def tokenizer():
    """A tokenizer that knows only single ASCII characters.

    Each test copies the tokenizer. Copies of the real one with 49,408 tokens would be slow.
    """
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        numbered = {word: index for index, word in enumerate(words)}
        (Path(folder) / "vocab.json").write_text(json.dumps(numbered))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def opened(source, width, kind=CLIPTextModel, **options):
    """The tokens that diffusers adds for an embedding, with their vectors."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        vocab_size=len(tokenizer()),
        projection_dim=64,
    )
    words, encoder = copy.deepcopy(tokenizer()), kind(config)
    tinyrepo.pipeline("sd15").load_textual_inversion(
        source, tokenizer=words, text_encoder=encoder, **options
    )
    weights = encoder.get_input_embeddings().weight
    known = tokenizer().get_vocab()
    added = {word: index for word, index in words.get_vocab().items() if word not in known}
    return {word: weights[index].detach().clone() for word, index in added.items()}


def assert_same(ours, theirs):
    """Assert that tokens and vectors are equal."""
    assert theirs
    assert ours.keys() == theirs.keys()
    assert all(identical(ours[word], vector) for word, vector in theirs.items())
