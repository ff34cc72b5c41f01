"""Tests of edits by the form: the texts that it shows, and the change that it makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_operator.gateway.gallery import edits

SECRET = "https://ann:secret@example.com/m.safetensors?token=secret"
SPEC = {
    "url": "https://example.com/m.safetensors",
    "modelType": "lora",
    "priority": 0,
    "weights": "standard",
    "deletionPolicy": "Delete",
    "upcastAttention": False,
    "vae": {"url": "org/vae"},
    "verify": {"weights": True},
    "suspend": True,
}


def patch(spec: dict, **texts: str) -> dict:
    """Return the patch of an edit; `__` stands for `.` in the names of fields."""
    submitted = {f"spec.{name.replace('__', '.')}": text for name, text in texts.items()}
    return edits.merge_patch(spec, edits.edited(spec, edits.texts(spec) | submitted))


def test_form_shows_the_spec_without_defaults_and_secrets():
    """A field at its default shows the empty choice, and a url is shown without secret parts."""
    shown = edits.texts(SPEC | {"webhook": SECRET})
    assert {path: text for path, text in shown.items() if text} == {
        "spec.url": "https://example.com/m.safetensors",
        "spec.modelType": "lora",
        "spec.upcastAttention": "false",
        "spec.vae.url": "org/vae",
        "spec.webhook": "https://example.com/m.safetensors?…",
    }


def test_fields_that_cannot_change_are_not_in_the_form():
    """The form has no fields for name, model id and PVC: the API server rejects their change."""
    paths = {field.path for field in edits.FIELDS}
    assert not paths & {"metadata.name", "spec.modelId", "spec.storage.claimName"}


@pytest.mark.parametrize(
    ("spec", "texts", "change"),
    [
        pytest.param(SPEC, {}, {}, id="nothing"),
        pytest.param(SPEC, {"url": "org/name"}, {"url": "org/name"}, id="other-text"),
        pytest.param(SPEC, {"modelType": ""}, {"modelType": None}, id="removed"),
        pytest.param(SPEC, {"priority": "5"}, {"priority": 5}, id="number"),
        pytest.param(SPEC, {"upcastAttention": "true"}, {"upcastAttention": True}, id="yes"),
        pytest.param(SPEC, {"vae__url": ""}, {"vae": None}, id="empty-parent"),
        pytest.param(SPEC, {"vae__url": "a/b"}, {"vae": {"url": "a/b"}}, id="nested"),
        pytest.param(
            SPEC,
            {"credentialsSecretRef__name": "hub"},
            {"credentialsSecretRef": {"name": "hub"}},
            id="new-parent",
        ),
        pytest.param(
            {"url": SECRET}, {"revision": "fp16"}, {"revision": "fp16"}, id="keeps-secret"
        ),
        pytest.param({"url": SECRET}, {"url": "a/b"}, {"url": "a/b"}, id="replaces-secret"),
        pytest.param(SPEC, {"modelId": "x", "suspend": "x"}, {}, id="fields-that-the-form-lacks"),
    ],
)
def test_edit_changes_only_the_fields_whose_text_was_changed(spec, texts, change):
    """All other fields stay, also those that the form does not have."""
    assert patch(spec, **texts) == change


_OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans() | st.text(max_size=3)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers()),
    max_leaves=6,
)


def applied(target: object, change: object) -> object:
    """Apply a merge patch as RFC 7396 says."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


@settings(max_examples=50)
@given(_OBJECTS, _OBJECTS)
def test_patch_turns_one_object_into_the_other(old, new):
    """The patch is empty if the two objects are equal."""
    change = edits.merge_patch(old, new)
    assert applied(old, change) == new
    if old == new:
        assert change == {}
