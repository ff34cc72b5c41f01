"""Make the loader's list of config keys from the installed diffusers and transformers.

Each component class documents the keys of its config: the parameters of a class of diffusers, the
fields of a config class of transformers. Keys of a base class are not among them.
`tests/loader/diffusers_repo/test_config_keys_made.py` makes the list again and compares.

    python -m tools.make_config_keys     writes …/sd_loader/diffusers_repo/config_keys.json
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import sys
import types
import typing
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers.models.activations import ACT2CLS
from transformers import PreTrainedConfig

from sd_loader.diffusers_repo.config_keys import PATH
from sd_loader.diffusers_repo.index import SCHEDULERS, SD_PIPELINES, SDXL_PIPELINES

ROOT = Path(__file__).resolve().parent.parent

MODELS = (
    "AutoencoderKL",
    "ControlNetModel",
    "FluxControlNetModel",
    "SD3ControlNetModel",
    "UNet2DConditionModel",
)
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")

ACTIVATIONS = ("act_fn", "time_embedding_act_fn", "timestep_post_act")
"""Keys that name one of diffusers' activations."""

CORRECTIONS: Mapping[str, Mapping[str, list[str]]] = {
    "AutoencoderKL": {"sample_size": ["int", "int[]"]},
    "FluxControlNetModel": {
        "conditioning_embedding_channels": ["int", "null"],
        "num_mode": ["int", "null"],
    },
    "SD3ControlNetModel": {"joint_attention_dim": ["int", "null"]},
    "UniPCMultistepScheduler": {
        "shift_terminal": ["float", "null"],
        "sigma_max": ["float", "null"],
    },
    "UNet2DConditionModel": {
        "transformer_layers_per_block": ["int", "int[]", "int[][]"],
        "reverse_transformer_layers_per_block": ["int[]", "int[][]", "null"],
    },
}
"""Types of keys whose annotations do not list all types that the class reads."""

Keys = dict[str, dict[str, Any]]


def make_list() -> dict[str, dict[str, Any]]:
    """Return the entries of all classes that the loader supports, by name."""
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))  # imported, but not used here
    schedulers = {name: scheduler_class(name) for name in sorted(SCHEDULERS)}
    keys = {name: parameters(kind) for name, kind in schedulers.items()}
    _add_values(schedulers, keys)
    entries = {name: {"keys": found} for name, found in keys.items()}
    for name in MODELS:
        entries[name] = {"keys": parameters(getattr(diffusers, name))}
        for key in ACTIVATIONS:
            if key in entries[name]["keys"]:
                entries[name]["keys"][key]["values"] = sorted(ACT2CLS)
    for name in ENCODERS:
        entries |= transformers_entries(name, getattr(transformers, name).config_class)
    for name in SD_PIPELINES | SDXL_PIPELINES:
        entries[name] = {"keys": parameters(getattr(diffusers, name))}
    return dict(sorted(entries.items()))


def scheduler_class(name: str) -> Any:  # noqa: ANN401 - a class
    """Import the class from its module: diffusers exports a stand-in if a library is missing.

    None if no module has the class.
    """
    for path in (Path(diffusers.__file__).parent / "schedulers").glob("scheduling_*.py"):
        if f"\nclass {name}(" in path.read_text():
            return getattr(importlib.import_module(f"diffusers.schedulers.{path.stem}"), name)
    return None


def parameters(kind: Any) -> Keys:  # noqa: ANN401 - a class
    """The keys of a class of diffusers: the parameters of its constructor that JSON can hold."""
    hints = typing.get_type_hints(kind.__init__)
    corrected = CORRECTIONS.get(kind.__name__, {})
    keys: Keys = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        found = corrected.get(name) or json_types(hints.get(name))
        if found:
            keys[name] = {"types": found, "default": _json(parameter.default)}
            if values := _literals(hints.get(name)):
                keys[name]["values"] = values
    return keys


