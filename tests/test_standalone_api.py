"""The API server in raw requests: access, concurrency, watches, deletion; as on a real one."""

from __future__ import annotations

import json

import pytest
from cluster import credentials, model_manifest
from rawapi import RawApi

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"


class Models:
    """The models of a namespace."""

    def __init__(self, api: RawApi, namespace: str) -> None:
        self.api = api
        self.path = f"/apis/sd-operator.dev/v1alpha1/namespaces/{namespace}/stablediffusionmodels"

    def create(self, name: str, **spec: object) -> dict:
        """Make one."""
        answer = self.api.ask("POST", self.path, model_manifest(name, url=LINK, **spec))
        assert answer.code == 201, answer.text
        return answer.body

    def watch(self, **query: object) -> list[tuple[str, str]]:
        """Types and names of the events of one second."""
        given = {"watch": "1", "timeoutSeconds": 1, **query}
        text = "&".join(f"{key}={value}" for key, value in given.items())
        events = self.api.ask("GET", f"{self.path}?{text}").events
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


@pytest.fixture
def models(backend):
    """Raw access to the models of a namespace of the test's own."""
    try:
        api = RawApi(backend.kubeconfig)
    except KeyError:
        pytest.skip("the kubeconfig has no token for raw requests")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "test-"}}
    name = api.ask("POST", "/api/v1/namespaces", namespace).body["metadata"]["name"]
    yield Models(api, name)
    api.ask("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def standalone(backend):
    """Raw access to standalone only."""
    if backend.name != "standalone":
        pytest.skip(f"{backend.name} is not ours to test")
    return RawApi(backend.kubeconfig)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({}, 200, id="token"),
        pytest.param({"Authorization": ""}, 401, id="no-token"),
        pytest.param({"Authorization": "Bearer wrong"}, 401, id="wrong-token"),
        pytest.param({"Authorization": "Bearer é".encode().decode("latin-1")}, 401, id="no-ascii"),
        pytest.param({"Authorization": "Basic YTpi"}, 401, id="basic"),
        pytest.param({"Host": "localhost:1"}, 200, id="localhost"),
        pytest.param({"Host": "[::1]:1"}, 200, id="ipv6-loopback"),
        pytest.param({"Host": "rebound.example.com:1"}, 403, id="foreign-host"),
        pytest.param({"Host": "127.0.0.1.example.com"}, 403, id="foreign-host-like-ours"),
    ],
)
def test_only_the_token_and_a_loopback_host_are_accepted(standalone, headers, code):
    """A web page that points its name at this machine gets nothing, nor does another user."""
    answer = standalone.ask("GET", "/api/v1/namespaces", **headers)

    assert answer.code == code
    assert answer.body["kind"] == ("NamespaceList" if code == 200 else "Status")
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.usefixtures("standalone")
def test_the_kubeconfig_is_private_and_whole(backend):
    """Mode 0600, with the CA in it."""
    assert backend.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert "BEGIN CERTIFICATE" in credentials(backend.kubeconfig)[2]


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


def test_a_name_is_made_up_where_one_is_asked_for(models):
    """GenerateName gets a suffix of five characters."""
    body = model_manifest("", url=LINK)
    body["metadata"] = {"generateName": "gen-"}

    name = models.api.ask("POST", models.path, body).body["metadata"]["name"]

    assert name.startswith("gen-")
    assert len(name) == len("gen-") + 5


def test_a_name_is_taken_once(models):
    """The second one gets AlreadyExists."""
    models.create("a")

    answer = models.api.ask("POST", models.path, model_manifest("a", url=LINK))

    assert (answer.code, answer.body["reason"]) == (409, "AlreadyExists")


