"""Tests of how Jobs, Pods and PVCs are parsed and cached."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api import names
from sd_api.reasons import Reason
from sd_api.wire import LoadResult
from sd_operator.reconciler.cache import ObjectCache, is_newer
from sd_operator.resources.observed import ContainerView, JobState, JobView, PodView
from sd_operator.rules import diagnose
from tests.support.rules.observed import (
    ARTIFACT,
    LOADED,
    UID,
    answered,
    claim,
    ended,
    failed,
    job,
    pod,
    running,
)

COMPLETE, FAILED = JobState.COMPLETE, JobState.FAILED


def job_body(*conditions: dict[str, str], **status: Any) -> dict[str, Any]:
    """A Job as the API server returns it."""
    return {
        "metadata": {
            "name": "sketch-1",
            "namespace": "art",
            "uid": "j1",
            "resourceVersion": "12",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {names.LABEL_MODEL_UID: UID, names.LABEL_ROLE: "load"},
            "annotations": {names.ANNOTATION_LOAD_HASH: "ab" * 8, names.ANNOTATION_ATTEMPT: "2"},
        },
        "status": {"conditions": list(conditions), **status},
    }


def job_condition(kind: str, status: str = "True") -> dict[str, str]:
    """A condition of a Job."""
    return {
        "type": kind,
        "status": status,
        "reason": "Why",
        "message": "words",
        "lastTransitionTime": "2026-01-01T00:01:00Z",
    }


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        pytest.param([], JobState.RUNNING, id="none"),
        pytest.param([job_condition("Complete")], JobState.COMPLETE, id="complete"),
        pytest.param([job_condition("Failed")], JobState.FAILED, id="failed"),
        pytest.param([job_condition("FailureTarget")], JobState.RUNNING, id="failing"),
        pytest.param([job_condition("SuccessCriteriaMet")], JobState.RUNNING, id="completing"),
        pytest.param([job_condition("Failed", "False")], JobState.RUNNING, id="not failed"),
    ],
)
def test_a_job_has_ended_when_its_condition_is_true(conditions: list[Any], state: JobState) -> None:
    """Complete and Failed are final; with `failed > 0` Kubernetes still retries."""
    assert JobView.from_body(job_body(*conditions, failed=2)).state is state


def test_a_job_is_read() -> None:
    """A Job's view has the fields of its labels and annotations, such as its model's uid."""
    view = JobView.from_body(job_body(job_condition("Failed"), ready=1))
    assert (view.model_uid, view.role, view.load_hash) == (UID, "load", "ab" * 8)
    assert (view.attempt, view.ready, view.failure, view.detail) == (2, 1, "Why", "words")
    assert view.ended is not None


def test_a_foreign_job_is_parsed() -> None:
    """A Job without labels and status is parsed, and belongs to no model."""
    bare = {"metadata": {"name": "x", "namespace": "art", "uid": "j2"}}
    view = JobView.from_body(bare)
    assert (view.model_uid, view.attempt, view.state) == ("", 0, JobState.RUNNING)


@pytest.mark.parametrize("attempt", ["9" * 5000, "-1", "two", ""])
def test_an_unreadable_attempt_does_not_stop_the_operator(attempt: str) -> None:
    """An invalid annotation for the attempt is read as 0. Anybody may write annotations."""
    body = job_body()
    body["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] = attempt
    assert JobView.from_body(body).attempt == 0


def test_a_pod_is_read() -> None:
    """A Pod's view has its containers with their states, init containers first."""
    view = PodView.from_body(
        {
            "metadata": {
                "name": "sketch-1-x",
                "namespace": "art",
                "uid": "p1",
                "labels": {names.LABEL_MODEL_UID: UID},
                "ownerReferences": [{"uid": "no"}, {"uid": "j1", "controller": True}],
            },
            "status": {
                "phase": "Running",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}],
                "initContainerStatuses": [
                    {"name": "fetch", "state": {"terminated": {"exitCode": 0, "message": "{}"}}}
                ],
                "containerStatuses": [
                    {"name": "convert", "state": {"waiting": {"message": "no such image"}}}
                ],
            },
        }
    )
    assert (view.job_uid, view.model_uid, view.unscheduled) == ("j1", UID, "0/3 nodes")
    assert view.containers == (
        ContainerView("fetch", "terminated", exit_code=0),
        ContainerView("convert", message="no such image"),
    )


def test_the_running_container_of_a_pod_is_known() -> None:
    """`running` is the container that runs now, from whose log the progress is read."""
    assert pod(job(), answered("fetch", LOADED), running("convert")).running == running("convert")
    assert pod(job(), answered("fetch", LOADED)).running is None


