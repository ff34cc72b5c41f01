"""Tests of the API server with raw requests. They also hold for a real API server."""

from __future__ import annotations

import json

import pytest

from tests.support.kube.cluster import model_manifest
from tests.support.kube.rawapi import LINK, scratch

pytestmark = pytest.mark.cluster


@pytest.fixture
def models(backend):
    """Raw access to the models of a new namespace."""
    with scratch(backend) as models:
        yield models


def test_generate_name_gives_a_name_with_a_random_suffix(models):
    """The suffix has five characters."""
    body = model_manifest("", url=LINK)
    body["metadata"] = {"generateName": "gen-"}

    name = models.api.ask("POST", models.path, body).body["metadata"]["name"]

    assert name.startswith("gen-")
    assert len(name) == len("gen-") + 5


def test_second_object_with_the_same_name_is_rejected(models):
    """The response has the reason AlreadyExists."""
    models.create("a")

    response = models.api.ask("POST", models.path, model_manifest("a", url=LINK))

    assert (response.code, response.body["reason"]) == (409, "AlreadyExists")


def test_dry_run_of_a_creation_validates_and_stores_nothing(models):
    """A dry run fails whenever the real creation would."""
    good = model_manifest("sketch", url=LINK)
    response = models.api.ask("POST", f"{models.path}?dryRun=All", good)
    assert response.code == 201, response.text
    assert response.body["spec"]["deletionPolicy"] == "Delete", "defaults are set"
    assert models.api.ask("GET", f"{models.path}/sketch").code == 404
    bad = models.api.ask("POST", f"{models.path}?dryRun=All", model_manifest("sketch"))
    assert (bad.code, bad.body["details"]["causes"][0]["field"]) == (422, "spec.url")
    assert models.api.ask("POST", f"{models.path}?dryRun=Some", good).code == 422
    models.create("sketch")
    assert models.api.ask("POST", f"{models.path}?dryRun=All", good).code == 409


def test_write_with_an_old_resource_version_conflicts(models):
    """PUT and PATCH both conflict; without a resourceVersion, a PUT fails and a PATCH succeeds."""
    old = models.create("a")
    path = f"{models.path}/a"
    models.api.patch(path, {"spec": {"priority": 1}})

    stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}}
    replaced = models.api.ask("PUT", path, old)
    patched = models.api.patch(path, {**stale, "spec": {"priority": 2}})
    status = models.api.patch(f"{path}/status", {**stale, "status": {"phase": "Ready"}})

    for response in (replaced, patched, status):
        assert (response.code, response.body["reason"]) == (409, "Conflict")
        assert "the object has been modified" in response.body["message"]
    del old["metadata"]["resourceVersion"]
    assert models.api.ask("PUT", path, old).code == 422
    assert models.api.patch(path, {"spec": {"priority": 3}}).code == 200


def test_patch_with_another_uid_is_rejected_except_for_a_status(models):
    """A patch of the spec with another uid gets 422; a merge patch of the status is accepted.

    A real API server (1.36) ignores metadata.uid in the status patch of a custom resource.
    """
    models.create("a")
    path, other = f"{models.path}/a", {"metadata": {"uid": "other"}}

    assert models.api.patch(path, {**other, "spec": {"priority": 1}}).code == 422
    assert models.api.patch(f"{path}/status", {**other, "status": {"phase": "Ready"}}).code == 200
    tests = [{"op": "test", "path": "/metadata/uid", "value": "other"}]
    assert models.api.patch(f"{path}/status", tests, "json").code == 422


def test_write_without_a_change_keeps_the_resource_version(models):
    """A write that changes nothing keeps the resourceVersion, so watches get no event for it."""
    old = models.create("a")

    same = models.api.patch(f"{models.path}/a", {"spec": {"priority": 0}}).body

    assert same["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]


def test_deletion_with_a_failed_precondition_conflicts(models):
    """The object is kept if the precondition has another uid or an old resourceVersion."""
    models.create("a")
    for condition, text in (("uid", "the UID in the precondition"), ("resourceVersion", "1")):
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {condition: "1"}}
        response = models.api.ask("DELETE", f"{models.path}/a", options)
        assert (response.code, response.body["reason"]) == (409, "Conflict")
        assert text in response.body["message"]

    deleted = models.api.ask("DELETE", f"{models.path}/a")

    assert (deleted.code, deleted.body["status"]) == (200, "Success")
    assert models.api.ask("GET", f"{models.path}/a").code == 404


def test_deletion_of_a_collection_respects_selectors(models):
    """Objects that do not match the selectors stay."""
    for name in ("a", "b"):
        models.create(name)

    models.api.ask("DELETE", f"{models.path}?fieldSelector=metadata.name%3Da")

    left = models.api.ask("GET", models.path).body["items"]
    assert [item["metadata"]["name"] for item in left] == ["b"]


def test_limit_and_continue_page_through_a_list(models):
    """The pages together have every object once."""
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


def test_watch_continues_from_a_resource_version(models):
    """The watch yields every later change in order, including deletions."""
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


def test_watch_without_a_resource_version_starts_with_all_objects(models):
    """The existing objects come as ADDED events."""
    models.create("a")

    assert models.watch() == [("ADDED", "a")]


def test_watch_can_stream_the_initial_list(models):
    """With sendInitialEvents, a bookmark marks the end of the existing objects."""
    models.create("a")
    query = "watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true"
    path = f"{models.path}?{query}&resourceVersionMatch=NotOlderThan"

    added, bookmark = models.api.ask("GET", path).events[:2]

    assert (added["type"], bookmark["type"]) == ("ADDED", "BOOKMARK")
    annotations = bookmark["object"]["metadata"]["annotations"]
    assert annotations == {"k8s.io/initial-events-end": "true"}
    assert models.api.ask("GET", f"{models.path}?{query}").code == 422


def test_watch_with_a_selector_adds_and_deletes_objects(models):
    """An object that starts to match is ADDED, one that stops matching is DELETED."""
    models.create("a")
    since = models.api.ask("GET", models.path).body["metadata"]["resourceVersion"]
    for labels in ({"x": "1"}, {"x": "2"}, {"x": None}):
        models.api.patch(f"{models.path}/a", {"metadata": {"labels": labels}})

    events = models.watch(resourceVersion=since, labelSelector="x%3D1")

    assert events == [("ADDED", "a"), ("DELETED", "a")]


def test_watch_from_an_expired_resource_version_fails(models):
    """The watch gets an ERROR event with status 410."""
    response = models.api.ask("GET", f"{models.path}?watch=1&resourceVersion=1&timeoutSeconds=1")

    (event,) = response.events
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert event["object"]["reason"] == "Expired"


def test_server_side_apply_needs_a_field_manager(models):
    """If the option fieldManager is missing, the message names it."""
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
def test_missing_and_forbidden_paths_are_rejected(models, method, path, code):
    """The status code is that of a real API server."""
    assert models.api.ask(method, path, {} if method == "POST" else None).code == code


def test_patch_of_an_unsupported_type_is_rejected(models):
    """The message of status 415 lists the supported types."""
    models.create("a")
    strategic = models.api.patch(f"{models.path}/a", {}, "strategic")

    assert (strategic.code, strategic.body["reason"]) == (415, "UnsupportedMediaType")
    assert "application/merge-patch+json" in strategic.body["message"]
