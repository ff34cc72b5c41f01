"""What an object must be, in raw requests; as on a real API server."""

from __future__ import annotations

import pytest

from tests.support.kube.cluster import model_manifest
from tests.support.kube.rawapi import LINK, scratch

pytestmark = pytest.mark.cluster


@pytest.fixture
def models(backend):
    """Raw access to the models of a namespace of the test's own."""
    with scratch(backend) as models:
        yield models


@pytest.mark.parametrize(
    ("body", "code", "complaint"),
    [
        pytest.param("{bad", 400, "json parse error", id="no-json"),
        pytest.param("[]", 400, "must be of type StableDiffusionModel", id="no-object"),
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
def test_a_body_that_is_no_such_object_is_refused(models, body, code, complaint):
    """The Status says what is wrong."""
    answer = models.api.ask("POST", models.path, body)

    assert (answer.code, answer.body["kind"]) == (code, "Status")
    assert complaint in answer.body["message"]


UNCHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid;"
    " correct the existing errors to complete validation"
)


def wrong_type(path, found, wanted):
    """The fault of a value of another type."""
    text = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return (path, "FieldValueTypeInvalid", text)


@pytest.mark.parametrize(
    ("spec", "faults"),
    [
        pytest.param(
            {"url": 5},
            [
                wrong_type("spec.url", "integer", "string"),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="type",
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
            id="type-of-a-choice",
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
            {"url": LINK, "modelId": "-" * 64},
            [
                (
                    "spec.modelId",
                    "FieldValueTooLong",
                    "Too long: may not be more than 63 bytes",
                ),
                ("<nil>", "FieldValueInvalid", UNCHECKED),
            ],
            id="too-long: the pattern is not looked at",
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
            id="too-short: likewise",
        ),
        pytest.param(
            [],
            [wrong_type("spec", "array", "object"), ("<nil>", "FieldValueInvalid", UNCHECKED)],
            id="no-object",
        ),
    ],
)
def test_each_fault_is_told_in_the_words_of_a_real_server(models, spec, faults):
    """Field, reason and message of all causes."""
    answer = models.api.ask("POST", models.path, {**model_manifest("a"), "spec": spec})

    assert answer.code == 422
    causes = answer.body["details"]["causes"]
    assert [(c["field"], c["reason"], c["message"]) for c in causes] == faults


def test_conditions_of_the_same_type_are_refused(models):
    """A list that is a map by its keys."""
    models.api.ask("POST", models.path, model_manifest("a", url=LINK))
    condition = {"type": "Ready", "status": "True", "reason": "A", "message": ""}
    condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch = {"status": {"conditions": [condition, condition]}}

    answer = models.api.patch(f"{models.path}/a/status", patch)

    (cause,) = answer.body["details"]["causes"]
    assert (answer.code, cause["field"]) == (422, "status.conditions[1]")
    assert cause["message"] == 'Duplicate value: {"type":"Ready"}'


def test_a_dry_run_is_answered_and_changes_nothing(models):
    """Creation, change, application and deletion; the answers are those of the real thing."""
    path, query = f"{models.path}/a", "?dryRun=All"
    tried = models.api.ask("POST", models.path + query, model_manifest("a", url=LINK))
    assert (tried.code, tried.body["spec"]["url"]) == (201, LINK)
    assert "resourceVersion" not in tried.body["metadata"]
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
def test_an_option_that_a_write_does_not_have_is_refused(models, query, message):
    """Else what is meant as a rehearsal would be done."""
    answer = models.api.ask("POST", f"{models.path}?{query}", model_manifest("a", url=LINK))

    assert answer.code == 422
    assert answer.body["message"] == f'CreateOptions.meta.k8s.io "" is invalid: {message}'


def test_the_keys_of_a_secret_are_fit_for_files(models):
    """They become files' names."""
    path = models.path.partition("/namespaces/")[2].partition("/")[0]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}

    answer = models.api.ask(
        "POST", f"/api/v1/namespaces/{path}/secrets", secret | {"data": {"a b": "YQ=="}}
    )

    (cause,) = answer.body["details"]["causes"]
    assert (answer.code, cause["field"]) == (422, "data[a b]")
    assert cause["message"].startswith('Invalid value: "a b": a valid config key must consist of')


def test_an_invalid_object_is_answered_with_its_causes(models):
    """details.causes names the field and the reason of each fault."""
    answer = models.api.ask("POST", models.path, model_manifest("a", url=LINK, modelType="x"))

    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    details = answer.body["details"]
    assert (details["name"], details["kind"]) == ("a", "StableDiffusionModel")
    cause = details["causes"][0]
    assert (cause["field"], cause["reason"]) == ("spec.modelType", "FieldValueNotSupported")


@pytest.mark.parametrize(
    ("validation", "code", "warned"),
    [
        pytest.param("", 201, True, id="default"),
        pytest.param("?fieldValidation=Warn", 201, True, id="warn"),
        pytest.param("?fieldValidation=Ignore", 201, False, id="ignore"),
        pytest.param("?fieldValidation=Strict", 400, False, id="strict"),
    ],
)
def test_unknown_fields_are_dropped_or_refused(models, validation, code, warned):
    """As fieldValidation asks; what is dropped is warned of."""
    manifest = model_manifest("a", url=LINK, foo=1)

    answer = models.api.ask("POST", models.path + validation, manifest)

    assert answer.code == code
    assert ("Warning" in answer.headers) == warned
    if warned:
        assert answer.headers["Warning"] == '299 - "unknown field \\"spec.foo\\""'
    if code == 201:
        assert "foo" not in answer.body["spec"]