@pytest.mark.parametrize(
    ("message", "result"),
    [
        pytest.param(LOADED.encode(), LOADED, id="result"),
        pytest.param("{}", None, id="no outcome"),
        pytest.param("Killed", None, id="text"),
        pytest.param("", None, id="empty"),
        pytest.param(" " * 5000, None, id="too long"),
    ],
)
def test_a_termination_message_is_parsed_where_the_pod_is_read(
    message: str, result: LoadResult | None
) -> None:
    """The text is untrusted, so the rest of the operator sees only a valid result or None."""
    container = ended("convert", message)
    assert container.result == result
    assert container.message == ""
    assert list(pod(job(), container).results()) == ([result] if result else [])


CRASH = ContainerView("convert", "terminated", "Error", 139)
OOM = ContainerView("convert", "terminated", "OOMKilled", 137)
UNREACHABLE = answered("fetch", failed(Reason.SOURCE_UNREACHABLE))


@pytest.mark.parametrize(
    ("job_end", "containers", "before", "reason"),
    [
        pytest.param({}, [UNREACHABLE], None, Reason.SOURCE_UNREACHABLE, id="the loader's answer"),
        pytest.param({}, [OOM], None, Reason.OUT_OF_MEMORY, id="out of memory"),
        pytest.param({}, [CRASH], None, Reason.LOADER_CRASHED, id="crash without an answer"),
        pytest.param(
            {},
            [ended("fetch", '{"outcome": "failed", "x": 1}', reason="Error", code=3)],
            None,
            Reason.LOADER_CRASHED,
            id="malformed answer",
        ),
        pytest.param(
            {"failure": "BackoffLimitExceeded"},
            [],
            None,
            Reason.BACKOFF_LIMIT_EXCEEDED,
            id="no Pod left to ask",
        ),
        pytest.param({"failure": "Odd"}, [], None, Reason.LOADER_CRASHED, id="unknown"),
        pytest.param(
            {"failure": "DeadlineExceeded"},
            [UNREACHABLE],
            None,
            Reason.DEADLINE_EXCEEDED,
            id="deadline",
        ),
        pytest.param(
            {"failure": "DeadlineExceeded"},
            [],
            Reason.UNSCHEDULABLE,
            Reason.UNSCHEDULABLE,
            id="deadline of a Job that never got a node",
        ),
    ],
)
def test_the_failure_of_a_job_is_explained(
    job_end: dict[str, str], containers: list[ContainerView], before: Reason | None, reason: Reason
) -> None:
    """A missed deadline comes first, then the loader's result, then the state of a container."""
    failed_job = job(FAILED, **job_end)
    pods = [pod(failed_job, *containers, phase="Failed")] if containers else []
    assert diagnose.job_failure(failed_job, pods, before).reason is reason


def test_the_failure_of_the_newest_pod_is_reported() -> None:
    """The result of the newest Pod counts, not that of an earlier Pod, which was retried."""
    failed_job = job(FAILED)
    old, new = pod(failed_job, OOM, age=90), pod(failed_job, UNREACHABLE, age=10)
    assert diagnose.job_failure(failed_job, [new, old], None).reason is Reason.SOURCE_UNREACHABLE


def test_only_a_complete_result_counts_as_loaded() -> None:
    """The result must be valid, with outcome `loaded` and an artifact."""
    done = job(JobState.COMPLETE)
    assert diagnose.load_result([pod(done, answered("convert", LOADED))]) == LOADED
    bare = answered("convert", LoadResult(outcome="loaded"))
    assert diagnose.load_result([pod(done, bare)]) is None
    fetched = answered("fetch", LoadResult(outcome="fetched", artifact=ARTIFACT))
    assert diagnose.load_result([pod(done, fetched)]) is None


def test_a_failed_pod_is_reported_while_kubernetes_retries() -> None:
    """The status shows the last failure until the next Pod starts."""
    work = job()
    wait = diagnose.start_delay(work, [pod(work, UNREACHABLE, phase="Failed")], "")
    assert "failed (SourceUnreachable: what and where)" in wait.message
    assert "another Pod" in wait.message
    assert wait.reason is None


def test_no_retry_is_announced_after_a_final_result() -> None:
    """After a permanent failure, the message says that the Job is ending, not that it retries."""
    work = job()
    missing = answered("fetch", failed(Reason.SOURCE_NOT_FOUND))
    wait = diagnose.start_delay(work, [pod(work, missing, phase="Failed")], "")
    assert wait.message.endswith(f"Job {work.name} is ending")


