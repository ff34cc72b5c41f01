"""Changes configs at random, by the list of keys that the loader allows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from sd_loader.diffusers_repo.config_keys import known_classes
from sd_loader.diffusers_repo.config_limits import NAMES

_NUMBERS = (0, 1, 2, 3, 4, 8, 9, 32, 64, 77, 1000, 4096, 4097, 65_536, 65_537, 2**31, 10**12, -1)
_FLOATS = (0.0, 1e-9, 1e-5, 0.00085, 0.012, 0.5, 1.0, 2.5, 80.0, 65_536.0, 1e30, -1.0)
_STRANGE: tuple[Any, ...] = ("evil", "../../evil", "", None, {}, {"x": {"y": 1}}, [], [[[1]]])


def mutated(rng: random.Random, config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Return a config in which up to three keys are changed or absent."""
    keys = known_classes()[class_name]["keys"]
    changed = dict(config)
    for name in rng.sample(sorted(keys), min(len(keys), rng.choice((1, 1, 2, 3)))):
        if rng.random() < 0.1:
            changed.pop(name, None)
        else:
            changed[name] = _value(rng, class_name, name, keys[name])
    return changed


def _value(rng: random.Random, class_name: str, name: str, item: Mapping[str, Any]) -> Any:
    if rng.random() < 0.1:
        return rng.choice(_STRANGE)
    kind = rng.choice(item["types"])
    leaf = kind.partition("[")[0]
    names = item.get("values") or NAMES.get(f"{class_name}.{name}", NAMES.get(name, ("evil",)))
    values = {
        "bool": (True, False),
        "float": (*_FLOATS, *_NUMBERS[:4]),
        "int": _NUMBERS,
        "null": (None,),
        "str": names,
    }[leaf]
    if kind == leaf:
        return rng.choice(values)
    count = rng.choice((1, 3, 4, 4, 4, 17))
    return [rng.choice(values) for _ in range(count)]
