"""JSON patch, merge patch, strategic merge patch and server-side apply."""

from __future__ import annotations

from typing import Any

import jsonpatch

from sd_operator.standalone.errors import ApiError, Json, Value, bad_request

MERGE_KEYS = {
    "addresses": "type",
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists that strategic merge patches merge by this key of their items.

Finalizers are added to the present ones; all other lists are replaced.
"""


def json_patch(target: Json, operations: Value) -> Json:
    """Apply a JSON patch (RFC 6902)."""
    if not isinstance(operations, list) or not all(isinstance(o, dict) for o in operations):
        raise bad_request("a JSON patch is a list of operations")
    try:
        result: Json = jsonpatch.apply_patch(target, operations)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        text = "the server rejected our request due to an error in our request"
        raise ApiError(422, "Invalid", text, {}) from error
    return result


def merge_patch(target: Value, patch: Value) -> Value:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_merge_patch(target: Value, patch: Value) -> Value:
    """Apply a strategic merge patch: lists with a merge key merge item by item."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return merge_patch(target, _plain(patch))
    if patch.get("$patch") == "replace":
        return _plain(patch)
    result = dict(target)
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [item for item in result.get(name, []) if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _merge_list(key, result.get(key) or [], value)
        else:
            result[key] = strategic_merge_patch(result.get(key), value)
    return result


def _merge_list(name: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if name == "finalizers":
        return [*target, *(item for item in patch if item not in target)]
    key = MERGE_KEYS.get(name)
    if key is None or {"$patch": "replace"} in patch:
        return [_plain(item) for item in patch if item != {"$patch": "replace"}]
    if not all(isinstance(item, dict) for item in (*target, *patch)):
        raise bad_request(f"{name}: a list of objects with the key {key} is expected")
    merged = {str(item.get(key)): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(str(item.get(key)), None)
        else:
            old = merged.get(str(item.get(key)), {})
            merged[str(item.get(key))] = strategic_merge_patch(old, item)
    return list(merged.values())


def _plain(value: Value) -> Value:
    """Return a patch's value without directives and nulls."""
    if isinstance(value, dict):
        return {
            key: _plain(item)
            for key, item in value.items()
            if item is not None and not key.startswith("$")
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value


def apply(target: Json, applied: Json, before: Json | None) -> Json:
    """Apply one manager's manifest; remove the fields that were only in its manifest `before`."""
    result = strategic_merge_patch(target, applied)
    return _remove_missing(result, applied, before) if before is not None else result


def _remove_missing(target: Json, applied: Json, before: Json) -> Json:
    result = dict(target)
    for key, old in before.items():
        new = applied.get(key)
        if key not in applied:
            result.pop(key, None)
        elif isinstance(old, dict) and isinstance(new, dict) and isinstance(result.get(key), dict):
            result[key] = _remove_missing(result[key], new, old)
    return result