@given(st.text(max_size=3000))
def test_untrusted_text_is_made_harmless(text: str) -> None:
    """The result is one line of bounded length without control characters."""
    cleaned = diagnose.clean(text)
    assert cleaned.isprintable() or cleaned == ""
    assert len(cleaned) <= diagnose.CAUSE_MAX_LENGTH


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("10", "9", True), ("9", "10", False), ("9", "9", False), ("b", "a", True), ("", "1", True)],
)
def test_versions_are_compared_as_numbers(version: str, than: str, newer: bool) -> None:
    """A version that cannot be compared counts as newer."""
    assert is_newer(version, than) is newer


def test_a_late_event_does_not_replace_a_newer_object() -> None:
    """The reply to our own write may arrive before older events."""
    cache = ObjectCache()
    cache.put_job(job(JobState.COMPLETE, resource_version="5"))
    cache.put_job(job(resource_version="4"))
    assert [one.state for one in cache.jobs("art", UID)] == [JobState.COMPLETE]


def test_a_job_of_another_namespace_is_ignored_even_if_its_labels_match() -> None:
    """A Job with a model's labels in another namespace is not the model's, nor is its Pod."""
    cache = ObjectCache()
    cache.put_job(job(namespace="elsewhere"))
    cache.put_pod(dataclasses.replace(pod(job()), namespace="elsewhere"))
    assert (cache.jobs("art", UID), cache.pods("art", UID)) == ((), ())


def test_a_list_does_not_replace_newer_objects() -> None:
    """A Job that ended while an older list was read stays ended; no later event reports the end."""
    cache = ObjectCache()
    cache.put_job(job(COMPLETE, resource_version="5"))
    cache.replace_jobs(UID, [job(resource_version="4"), job(attempt=1)], "4")
    assert [one.state for one in cache.jobs("art", UID)] == [COMPLETE, JobState.RUNNING]


def test_a_list_does_not_hide_newer_objects() -> None:
    """A Job or Pod that a list of an older resourceVersion lacks stays in the cache.

    A list of a newer or unknown resourceVersion removes it.
    """
    cache = ObjectCache()
    cache.put_job(job(resource_version="5"))
    cache.put_pod(pod(job(), running("fetch")))
    cache.replace_jobs(UID, [], "4")
    cache.replace_pods(UID, [], "1")
    assert len(cache.jobs("art", UID)) == len(cache.pods("art", UID)) == 1
    cache.replace_jobs(UID, [], "6")
    cache.replace_pods(UID, [], "")
    assert cache.jobs("art", UID) == cache.pods("art", UID) == ()


def test_deleted_objects_are_forgotten() -> None:
    """The cache keeps nothing for a model without objects."""
    cache = ObjectCache()
    cache.put_job(job())
    cache.put_pod(pod(job(), running("fetch")))
    cache.record(UID, job().uid)
    assert cache.active_jobs() == 1
    cache.drop_job(job())
    cache.drop_pod(pod(job()))
    assert (cache.jobs("art", UID), cache.pods("art", UID), cache.active_jobs()) == ((), (), 0)


def test_a_complete_list_replaces_everything() -> None:
    """Objects that the list lacks are dropped, since a gap in the watch may hide their deletion."""
    cache = ObjectCache()
    cache.put_job(job())
    cache.put_pod(pod(job()))
    cache.replace_jobs(UID, [job(attempt=1)], "2")
    cache.replace_pods(UID, [], "2")
    assert [one.attempt for one in cache.jobs("art", UID)] == [1]
    assert cache.pods("art", UID) == ()


def test_a_new_deleted_replaced_lost_or_relabelled_pvc_wakes_its_models() -> None:
    """For these changes, `put_claim` returns True; for other changes of a PVC, False."""
    cache = ObjectCache()
    assert cache.put_claim(claim())
    assert not cache.put_claim(claim(resource_version="2"))
    assert cache.put_claim(claim(resource_version="3", for_models=True))
    assert not cache.put_claim(claim(resource_version="4", for_models=True))
    assert cache.put_claim(claim(resource_version="5"))
    assert cache.put_claim(claim(resource_version="6", deleting=True))
    assert cache.put_claim(claim(resource_version="7", uid="another"))
    assert cache.put_claim(claim(resource_version="8", uid="another", lost=True))
    assert not cache.put_claim(claim(resource_version="6", deleting=True)), "late news"
    cache.drop_claim(claim())
    known = cache.claim("art", "models")
    assert known is not None, "the deleted one's namesake stays"
    assert known.uid == "another"
