"""The load hash: a golden file of hashes that every release keeps.

A release that changes a hash would reload each model with such a spec in every cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sd_api.crd import structural
from sd_api.loadhash import load_hash
from sd_api.spec import LoadFields, Spec

GOLDEN = Path(__file__).parent / "golden" / "load-hashes.json"
CASES: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())
URL_ONLY = CASES["url-only"]


def hash_of(case: dict[str, Any]) -> str:
    """Return the load hash of a case, which has a spec, a resource name and a reload annotation."""
    spec = Spec.model_validate(case["spec"])
    return load_hash(spec, case.get("name", "m"), case.get("reload"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_load_hash_is_stable(case: dict[str, Any]) -> None:
    """The hash equals the one in the golden file."""
    assert hash_of(case) == case["hash"]


def leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Return the values of nested objects by dotted path."""
    for key, child in value.items():
        if isinstance(child, dict):
            yield from leaves(child, f"{path}{key}.")
        else:
            yield path + key, child


def fields_set_alone() -> Iterator[str]:
    """Return each field that a case adds to URL_ONLY as its only change, if the hash differs."""
    for case in CASES.values():
        added = [path for path, _ in set(leaves(case["spec"])) - set(leaves(URL_ONLY["spec"]))]
        if len(added) == 1 and case["hash"] != URL_ONLY["hash"]:
            yield from added


def properties(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Return the dotted paths of a schema's fields that are not objects."""
    for key, child in schema["properties"].items():
        if "properties" in child:
            yield from properties(child, f"{path}{key}.")
        else:
            yield path + key


def aliases(model: type[BaseModel]) -> set[str]:
    """Return the JSON names of a model's fields."""
    return {str(field.alias) for field in model.model_fields.values()}


def test_each_load_affecting_field_has_a_case_of_its_own() -> None:
    """A new field needs a hash in the golden file."""
    schema = structural(Spec.model_json_schema(by_alias=True))
    expected = {
        path for path in properties(schema) if path.partition(".")[0] in aliases(LoadFields)
    }
    assert set(fields_set_alone()) == expected


@pytest.mark.parametrize(
    ("case", "same_as"),
    [
        ("defaults-spelled-out", "url-only"),
        ("hub-repo-spelled-out", "hub-repo"),
        ("controlnet-by-model-id", "controlnet-by-name"),
        ("controlnet-spelled-out", "controlnet-by-name"),
    ],
)
def test_spelling_out_a_default_keeps_the_load_hash(case: str, same_as: str) -> None:
    """The hash uses the effective url and model type and omits fields at their defaults."""
    assert CASES[case]["hash"] == CASES[same_as]["hash"]


def test_all_other_hashes_differ() -> None:
    """Two different loads never share a folder on the volume."""
    same = {"defaults-spelled-out", "hub-repo-spelled-out"}
    same |= {"controlnet-by-model-id", "controlnet-spelled-out"}
    hashes = [case["hash"] for name, case in CASES.items() if name not in same]
    assert len(set(hashes)) == len(hashes)


OPERATED = {
    "modelId": "other",
    "webhook": "https://hooks.example.com",
    "webhookSecretRef": {"name": "hooks", "key": "signing"},
    "credentialsSecretRef": {"name": "token"},
    "deletionPolicy": "Retain",
    "suspend": True,
    "priority": 5,
    "storage": {"claimName": "fast"},
    "job": {"activeDeadlineSeconds": 60},
}
"""A value for each field of the spec that is not load-affecting."""


def test_each_field_of_the_spec_is_load_affecting_or_known_not_to_be() -> None:
    """A new field belongs to LoadFields or to the list of this test."""
    assert aliases(Spec) - aliases(LoadFields) == OPERATED.keys()


@pytest.mark.parametrize("field", OPERATED)
def test_other_fields_do_not_change_the_hash(field: str) -> None:
    """A change of these fields does not reload the model."""
    spec = {**URL_ONLY["spec"], field: OPERATED[field]}
    assert hash_of({"spec": spec}) == URL_ONLY["hash"]


@pytest.mark.parametrize("name", LoadFields.model_fields)
def test_a_load_affecting_field_at_its_default_is_absent_from_the_hash(name: str) -> None:
    """A field that a later version adds therefore does not reload any model."""
    field = LoadFields.model_fields[name]
    assert not field.is_required()
    default = field.get_default(call_default_factory=True)
    spec = Spec.model_validate({name: default, **URL_ONLY["spec"]})
    assert load_hash(spec, "m", None) == URL_ONLY["hash"]