def test_a_dry_run_is_validated_and_stored_nowhere(models):
    """What is wrong is answered as ever; what is right leaves no object."""
    good = model_manifest("sketch", url=LINK)
    answer = models.api.ask("POST", f"{models.path}?dryRun=All", good)
    assert answer.code == 201, answer.text
    assert answer.body["spec"]["deletionPolicy"] == "Delete", "with its defaults"
    assert models.api.ask("GET", f"{models.path}/sketch").code == 404
    bad = models.api.ask("POST", f"{models.path}?dryRun=All", model_manifest("sketch"))
    assert (bad.code, bad.body["details"]["causes"][0]["field"]) == (422, "spec.url")
    assert models.api.ask("POST", f"{models.path}?dryRun=Some", good).code == 422
    models.create("sketch")
    assert models.api.ask("POST", f"{models.path}?dryRun=All", good).code == 409


def test_a_stale_writer_is_refused(models):
    """A write on an old resourceVersion conflicts, by PUT and by PATCH; one without is blind."""
    old = models.create("a")
    path = f"{models.path}/a"
    models.api.patch(path, {"spec": {"priority": 1}})

    stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}}
    replaced = models.api.ask("PUT", path, old)
    patched = models.api.patch(path, {**stale, "spec": {"priority": 2}})
    status = models.api.patch(f"{path}/status", {**stale, "status": {"phase": "Ready"}})

    for answer in (replaced, patched, status):
        assert (answer.code, answer.body["reason"]) == (409, "Conflict")
        assert "the object has been modified" in answer.body["message"]
    del old["metadata"]["resourceVersion"]
    assert models.api.ask("PUT", path, old).code == 422
    assert models.api.patch(path, {"spec": {"priority": 3}}).code == 200


def test_a_patch_for_another_uid_is_refused_except_in_a_status(models):
    """A server of 1.36 ignores metadata.uid in the status patch of a custom resource."""
    models.create("a")
    path, other = f"{models.path}/a", {"metadata": {"uid": "other"}}

    assert models.api.patch(path, {**other, "spec": {"priority": 1}}).code == 422
    assert models.api.patch(f"{path}/status", {**other, "status": {"phase": "Ready"}}).code == 200
    tests = [{"op": "test", "path": "/metadata/uid", "value": "other"}]
    assert models.api.patch(f"{path}/status", tests, "json").code == 422


def test_a_write_that_changes_nothing_is_none(models):
    """The resourceVersion stays, and watchers hear nothing."""
    old = models.create("a")

    same = models.api.patch(f"{models.path}/a", {"spec": {"priority": 0}}).body

    assert same["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]


def test_a_deletion_can_have_preconditions(models):
    """Another uid or an old resourceVersion keeps the object."""
    models.create("a")
    for condition, text in (("uid", "the UID in the precondition"), ("resourceVersion", "1")):
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {condition: "1"}}
        answer = models.api.ask("DELETE", f"{models.path}/a", options)
        assert (answer.code, answer.body["reason"]) == (409, "Conflict")
        assert text in answer.body["message"]

    gone = models.api.ask("DELETE", f"{models.path}/a")

    assert (gone.code, gone.body["status"]) == (200, "Success")
    assert models.api.ask("GET", f"{models.path}/a").code == 404


def test_a_collection_is_deleted_by_selection(models):
    """Only what the selectors match goes."""
    for name in ("a", "b"):
        models.create(name)

    models.api.ask("DELETE", f"{models.path}?fieldSelector=metadata.name%3Da")

    left = models.api.ask("GET", models.path).body["items"]
    assert [item["metadata"]["name"] for item in left] == ["b"]


def test_a_list_comes_in_pages(models):
    """Limit and continue walk through all, each once."""
    for name in "abc":
        models.create(name)

    first = models.api.ask("GET", f"{models.path}?limit=2").body
    token = first["metadata"]["continue"]
    second = models.api.ask("GET", f"{models.path}?limit=2&continue={token}").body

    names = [item["metadata"]["name"] for item in first["items"] + second["items"]]
    assert names == ["a", "b", "c"]
    assert first["metadata"]["remainingItemCount"] == 1
    assert not second["metadata"].get("continue")
    assert models.api.ask("GET", f"{models.path}?limit=2&continue=abc").code == 400


