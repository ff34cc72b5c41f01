"""Tests of parts of the API server: patches, schemas, selectors, protobuf, storage, Jobs."""

from __future__ import annotations

import asyncio
import copy
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.crd import custom_resource_definition
from sd_operator.standalone import jobs, patch, protobuf
from sd_operator.standalone.errors import ApiError
from sd_operator.standalone.registry import Registry
from sd_operator.standalone.resources import DEFINITIONS, JOBS, NAMESPACES, PODS, Resource
from sd_operator.standalone.schema import prune, set_defaults
from sd_operator.standalone.selectors import selector
from sd_operator.standalone.storage import HISTORY, Storage
from sd_operator.standalone.tables import human_duration

WORDS = (
    "annotations backoffLimit claimName conditions containers env finalizers image "
    "initContainers labels metadata name namespace onExitCodes onPodConditions "
    "ownerReferences path phase podFailurePolicy progress resourceVersion "
    "restartPolicy rules selector spec status storage suspend template type uid url "
    "value values verify volumeMounts volumes weights "
)
KEYS = st.sampled_from(WORDS.split()) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def new_registry() -> Registry:
    """Return a registry with this project's CRD and one namespace."""
    registry = Registry()
    registry.create(DEFINITIONS, "", custom_resource_definition(), "Strict")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    registry.create(NAMESPACES, "", namespace, "Strict")
    return registry


def models(registry: Registry) -> Resource:
    """Return the resource that the CRD defines."""
    resource = registry.resource("sd-operator.dev", "v1alpha1", "stablediffusionmodels")
    assert resource is not None
    return resource


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [
        pytest.param({"a": "b"}, {"a": "c"}, {"a": "c"}, id="replace"),
        pytest.param({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}, id="add"),
        pytest.param({"a": "b", "b": 1}, {"a": None}, {"b": 1}, id="remove"),
        pytest.param({"a": ["b"]}, {"a": "c"}, {"a": "c"}, id="list-by-value"),
        pytest.param({"a": [1]}, {"a": [2]}, {"a": [2]}, id="list-by-list"),
        pytest.param({"a": "b"}, {"a": {"x": None, "y": 1}}, {"a": {"y": 1}}, id="value-by-object"),
        pytest.param({}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}, id="null-in-new-object"),
    ],
)
def test_merge_patch_follows_rfc_7386(target, change, result):
    """The examples are those of the RFC."""
    assert patch.merge_patch(target, change) == result


@pytest.mark.parametrize(
    ("change", "result"),
    [
        pytest.param(
            {"containers": [{"name": "a", "image": "2"}]},
            [{"name": "a", "image": "2", "tty": True}, {"name": "b", "image": "1"}],
            id="merge-by-name",
        ),
        pytest.param(
            {"containers": [{"name": "c"}]},
            [{"name": "a", "image": "1", "tty": True}, {"name": "b", "image": "1"}, {"name": "c"}],
            id="append",
        ),
        pytest.param(
            {"containers": [{"name": "a", "$patch": "delete"}]},
            [{"name": "b", "image": "1"}],
            id="delete",
        ),
        pytest.param(
            {"containers": [{"name": "c"}, {"$patch": "replace"}]}, [{"name": "c"}], id="replace"
        ),
        pytest.param(
            {
                "$setElementOrder/containers": [{"name": "a"}],
                "containers": [{"name": "a", "tty": None}],
            },
            [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}],
            id="null-in-item",
        ),
    ],
)
def test_strategic_patch_merges_lists_by_key(change, result):
    """Containers are found by their name; `$patch` deletes or replaces them."""
    items = [{"name": "a", "image": "1", "tty": True}, {"name": "b", "image": "1"}]

    patched = patch.strategic_merge_patch({"containers": items, "other": 1}, change)

    assert patched == {"containers": result, "other": 1}


def test_strategic_patch_treats_finalizers_as_a_set():
    """A finalizer is added only once, and removed by name."""
    target = {"finalizers": ["a/b", "c/d"]}

    added = patch.strategic_merge_patch(target, {"finalizers": ["c/d", "e/f"]})
    removed = patch.strategic_merge_patch(target, {"$deleteFromPrimitiveList/finalizers": ["a/b"]})

    assert added == {"finalizers": ["a/b", "c/d", "e/f"]}
    assert removed == {"finalizers": ["c/d"]}


