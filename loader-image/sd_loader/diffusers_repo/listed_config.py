"""Keeps only the keys that a listed class documents, with values that are plain data.

`config_keys` is stricter, but has only the classes of Stable Diffusion. Annotations of the other
classes are often too narrow, so only the kind of a value is checked, and its size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from sd_api.reasons import Reason
from sd_loader.diffusers_repo import config_limits as limits
from sd_loader.diffusers_repo.classes import Role, config_class, entry, known
from sd_loader.errors import LoaderError
from sd_loader.snippet import json_snippet

_ANY = "any"
_NESTED = "config "
_WORD = re.compile(r"[\w.+-]{0,128}", re.ASCII)
"""Strings of configs name types, activations and layers. Unlike paths and repo ids, they have no
slash."""
_MOST_ITEMS = 4096
_MOST_DEPTH = 4
"""Maximum nesting of objects. Rotary positions have settings with an object per type of layer."""
_MOST_WHOLE = 1 << 20
_MOST_FRACTION = 1e12
_MOST_MODULES = 512
_COUNTS_MODULES = re.compile(
    r"(?:.*_)?(?:n_layer|layers|blocks|depths?|experts|flows|layers_per(?:_\w+)?_block)"
)
"""Keys that state a number of layers. Each layer takes memory and time before weights are read."""
_MOST_POSITIONS = 1024
"""Maximum side of a grid of positions. The table of positions has the square of it as rows, and is
made before any weight is read."""
_NUMBERS: Mapping[str, tuple[float, float]] = {
    **limits.NUMBERS,
    "extra_ids": (0, 4096),
    "feature_size": (1, 1024),
    "fft_window_size": (1, 1 << 14),
    "max_pixels": (0, _MOST_FRACTION),
    "max_position_embeddings": (0, 1 << 24),
    "min_pixels": (0, _MOST_FRACTION),
    "model_max_length": (0, 1e31),
    "num_hidden_layers": (0, _MOST_MODULES),
    "pos_embed_max_size": (1, _MOST_POSITIONS),
    "rope_theta": (0, _MOST_FRACTION),
    **dict.fromkeys(
        (
            "DiTTransformer2DModel.sample_size",
            "HunyuanDiT2DControlNetModel.sample_size",
            "HunyuanDiT2DModel.sample_size",
            "LatteTransformer3DModel.sample_size",
            "PixArtTransformer2DModel.sample_size",
            "SanaTransformer2DModel.sample_size",
            "Transformer2DModel.sample_size",
            "sample_height",
            "sample_width",
        ),
        (1, _MOST_POSITIONS),
    ),
}
"""Minimum and maximum of the values of config keys, on top of `limits.NUMBERS`.

They are keys whose values may be larger than in SD, and keys that allocate memory before weights
are read. transformers writes 10**30 as model_max_length of a tokenizer without a maximum.
"""


def listed_config(config: Mapping[str, Any], class_name: str, path: str) -> dict[str, Any]:
    """The part of a config that its class documents. Refuse a value that is not plain data.

    path: the config's file, for messages.
    """
    return _kept(config, config_class(class_name), path)


def listed_scheduler(config: Mapping[str, Any], class_name: str, path: str) -> dict[str, Any]:
    """The part of a scheduler's config that this scheduler or another one documents.

    diffusers keeps the keys of other schedulers, and uses them when a user changes the scheduler.
    """
    kept = _kept(config, class_name, path)
    for name, kinds in _keys_of_schedulers().items():
        if name in config and name not in kept and _fits("", name, config[name], kinds):
            kept[name] = config[name]
    return kept


def plain_settings(
    settings: Mapping[str, Any], allowed: frozenset[str], path: str
) -> dict[str, Any]:
    """The allowed keys of some settings. Refuse a value that is not plain data."""
    kept = {name: settings[name] for name in sorted(allowed & settings.keys())}
    for name, value in kept.items():
        if not is_plain(name, value):
            raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{path}: {name} is {json_snippet(value)}")
    return kept


def is_plain(name: str, value: object) -> bool:
    """Whether the value of a key has only numbers, words, lists and tables within their limits."""
    return _fits("", name, value, frozenset({_ANY}))


def _kept(config: Mapping[str, Any], class_name: str, path: str) -> dict[str, Any]:
    documented = entry(class_name)
    # transformers reads the nested config in place of the one around it.
    nested = config.get(documented["nested_as"]) if "nested_as" in documented else None
    own = nested if isinstance(nested, dict) else config
    kept: dict[str, Any] = {}
    for name, kinds in documented["keys"].items():
        if name not in own:
            continue
        value = own[name]
        inner = kinds[0].removeprefix(_NESTED)
        if kinds[0].startswith(_NESTED) and isinstance(value, dict):
            kept[name] = {
                **_kept(value, inner, f"{path}: {name}"),
                "model_type": entry(inner)["model_type"],
            }
        elif _fits(class_name, name, value, frozenset(kind.partition("[")[0] for kind in kinds)):
            kept[name] = value
        else:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"{path}: {name} is {json_snippet(value)}, which {class_name} cannot have",
            )
    return kept


@cache
def _keys_of_schedulers() -> Mapping[str, frozenset[str]]:
    """The keys of all schedulers, with the kinds that any of them takes."""
    found: dict[str, frozenset[str]] = {}
    for name, role in known()["components"]["diffusers"].items():
        for key, kinds in entry(name)["keys"].items() if role == Role.SCHEDULER else ():
            leaves = frozenset(kind.partition("[")[0] for kind in kinds)
            found[key] = found.get(key, frozenset()) | leaves
    return found


def _fits(class_name: str, name: str, value: object, kinds: frozenset[str], depth: int = 0) -> bool:
    """Whether a value is of one of the kinds, or a list of such values. Each key may be null."""
    is_any = _ANY in kinds
    match value:
        case None:
            return True
        case bool():
            return is_any or "bool" in kinds
        case int() | float():
            is_whole = isinstance(value, int) and "float" not in kinds
            most = _MOST_WHOLE if is_whole and depth == 0 else _MOST_FRACTION
            if _COUNTS_MODULES.fullmatch(name) is not None:
                most = _MOST_MODULES
            low, high = limits.limit(_NUMBERS, class_name, name) or (-most, most)
            return (is_any or bool(kinds & {"int", "float"})) and low <= value <= high
        case str():
            return (is_any or "str" in kinds) and _WORD.fullmatch(value) is not None
        case list():
            return len(value) <= _MOST_ITEMS and all(
                _fits(class_name, name, item, kinds, depth) for item in value
            )
        case dict():
            return (
                is_any
                and len(value) <= _MOST_ITEMS
                and depth < _MOST_DEPTH
                and all(
                    _WORD.fullmatch(key) is not None
                    and _fits(class_name, key, item, kinds, depth + 1)
                    for key, item in value.items()
                )
            )
        case _:
            return False
