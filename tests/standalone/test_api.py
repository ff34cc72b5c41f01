"""The API server in raw requests: writes, deletion, lists, watches; as on a real one."""

from __future__ import annotations

import json

import pytest

from tests.support.kube.cluster import model_manifest
from tests.support.kube.rawapi import LINK, scratch

pytestmark = pytest.mark.cluster


@pytest.fixture
def models(backend):
    """Raw access to the models of a namespace of the test's own."""
    with scratch(backend) as models:
        yield models


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