def test_prune_drops_nulls_and_unknown_fields():
    """The function returns the paths of the unknown fields, even of those in lists and maps."""
    schema = {
        "properties": {
            "known": {"type": "string"},
            "list": {"items": {"properties": {"a": {"type": "string"}}}},
            "map": {"additionalProperties": {"properties": {"b": {"type": "string"}}}},
            "free": {"x-kubernetes-preserve-unknown-fields": True},
        }
    }
    value = {
        "known": None,
        "odd": 1,
        "list": [{"a": "x", "c": 1}],
        "map": {"k": {"b": "x", "c": 1}},
        "free": {"anything": None},
    }

    unknown = prune(schema, value)

    assert sorted(unknown) == ["list[0].c", "map.k.c", "odd"]
    assert value == {
        "list": [{"a": "x"}],
        "map": {"k": {"b": "x"}},
        "free": {"anything": None},
    }


def test_default_in_an_absent_object_is_not_set():
    """Only objects that exist get the defaults of their fields."""
    inner = {"properties": {"b": {"default": 1}}}
    schema = {"properties": {"a": inner, "list": {"items": inner}, "c": {"default": {}}}}
    value = {"list": [{}, {"b": 2}]}

    set_defaults(schema, value)

    assert value == {"list": [{"b": 1}, {"b": 2}], "c": {}}


@given(body=JSON, spec=JSON, meta=JSON)
def test_any_body_is_stored_or_rejected(body, spec, meta):
    """Creating a model, Job or Pod with any body raises no error but ApiError."""
    registry = REGISTRY
    kind = {"apiVersion": "sd-operator.dev/v1alpha1", "kind": "StableDiffusionModel"}
    named = meta if not isinstance(meta, dict) else {"generateName": "x-", **meta}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": named, "spec": spec}
    wrapped = {**job, "spec": {"template": {"spec": spec}}}
    for resource, item in (
        (models(registry), body),
        (models(registry), {**kind, "metadata": named, "spec": spec}),
        (models(registry), {**kind, "metadata": named, "spec": {"url": "a/b"}, "status": spec}),
        (JOBS, job),
        (JOBS, wrapped),
        (PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec}),
    ):
        with suppress(ApiError):
            registry.create(resource, "default", copy.deepcopy(item), "Warn")


@given(change=JSON)
def test_any_patch_is_stored_or_rejected(change):
    """Every error is an ApiError, and the old object is never changed in place."""
    registry = REGISTRY
    body = {
        "apiVersion": "sd-operator.dev/v1alpha1",
        "kind": "StableDiffusionModel",
        "metadata": {"generateName": "x-"},
        "spec": {"url": "a/b"},
    }
    item = registry.create(models(registry), "default", body, "Strict").item
    key = ("default", item["metadata"]["name"])
    before = copy.deepcopy(item)
    for apply in (patch.json_patch, patch.merge_patch, patch.strategic_merge_patch):
        for part in (change, {"spec": change}, {"metadata": change}, [{"op": change}]):
            with suppress(ApiError):
                registry.update(models(registry), key, lambda old, a=apply, p=part: a(old, p))
    assert item == before


REGISTRY = new_registry()


@given(labels=st.text(max_size=20), fields=st.text(max_size=20), body=st.binary(max_size=40))
def test_any_selector_or_protobuf_is_parsed_or_rejected(labels, fields, body):
    """Applying any selector and decoding any bytes raises no error but ApiError."""
    item = {"metadata": {"name": "a", "labels": {"x": "1"}}}
    with suppress(ApiError):
        selector(PODS, labels, fields)(item)
    for raw in (body, b"k8s\x00" + body, b"k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12" + body):
        with suppress(ApiError):
            protobuf.decode(raw)


def test_watch_that_is_too_far_behind_expires():
    """The history is bounded, so an old resourceVersion cannot be watched any more."""
    storage = Storage()
    start = storage.revision
    for _ in range(HISTORY + 2):
        storage.put(("pods", ""), ("default", "a"), {"metadata": {"name": "a"}})

    async def first(since: int) -> int:
        return (await anext(storage.changes(("pods", ""), since))).revision

    assert asyncio.run(first(start + 2)) == start + 3
    with pytest.raises(ApiError, match="too old resource version"):
        asyncio.run(first(start + 1))


