"""Tests of the validation of objects with raw requests. They also hold for a real API server."""

from __future__ import annotations

import pytest

from tests.support.kube.cluster import model_manifest
from tests.support.kube.rawapi import LINK, scratch

pytestmark = pytest.mark.cluster


@pytest.fixture
def models(backend):
    """Raw access to the models of a new namespace."""
    with scratch(backend) as models:
        yield models


@pytest.mark.parametrize(
    ("body", "code", "complaint"),
    [
        pytest.param("{bad", 400, "json parse error", id="not-json"),
        pytest.param("[]", 400, "must be of type StableDiffusionModel", id="not-an-object"),
        pytest.param({}, 400, "must be of type StableDiffusionModel", id="no-kind"),
        pytest.param({**model_manifest("a", url=LINK), "kind": "Foo"}, 422, "Foo", id="kind"),
        pytest.param(
            {**model_manifest("a", url=LINK), "apiVersion": "sd-operator.dev/v1"},
            400,
            "does not match the expected API version",
            id="version",
        ),
        pytest.param(
            model_manifest("", url=LINK), 422, "name or generateName is required", id="name"
        ),
        pytest.param(
            {**model_manifest("a", url=LINK), "metadata": {"name": "a", "namespace": "other"}},
            400,
            "the namespace of the provided object does not match",
            id="namespace",
        ),
        pytest.param(
            {**model_manifest("a", url=LINK), "metadata": {"name": "a", "labels": {"a b": "c"}}},
            422,
            'metadata.labels: Invalid value: "a b": name part must consist of',
            id="label",
        ),
    ],
)
def test_body_that_is_not_an_object_of_the_kind_is_rejected(models, body, code, complaint):
    """The response is a Status that says what is wrong."""
    response = models.api.ask("POST", models.path, body)

    assert (response.code, response.body["kind"]) == (code, "Status")
    assert complaint in response.body["message"]


UNCHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid;"
    " correct the existing errors to complete validation"
)


def wrong_type(path, actual, expected):
    """Return the cause for a value of the wrong type."""
    text = f'Invalid value: "{actual}": {path} in body must be of type {expected}: "{actual}"'
    return (path, "FieldValueTypeInvalid", text)


