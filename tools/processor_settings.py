"""The settings of tokenizers and processors that transformers reads from their files.

They are the parameters of the constructors, without those that the loader must not publish.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import transformers
from transformers import (
    BaseImageProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
)
from transformers.processing_utils import VideosKwargs

EXTRA_SETTINGS: Mapping[str, frozenset[str]] = {
    "preprocessor_config.json": frozenset(
        {
            "feature_extractor_type",
            "image_processor_type",
            "max_frames",
            "min_frames",
            "processor_class",
            "video_processor_type",
        }
    ),
    "processor_config.json": frozenset(
        {
            "image_break_token",
            "image_end_token",
            "image_token",
            "patch_size",
            "processor_class",
            "spatial_merge_size",
        }
    ),
    "tokenizer_config.json": frozenset(
        {
            "add_bos_token",
            "add_eos_token",
            "do_basic_tokenize",
            "legacy",
            "never_split",
            "pad_token_type_id",
            "spaces_between_special_tokens",
            "tokenizer_class",
            "use_default_system_prompt",
        }
    ),
}
"""Settings that no constructor names, by the files that hold them. Their readers are older versions
of transformers, its `Auto` classes, or a class that needs torchvision (Pixtral's)."""

FORBIDDEN_SETTINGS = frozenset(
    {
        "audio_tokenizer",
        "backend",
        "chat_control_tokens",
        "device",
        "feature_extractor",
        "files_loaded",
        "gguf_file",
        "image_processor",
        "merges",
        "merges_file",
        "model_specific_special_tokens",
        "name_or_path",
        "post_processor",
        "response_schema",
        "response_template",
        "return_tensors",
        "sp_model_kwargs",
        "tokenizer",
        "tokenizer_file",
        "tokenizer_object",
        "verbose",
        "video_metadata",
        "video_processor",
        "vocab",
        "vocab_file",
    }
)
"""Settings that name files, repos or devices or replace the vocabulary, and nested settings, which
the loader checks by the rules of the file that usually holds them."""


def settings_by_file(classes: Iterable[str]) -> dict[str, list[str]]:
    """Return the settings of these tokenizers and processors, by the files that hold them."""
    found: dict[str, set[str]] = {name: set(extra) for name, extra in EXTRA_SETTINGS.items()}
    found["preprocessor_config.json"] |= set(VideosKwargs.__annotations__)
    for kind in {getattr(transformers, name, None) for name in classes}:
        if not inspect.isclass(kind):
            continue
        if issubclass(kind, PreTrainedTokenizerBase):
            found["tokenizer_config.json"] |= _constructor_names(kind)
        elif issubclass(kind, ProcessorMixin):
            found["processor_config.json"] |= _constructor_names(kind)
        elif issubclass(kind, BaseImageProcessor):
            found["preprocessor_config.json"] |= set(kind.valid_kwargs.__annotations__)
        elif issubclass(kind, SequenceFeatureExtractor):
            found["preprocessor_config.json"] |= _constructor_names(kind)
    return {name: sorted(keys - FORBIDDEN_SETTINGS) for name, keys in sorted(found.items())}


def _constructor_names(kind: Any) -> set[str]:  # noqa: ANN401 - a class
    """Return what the constructors of a class and its bases accept by name, also in `kwargs`."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("transformers."):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {it.name for it in parameters if it.kind is it.POSITIONAL_OR_KEYWORD}
            names |= read_from_kwargs(base.__init__)
    return {name for name in names if name != "self" and not name.startswith("_")}


def read_from_kwargs(code: Any) -> set[str]:  # noqa: ANN401 - a class or a function
    """Return the keys that a class or a function reads from its `kwargs`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get", "pop")
        and getattr(node.func.value, "id", "") == "kwargs"
        and isinstance(node.args[0], ast.Constant)
    }