def transformers_entries(name: str, config: type[PreTrainedConfig]) -> dict[str, dict[str, Any]]:
    """The entries of a class of transformers and of the configs nested in its config."""
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    keys: Keys = {}
    nested: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(config):
        inner = config.sub_configs.get(field.name)
        if inner is not None and issubclass(inner, PreTrainedConfig):
            keys[field.name] = {"types": [f"config {inner.__name__}"], "default": None}
            nested |= transformers_entries(inner.__name__, inner)
        elif field.name not in base and (found := json_types(field.type)):
            keys[field.name] = {"types": found, "default": _json(field.default)}
    entry: dict[str, Any] = {"model_type": config.model_type, "keys": keys}
    if config.base_config_key:
        entry["nested_as"] = config.base_config_key
    return {name: entry, **nested}


def json_types(hint: Any) -> list[str]:  # noqa: ANN401 - an annotation
    """Return the JSON types of an annotation; `int[]` is a list of integers. Empty if none fits."""
    simple = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}
    if hint in simple:
        return [simple[hint]]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ["str"]
    if origin in (typing.Union, types.UnionType):
        found = {name for argument in arguments for name in json_types(argument)}
        return [] if found <= {"null"} else sorted(found)
    if origin in (list, tuple):
        items = (argument for argument in arguments if argument is not Ellipsis)
        return sorted({f"{name}[]" for item in items for name in json_types(item)})
    return []


def _literals(hint: Any) -> list[str]:  # noqa: ANN401 - an annotation
    """The strings that an annotation lists."""
    if typing.get_origin(hint) is typing.Literal:
        return sorted(typing.get_args(hint))
    return sorted({name for argument in typing.get_args(hint) for name in _literals(argument)})


def _json(value: Any) -> Any:  # noqa: ANN401 - any default
    """Return a default as JSON holds it; None for a default that JSON cannot hold."""
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else None


def _add_values(schedulers: Mapping[str, Any], keys: Mapping[str, Keys]) -> None:
    """Add the strings that each scheduler accepts, since the annotations list only some of them.

    A string is tried if any scheduler's annotation of the key lists it, or if the class compares
    the key with it. A string is accepted if the class can be made with it.
    """
    named: dict[str, set[str]] = defaultdict(set)
    for found in keys.values():
        for key, entry in found.items():
            named[key] |= set(entry.get("values", ()))
    for name, kind in schedulers.items():
        compared = _compared(inspect.getsource(kind))
        for key, entry in keys[name].items():
            if "str" in entry["types"]:
                candidates = named[key] | compared[key]
                entry["values"] = sorted(it for it in candidates if _is_accepted(kind, key, it))


def _compared(source: str) -> dict[str, set[str]]:
    """The strings that a class compares with a name or attribute, by that name."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            name = getattr(node.left, "attr", getattr(node.left, "id", ""))
            constants = (it for other in node.comparators for it in ast.walk(other))
            found[name] |= {
                it.value
                for it in constants
                if isinstance(it, ast.Constant) and isinstance(it.value, str)
            }
    return found


def _is_accepted(kind: Any, key: str, value: str) -> bool:  # noqa: ANN401 - a class
    # Some algorithms do not accept the default, that the final sigma is zero. Few steps save time.
    for others in ({}, {"final_sigmas_type": "sigma_min"}):
        try:
            kind.from_config({"num_train_timesteps": 10, **others, key: value})
        except (ImportError, NotImplementedError, TypeError, ValueError):
            continue
        return True
    return False


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the list as JSON with one key per line."""
    return "{\n" + ",\n".join(_rendered(name, entry) for name, entry in entries.items()) + "\n}\n"


def _rendered(name: str, entry: Mapping[str, Any]) -> str:
    fields = [f'"{key}": {json.dumps(value)}, ' for key, value in entry.items() if key != "keys"]
    keys = ",\n".join(_lines(entry["keys"].items()))
    return f'"{name}": {{{"".join(fields)}"keys": {{\n{keys}\n}}}}'


def _lines(keys: Iterable[tuple[str, Any]]) -> Iterable[str]:
    return (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(keys))


def main() -> None:
    """Write the list."""
    PATH.write_text(render(make_list()))
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