def test_deleting_a_crd_deletes_its_objects():
    """The API server does not serve the resource any more."""
    registry = new_registry()
    resource = models(registry)
    body = {
        "apiVersion": "sd-operator.dev/v1alpha1",
        "kind": "StableDiffusionModel",
        "metadata": {"name": "a"},
        "spec": {"url": "a/b"},
    }
    registry.create(resource, "default", body, "Strict")

    registry.delete(DEFINITIONS, ("", "stablediffusionmodels.sd-operator.dev"), {})

    assert registry.resource("sd-operator.dev", "v1alpha1", "stablediffusionmodels") is None
    assert registry.storage.list(resource.id) == []


def at(seconds: float) -> str:
    """Return the time that is this many seconds after NOW."""
    return jobs.show(NOW + timedelta(seconds=seconds))


def pod(phase: str, code: int | None = None, ended: float = 0, **status: object) -> dict:
    """Return a Pod of a Job. If `code` is set, its container ended at NOW plus `ended` seconds."""
    state = {"terminated": {"exitCode": code, "finishedAt": at(ended)}} if code is not None else {}
    return {
        "metadata": {"namespace": "n", "name": "p"},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "c", "state": state}],
            **status,
        },
    }


POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}},
    ]
}
DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.parametrize(
    ("spec", "status", "pods", "creates", "ends"),
    [
        pytest.param({}, {}, [], True, None, id="new"),
        pytest.param({}, {}, [pod("Running")], False, None, id="running"),
        pytest.param({}, {}, [pod("Succeeded", 0)], False, "CompletionsReached", id="succeeded"),
        pytest.param({"suspend": True}, {}, [], False, None, id="suspended"),
        pytest.param({}, {}, [pod("Failed", 1, -9)], True, None, id="failed-long-ago"),
        pytest.param({}, {}, [pod("Failed", 1, 0)], False, None, id="failed-just-now"),
        pytest.param(
            {}, {}, [pod("Failed", 1, -9)] * 3, False, "BackoffLimitExceeded", id="failed-too-often"
        ),
        pytest.param(
            {},
            {"failed": 3},
            [],
            False,
            "BackoffLimitExceeded",
            id="failed-too-often-and-pods-gone",
        ),
        pytest.param(
            {"podFailurePolicy": POLICY},
            {},
            [pod("Failed", 3)],
            False,
            "PodFailurePolicy",
            id="failed-by-policy",
        ),
        pytest.param(
            {"podFailurePolicy": POLICY},
            {},
            [pod("Failed", 137, -9, **DISRUPTED)] * 5,
            True,
            None,
            id="disrupted",
        ),
        pytest.param(
            {"activeDeadlineSeconds": 5},
            {"startTime": at(-6)},
            [],
            False,
            "DeadlineExceeded",
            id="past-its-deadline",
        ),
    ],
)
def test_plan_of_a_job(spec, status, pods, creates, ends):
    """The plan creates a Pod, or gives the reason of the condition that ends the Job."""
    job = {"metadata": {"name": "j"}, "spec": {"backoffLimit": 2, **spec}, "status": status}

    plan = jobs.plan(job, pods, NOW, backoff=1.0)

    assert plan.create is creates
    reasons = {c["reason"] for c in plan.status.get("conditions", []) if c["status"] == "True"}
    assert reasons == ({ends} if ends else {"JobSuspended"} if spec.get("suspend") else set())


def test_failing_job_ends_when_its_pods_are_gone():
    """FailureTarget is set first, Failed when no Pod runs any more."""
    spec = {"backoffLimit": 0, "activeDeadlineSeconds": 5}
    job = {"metadata": {"name": "j"}, "spec": spec, "status": {"startTime": at(-6)}}
    running = pod("Running")

    first = jobs.plan(job, [running], NOW, backoff=1.0)
    second = jobs.plan(job | {"status": first.status}, [], NOW, backoff=1.0)

    assert [c["type"] for c in first.status["conditions"]] == ["FailureTarget"]
    assert first.delete == [running]
    assert [c["type"] for c in second.status["conditions"]] == ["FailureTarget", "Failed"]
    assert second.status["conditions"][1]["reason"] == "DeadlineExceeded"


def test_ages_are_formatted_as_kubectl_does():
    """For example, ages of many days have no hours."""
    ages = {0: "0s", 119: "119s", 120: "2m", 150: "2m30s", 601: "10m", 3 * 3600 + 60: "3h1m"}
    ages |= {30 * 3600: "30h", 3 * 86_400 + 7200: "3d2h", 9 * 86_400: "9d"}
    assert {seconds: human_duration(seconds) for seconds in ages} == ages