def test_a_watch_goes_on_from_a_revision(models):
    """What happened since is told in order, also the deletion."""
    models.create("a")
    since = models.api.ask("GET", models.path).body["metadata"]["resourceVersion"]
    models.create("b")
    models.api.patch(f"{models.path}/a", {"spec": {"priority": 1}})
    models.api.ask("DELETE", f"{models.path}/b")

    assert models.watch(resourceVersion=since) == [
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
    ]


def test_a_watch_from_nowhere_begins_with_what_is_there(models):
    """Without a resourceVersion the present objects come first."""
    models.create("a")

    assert models.watch() == [("ADDED", "a")]


def test_a_watch_can_stream_the_list(models):
    """sendInitialEvents: the objects, then a bookmark that says so."""
    models.create("a")
    query = "watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true"
    matched = f"{models.path}?{query}&resourceVersionMatch=NotOlderThan"

    added, bookmark = models.api.ask("GET", matched).events[:2]

    assert (added["type"], bookmark["type"]) == ("ADDED", "BOOKMARK")
    annotations = bookmark["object"]["metadata"]["annotations"]
    assert annotations == {"k8s.io/initial-events-end": "true"}
    assert models.api.ask("GET", f"{models.path}?{query}").code == 422


def test_a_watch_by_selector_sees_objects_come_and_go(models):
    """An object that begins to match is ADDED, one that ends to is DELETED."""
    models.create("a")
    since = models.api.ask("GET", models.path).body["metadata"]["resourceVersion"]
    for labels in ({"x": "1"}, {"x": "2"}, {"x": None}):
        models.api.patch(f"{models.path}/a", {"metadata": {"labels": labels}})

    seen = models.watch(resourceVersion=since, labelSelector="x%3D1")

    assert seen == [("ADDED", "a"), ("DELETED", "a")]


def test_a_watch_from_too_long_ago_is_told_to_list_again(models):
    """410 comes as an ERROR event."""
    answer = models.api.ask("GET", f"{models.path}?watch=1&resourceVersion=1&timeoutSeconds=1")

    (event,) = answer.events
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert event["object"]["reason"] == "Expired"


def test_server_side_apply_needs_a_manager(models):
    """422 says so."""
    path = f"{models.path}/a"
    body = json.dumps(model_manifest("a", url=LINK))

    assert "fieldManager" in models.api.patch(path, body, "apply").body["message"]
    assert models.api.patch(f"{path}?fieldManager=x", body, "apply").code == 201


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        pytest.param("GET", "/nope", 404, id="path"),
        pytest.param("GET", "/apis/nope/v1/things", 404, id="group"),
        pytest.param("POST", "/api/v1/nope", 404, id="resource"),
        pytest.param("GET", "/api/v1/namespaces/default/pods/nope", 404, id="object"),
        pytest.param("GET", "/api/v1/namespaces/default/pods/nope/log", 404, id="log"),
        pytest.param("DELETE", "/api/v1/namespaces/default", 403, id="default-namespace"),
        pytest.param("GET", "/api/v1/pods?labelSelector=a%20b", 400, id="label-selector"),
        pytest.param("GET", "/api/v1/pods?fieldSelector=spec.foo%3Dx", 400, id="field-selector"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_refused(models, method, path, code):
    """With the code that a real server gives."""
    assert models.api.ask(method, path, {} if method == "POST" else None).code == code


def test_a_patch_of_an_unknown_type_is_refused(models):
    """415 names the types that are known."""
    models.create("a")
    strategic = models.api.patch(f"{models.path}/a", {}, "strategic")

    assert (strategic.code, strategic.body["reason"]) == (415, "UnsupportedMediaType")
    assert "application/merge-patch+json" in strategic.body["message"]


def test_a_body_without_end_is_refused(standalone):
    """Bodies above 3 MiB, as on a real server."""
    body = json.dumps(model_manifest("a", url=LINK, foo="x" * 4_000_000))
    path = "/apis/sd-operator.dev/v1alpha1/namespaces/default/stablediffusionmodels"

    assert standalone.ask("POST", path, body).code == 413