@pytest.mark.parametrize(
    ("spec", "causes"),
    [
        pytest.param(
            {"url": 5},
            [
                wrong_type("spec.url", "integer", "string"),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="wrong-type",
        ),
        pytest.param(
            {"url": LINK, "revision": 16},
            [
                wrong_type("spec.revision", "integer", "string"),
                (
                    "spec.revision",
                    "FieldValueNotSupported",
                    'Unsupported value: 16: supported values: "fp16", "fp32", "bf16"',
                ),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="wrong-type-of-an-enum",
        ),
        pytest.param(
            {"url": LINK, "verify": {"steps": 1.5}},
            [
                wrong_type("spec.verify.steps", "number", "integer"),
                (
                    "<nil>",
                    "FieldValueInvalid",
                    'Invalid value: "": Checked value must be of type integer (default format) in'
                    " spec.verify.steps",
                ),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="fraction",
        ),
        pytest.param(
            {"url": LINK, "priority": 10**22},
            [
                wrong_type("spec.priority", "number", "integer"),
                (
                    "<nil>",
                    "FieldValueInvalid",
                    'Invalid value: "": Checked value must be of type integer (default format) in'
                    " spec.priority",
                ),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="more-than-64-bits",
        ),
        pytest.param(
            {"url": LINK, "modelId": "-" * 64},
            [
                (
                    "spec.modelId",
                    "FieldValueTooLong",
                    "Too long: may not be more than 63 bytes",
                ),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="too-long-and-no-match-for-the-pattern",
        ),
        pytest.param(
            {"url": LINK, "gitRevision": ""},
            [
                (
                    "spec.gitRevision",
                    "FieldValueInvalid",
                    'Invalid value: "": spec.gitRevision in body should be at least 1 chars long',
                )
            ],
            id="too-short-and-no-match-for-the-pattern",
        ),
        pytest.param(
            [],
            [wrong_type("spec", "array", "object"), ("<nil>", "FieldValueInvalid", UNCHECKED)],
            id="not-an-object",
        ),
    ],
)
def test_causes_are_those_of_a_real_server(models, spec, causes):
    """Field, reason and message of every cause are the same as a real API server's."""
    response = models.api.ask("POST", models.path, {**model_manifest("a"), "spec": spec})

    assert response.code == 422
    actual = response.body["details"]["causes"]
    assert [(c["field"], c["reason"], c["message"]) for c in actual] == causes


def test_conditions_with_the_same_type_are_rejected(models):
    """A status with two conditions of one type is rejected: in the schema, `type` is their key."""
    models.api.ask("POST", models.path, model_manifest("a", url=LINK))
    condition = {"type": "Ready", "status": "True", "reason": "A", "message": ""}
    condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch = {"status": {"conditions": [condition, condition]}}

    response = models.api.patch(f"{models.path}/a/status", patch)

    (cause,) = response.body["details"]["causes"]
    assert (response.code, cause["field"]) == (422, "status.conditions[1]")
    assert cause["message"] == 'Duplicate value: {"type":"Ready"}'


def test_dry_run_changes_nothing(models):
    """Creation, update, apply and deletion respond as usual, but the object stays as it was."""
    path, query = f"{models.path}/a", "?dryRun=All"
    created = models.api.ask("POST", models.path + query, model_manifest("a", url=LINK))
    assert (created.code, created.body["spec"]["url"]) == (201, LINK)
    assert "resourceVersion" not in created.body["metadata"]
    assert models.api.ask("GET", path).code == 404

    models.api.ask("POST", models.path, model_manifest("a", url=LINK))
    before = models.api.ask("GET", path).body
    changed = models.api.patch(path + query, {"spec": {"priority": 3}})
    assert (changed.code, changed.body["spec"]["priority"]) == (200, 3)
    assert changed.body["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    manifest = model_manifest("a", priority=5)
    applied = models.api.patch(f"{path}{query}&fieldManager=me&force=true", manifest, "apply")
    assert (applied.code, applied.body["spec"]["priority"]) == (200, 5)
    assert models.api.patch(path + query, {"spec": {"url": "gpt2"}}).code == 422
    assert models.api.ask("DELETE", path + query).code == 200
    assert models.api.ask("DELETE", path, {"dryRun": ["All"]}).code == 200
    assert models.api.ask("GET", path).body == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param(
            "dryRun=yes", 'dryRun: Unsupported value: ["yes"]: supported values: "All"', id="dryRun"
        ),
        pytest.param(
            "fieldValidation=x",
            'fieldValidation: Unsupported value: "x": supported values: "", "Ignore", "Strict",'
            ' "Warn"',
            id="fieldValidation",
        ),
    ],
)
def test_invalid_option_of_a_write_is_rejected(models, query, message):
    """An invalid option, such as dryRun, is an error: ignoring it could cause a real write."""
    response = models.api.ask("POST", f"{models.path}?{query}", model_manifest("a", url=LINK))

    assert response.code == 422
    assert response.body["message"] == f'CreateOptions.meta.k8s.io "" is invalid: {message}'


def test_keys_of_a_secret_must_be_valid_file_names(models):
    """A Secret with a key that is not a valid file name is rejected."""
    path = models.path.partition("/namespaces/")[2].partition("/")[0]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}

    response = models.api.ask(
        "POST", f"/api/v1/namespaces/{path}/secrets", secret | {"data": {"a b": "YQ=="}}
    )

    (cause,) = response.body["details"]["causes"]
    assert (response.code, cause["field"]) == (422, "data[a b]")
    assert cause["message"].startswith('Invalid value: "a b": a valid config key must consist of')


def test_response_for_an_invalid_object_has_causes(models):
    """The list details.causes has the field and the reason of each error."""
    response = models.api.ask("POST", models.path, model_manifest("a", url=LINK, modelType="x"))

    assert (response.code, response.body["reason"]) == (422, "Invalid")
    details = response.body["details"]
    assert (details["name"], details["kind"]) == ("a", "StableDiffusionModel")
    cause = details["causes"][0]
    assert (cause["field"], cause["reason"]) == ("spec.modelType", "FieldValueNotSupported")


@pytest.mark.parametrize(
    ("validation", "code", "warns"),
    [
        pytest.param("", 201, True, id="default"),
        pytest.param("?fieldValidation=Warn", 201, True, id="warn"),
        pytest.param("?fieldValidation=Ignore", 201, False, id="ignore"),
        pytest.param("?fieldValidation=Strict", 400, False, id="strict"),
    ],
)
def test_unknown_fields_are_dropped_or_rejected(models, validation, code, warns):
    """The option fieldValidation decides; by default, dropped fields cause a warning."""
    manifest = model_manifest("a", url=LINK, foo=1)

    response = models.api.ask("POST", models.path + validation, manifest)

    assert response.code == code
    assert ("Warning" in response.headers) == warns
    if warns:
        assert response.headers["Warning"] == '299 - "unknown field \\"spec.foo\\""'
    if code == 201:
        assert "foo" not in response.body["spec"]
