"""The load form: its resource, and the API server's complaints at its fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.spec import Spec
from sd_operator.gateway.gallery import form
from sd_operator.gateway.gallery.form import FIELDS, complaints, manifest, values


def spec_of(**texts: str) -> dict[str, object]:
    """The spec that the form makes; keywords with __ for dots."""
    given_texts = {f"spec.{name.replace('__', '.')}": text for name, text in texts.items()}
    spec: dict[str, object] = manifest(values(given_texts), "art")["spec"]
    return spec


@pytest.mark.parametrize(
    ("texts", "spec"),
    [
        pytest.param({}, {}, id="empty"),
        pytest.param({"url": "  org/name \n"}, {"url": "org/name"}, id="space-around"),
        pytest.param({"url": "", "revision": ""}, {}, id="what-is-empty-is-left-out"),
        pytest.param({"vae__url": "org/vae"}, {"vae": {"url": "org/vae"}}, id="nested"),
        pytest.param({"priority": "-5"}, {"priority": -5}, id="number"),
        pytest.param({"priority": "high"}, {"priority": "high"}, id="no-number"),
        pytest.param({"priority": "٣"}, {"priority": "٣"}, id="no-ascii-number"),
        pytest.param({"upcastAttention": "true"}, {"upcastAttention": True}, id="yes"),
        pytest.param({"fromSafetensors": "false"}, {"fromSafetensors": False}, id="no"),
        pytest.param({"suspend": "true"}, {}, id="what-the-form-lacks-is-not-taken"),
    ],
)
def test_the_form_makes_a_resource(texts, spec):
    """Each text where it belongs, as what it is."""
    assert spec_of(**texts) == spec


def test_the_resource_is_in_the_keys_namespace():
    """Whatever the form says."""
    body = manifest(values({"metadata.name": "x", "metadata.namespace": "kube-system"}), "art")
    assert body["metadata"] == {"name": "x", "namespace": "art"}


@pytest.mark.parametrize("one", FIELDS[1:], ids=lambda one: one.path)
def test_every_field_is_the_contracts(one):
    """There is such a field, and its choices are the contract's."""
    plain = {"number": "3", "text": "a" * (64 if one.path == "spec.sha256" else 1)}
    text = one.choices[-1][0] if one.choices else plain[one.kind]
    body = manifest({one.path: text}, "art")
    read = Spec.model_validate(body["spec"]).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    assert read == body["spec"]


@given(st.dictionaries(st.sampled_from([one.path for one in FIELDS]), st.text(max_size=50)))
def test_any_texts_make_a_resource_of_ours(texts):
    """In the key's namespace, of our kind, with no other parts."""
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
            id="at-its-field",
        ),
        pytest.param(
            [("spec.credentialsSecretRef.name", "Invalid value")],
            {"spec.credentialsSecretRef.name": 1},
            0,
            id="at-a-part",
        ),
        pytest.param([("spec.vae", "Required value")], {"spec.vae.url": 1}, 0, id="around-it"),
        pytest.param(
            [("spec.revision", "bad"), ("<nil>", f"Invalid value: null: {UNCHECKED}")],
            {"spec.revision": 1},
            0,
            id="what-was-not-checked-is-no-fault",
        ),
        pytest.param(
            [("spec.url", "bad"), ("spec.url", "worse"), ("spec.url", "bad")],
            {"spec.url": 2},
            0,
            id="each-once",
        ),
        pytest.param([("spec.job", "Forbidden")], {}, 1, id="not-in-the-form"),
        pytest.param([("", "a webhook denied it")], {}, 1, id="no-field"),
        pytest.param([], {}, 1, id="no-causes"),
    ],
)
def test_complaints_are_told_at_their_fields(causes, at, others):
    """And nothing that the API server says is lost."""
    found = complaints(causes, "the API server refused it")
    assert {path: len(texts) for path, texts in found.at.items()} == at
    assert len(found.others) == others
    assert found


def test_no_complaints_are_none():
    """An untried form has none."""
    assert not form.Complaints()
