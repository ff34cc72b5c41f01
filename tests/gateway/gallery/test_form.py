"""Tests of the load form: the resource it describes, and the errors of its fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.spec import Spec
from sd_operator.gateway.gallery import form
from sd_operator.gateway.gallery.controls import ACCESS, FIELDS, GROUPS, TYPE
from sd_operator.gateway.gallery.form import complaints, folds, manifest, values


def spec_of(**texts: str) -> dict[str, object]:
    """Return the spec that the form describes; `__` stands for `.` in the names of fields."""
    submitted = {f"spec.{name.replace('__', '.')}": text for name, text in texts.items()}
    spec: dict[str, object] = manifest(values(submitted), "art")["spec"]
    return spec


@pytest.mark.parametrize(
    ("texts", "spec"),
    [
        pytest.param({}, {}, id="empty"),
        pytest.param({"url": "  org/name \n"}, {"url": "org/name"}, id="surrounding-space"),
        pytest.param({"url": "", "revision": ""}, {}, id="empty-fields"),
        pytest.param({"vae__url": "org/vae"}, {"vae": {"url": "org/vae"}}, id="nested"),
        pytest.param({"priority": "-5"}, {"priority": -5}, id="number"),
        pytest.param({"priority": "high"}, {"priority": "high"}, id="not-a-number"),
        pytest.param({"priority": "٣"}, {"priority": "٣"}, id="not-an-ascii-number"),
        pytest.param({"upcastAttention": "true"}, {"upcastAttention": True}, id="yes"),
        pytest.param({"fromSafetensors": "false"}, {"fromSafetensors": False}, id="no"),
        pytest.param({"verify__render": "true"}, {"verify": {"render": True}}, id="render"),
        pytest.param({"suspend": "true"}, {}, id="field-that-the-form-lacks"),
    ],
)
def test_form_sets_the_fields_of_the_spec(texts, spec):
    """Each text is set as its field's type; empty and unknown fields are left out."""
    assert spec_of(**texts) == spec


def test_resource_is_in_the_namespace_of_the_key():
    """The resource is in the namespace of the key, even if the form has another namespace."""
    body = manifest(values({"metadata.name": "x", "metadata.namespace": "kube-system"}), "art")
    assert body["metadata"] == {"name": "x", "namespace": "art"}


@pytest.mark.parametrize(
    "field",
    [field for field in FIELDS if field.path.startswith("spec.")],
    ids=lambda field: field.path,
)
def test_every_form_field_is_a_field_of_the_spec(field):
    """The spec accepts the field and its last choice."""
    examples = {"number": "3", "text": "a" * (64 if field.path == "spec.sha256" else 1)}
    text = field.choices[-1][0] if field.choices else examples[field.kind]
    body = manifest({field.path: text}, "art")
    parsed = Spec.model_validate(body["spec"]).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    assert parsed == body["spec"]


@given(st.dictionaries(st.sampled_from([field.path for field in FIELDS]), st.text(max_size=50)))
def test_any_input_gives_a_model_in_the_keys_namespace(texts):
    """Text in a field cannot change other parts of the resource."""
    body = manifest(values(texts), "art")
    assert set(body) == {"apiVersion", "kind", "metadata", "spec"}
    assert body["metadata"]["namespace"] == "art"


UNCHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing"
    " errors to complete validation"
)


@pytest.mark.parametrize(
    ("causes", "at", "others"),
    [
        pytest.param(
            [("spec.revision", 'Unsupported value: "fp8": supported values: "fp16", "fp32"')],
            {"spec.revision": 1},
            0,
            id="own-field",
        ),
        pytest.param(
            [("spec.credentialsSecretRef.name", "Invalid value")],
            {"spec.credentialsSecretRef.name": 1},
            0,
            id="nested-field",
        ),
        pytest.param([("spec.vae", "Required value")], {"spec.vae.url": 1}, 0, id="parent-field"),
        pytest.param(
            [("spec.revision", "bad"), ("<nil>", f"Invalid value: null: {UNCHECKED}")],
            {"spec.revision": 1},
            0,
            id="unchecked-rules-are-not-an-error",
        ),
        pytest.param(
            [("spec.url", "bad"), ("spec.url", "worse"), ("spec.url", "bad")],
            {"spec.url": 2},
            0,
            id="repeated-message",
        ),
        pytest.param([("spec.job", "Forbidden")], {}, 1, id="not-in-the-form"),
        pytest.param([("", "a webhook denied it")], {}, 1, id="no-field"),
        pytest.param([], {}, 1, id="no-causes"),
    ],
)
def test_errors_are_sorted_by_field(causes, at, others):
    """An error without a form field goes to `others`, so that no error is lost."""
    errors = complaints(causes, "the API server rejected it")
    assert {path: len(texts) for path, texts in errors.at.items()} == at
    assert len(errors.others) == others
    assert errors


@pytest.mark.parametrize(
    ("texts", "errors", "opened", "open_groups"),
    [
        pytest.param({"spec.url": "org/name"}, {}, "", set(), id="a-link-and-nothing-else"),
        pytest.param({"spec.sha256": "abc"}, {}, "", {"access"}, id="text"),
        pytest.param({}, {"spec.webhook": ["wrong"]}, "", {"publishing"}, id="error"),
        pytest.param({}, {}, TYPE.id, {"type"}, id="asked-for"),
    ],
)
def test_a_group_is_open_if_it_is_used(texts, errors, opened, open_groups):
    """Everything but source and name is folded away; a group with a text or an error is open."""
    shown = folds(FIELDS, texts, errors, opened)
    assert {fold.group.id for fold in shown if fold.is_open} == open_groups
    assert tuple(fold.group for fold in shown) == GROUPS
    assert folds((), texts, errors)[GROUPS.index(ACCESS)].fields == ()


def test_every_control_has_words_for_people():
    """The words do not name fields of the resource, and each control is in one place."""
    assert len({field.path for field in FIELDS}) == len(FIELDS)
    for field in FIELDS:
        assert field.help.endswith("."), field.path
        assert "spec." not in field.help


def test_form_without_errors_is_falsy():
    """`Complaints` is false without errors, as for a form that was not submitted."""
    assert not form.Complaints()
