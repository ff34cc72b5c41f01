"""Rules about a Pod that has a node but does not start: only its Warning Events have the cause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sd_api import names
from sd_api.reasons import Reason
from sd_operator.resources.observed import ContainerView, JobView
from sd_operator.resources.warning_event import WarningEvent
from tests.support.rules.decisions import (
    COMPLETE,
    Case,
    act,
    by_id,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    LOADED,
    NOW,
    answered,
    failed,
    job,
    job_status,
    loading,
    model,
    pod,
    published,
    running,
    stalled,
)

STARTING = "Job JOB was created; its Pod is starting"
MOUNT = 'MountVolume.SetUp failed for volume "pv-7": mount.nfs: access denied by server'


def warning(reason: str = "FailedMount", message: str = MOUNT, ago: float = 5) -> WarningEvent:
    """Return a Warning Event of the Pod."""
    return WarningEvent(reason, message, NOW - timedelta(seconds=ago))


def scheduled(ago: float, of: JobView | None = None, **fields: Any) -> Any:
    """Return an observation of a Pod that got its node some seconds ago and does not start."""
    given = {"pod_warning": warning()} | fields
    moment = NOW - timedelta(seconds=ago)
    return with_pod(of or job(), scheduled=moment, age=ago + 1, **given)


def starting(name: str, seen: Any, message: str, status: dict[str, Any] | None = None) -> Case:
    """Return a row in which the load is Pending with this message, and not Stalled."""
    return Case(
        id=name,
        model=model(status or loading()),
        observed=seen,
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message=message,
    )


def stuck(name: str, seen: Any, reason: Reason, cause: str) -> Case:
    """Return a row in which the load is stuck for this reason."""
    return Case(
        id=name,
        model=model(loading()),
        observed=seen,
        rule="load_job_is_running",
        phase="Pending",
        ready=f"not {reason}",
        reconciling=reason.value,
        stalled=reason.value,
        events=("ModelLoadFailed",),
        message=with_remedy(cause, reason),
    )


UNMOUNTED = f"Pod POD cannot mount its volumes: {MOUNT}"
UNCONNECTED = "Pod POD cannot start (FailedCreatePodSandBox): no IP address is left"
SANDBOX = warning("FailedCreatePodSandBox", "no IP address is left")

CASES = [
    starting("scheduled 29 s ago: a first failure is normal", scheduled(29), STARTING),
    starting("volume not mounted for 30 s", scheduled(30), UNMOUNTED),
    starting("volume not mounted for 899 s", scheduled(899), UNMOUNTED),
    stuck("volume not mounted for 900 s", scheduled(900), Reason.VOLUME_NOT_MOUNTED, UNMOUNTED),
    *(
        stuck(
            f"{reason} for 900 s",
            scheduled(900, pod_warning=warning(reason)),
            Reason.VOLUME_NOT_MOUNTED,
            UNMOUNTED,
        )
        for reason in ("FailedAttachVolume", "FailedMapVolume")
    ),
    starting("no sandbox for 30 s", scheduled(30, pod_warning=SANDBOX), UNCONNECTED),
    stuck(
        "no sandbox for 900 s",
        scheduled(900, pod_warning=SANDBOX),
        Reason.POD_NOT_STARTING,
        UNCONNECTED,
    ),
    stuck(
        "a Warning that the rules do not know, for 900 s",
        scheduled(900, pod_warning=warning("NetworkNotReady", "network is not ready")),
        Reason.POD_NOT_STARTING,
        "Pod POD cannot start (NetworkNotReady): network is not ready",
    ),
    starting(
        "no Warning: its image may take long to pull", scheduled(900, pod_warning=None), STARTING
    ),
    starting(
        "the Warning has stopped: the image may take long to pull",
        scheduled(2000, pod_warning=warning(ago=601)),
        STARTING,
    ),
    starting(
        "a Warning from before the Pod had its node",
        scheduled(60, pod_warning=warning("FailedScheduling", "0/3 nodes", ago=61)),
        STARTING,
    ),
    stuck(
        "the image's own reason is more exact than the Event",
        with_pod(
            job(),
            ContainerView("fetch", reason="ErrImagePull"),
            age=901,
            scheduled=NOW - timedelta(seconds=900),
            pod_warning=warning("Failed", "Error: ErrImagePull"),
        ),
        Reason.IMAGE_PULL_FAILED,
        "Pod POD is waiting for its image: ErrImagePull",
    ),
    stuck(
        "the container cannot be created for 900 s",
        with_pod(
            job(),
            ContainerView("fetch", reason="CreateContainerConfigError", message="no such Secret"),
            age=901,
            scheduled=NOW - timedelta(seconds=900),
        ),
        Reason.POD_NOT_STARTING,
        "Pod POD is starting: CreateContainerConfigError (no such Secret)",
    ),
    Case(
        id="a container runs: the load is not stuck any more",
        model=model(stalled(Reason.VOLUME_NOT_MOUNTED) | {"completionTime": None}),
        observed=with_pod(
            job(),
            running("fetch"),
            scheduled=NOW - timedelta(seconds=900),
            pod_warning=warning(),
        ),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_pod_that_does_not_start_is_reported_with_its_cause(case: Case) -> None:
    """The conditions quote the Event after 30 s, and the model is Stalled after 900 s."""
    case.check()


def cleaning(name: str, deleted_ago: float, message: str, reason: str = "") -> Case:
    """Return a row of a model whose clean-up Pod cannot mount the volume."""
    record = {"cleanupJob": job_status(0, role=names.ROLE_REMOVE)}
    return Case(
        id=name,
        model=model(published() | record, deleted_ago=deleted_ago),
        observed=scheduled(deleted_ago - 1, job(role=names.ROLE_REMOVE)),
        rule="cleanup_job_is_running",
        phase="Deleting",
        ready="not Deleting",
        stalled=reason,
        events=("CleanupFailed",) if reason else (),
        message=message,
    )


SKIP = (
    "To keep the files and release the resource, set the annotation"
    ' sd-operator.dev/skip-cleanup: "true".'
)


@pytest.mark.parametrize(
    "case",
    [
        cleaning("29 s", 30, STARTING),
        cleaning("30 s", 31, UNMOUNTED),
        cleaning(
            "900 s",
            902,
            with_remedy(UNMOUNTED, Reason.VOLUME_NOT_MOUNTED, SKIP),
            "VolumeNotMounted",
        ),
    ],
    ids=by_id,
)
def test_a_deletion_does_not_hang_silently(case: Case) -> None:
    """The clean-up Pod's Warning is reported like that of a loader Pod."""
    case.check()


def test_a_forged_event_cannot_push_the_remedy_out() -> None:
    """The Event's text is cut to one printable line, so the message still ends with the remedy."""
    forged = WarningEvent.from_body(
        {
            "reason": "FailedMount",
            "message": "\x1b[2J\nhttps://me:hunter2@example.com/x " + "x" * 100_000,
            "lastTimestamp": "2026-01-02T03:04:00Z",
        }
    )
    status = act(model(loading()), scheduled(900, pod_warning=forged)).status
    for condition in status.conditions:
        assert condition.message.isprintable()
        assert "hunter2" not in condition.message
        assert condition.message.endswith(Reason.VOLUME_NOT_MOUNTED.remedy_for(job().name))
        assert len(condition.message) <= 1024


@pytest.mark.parametrize(("ago", "wake"), [(1, 29), (29, 1), (30, 60), (880, 20)])
def test_a_pod_that_does_not_start_is_read_again(ago: float, wake: float) -> None:
    """A new Event does not start a pass, so passes are scheduled.

    They are 30 s after the Pod got its node, then every minute, and at 900 s.
    """
    assert act(model(loading()), scheduled(ago)).wake_after == wake


LIMITED = failed(Reason.RATE_LIMITED, "429 from example.com")
FAILURE = "Pod POD failed (RateLimited: 429 from example.com)"


def limited() -> Any:
    """Return a failed Pod of the Job, which is going to create another one."""
    return pod(job(), answered("fetch", LIMITED), age=90, phase="Failed")


def test_the_last_failure_of_a_job_stays_until_its_next_pod_runs() -> None:
    """The conditions quote the failure, and status.reason names it, even after the Pod is gone.

    The failure is read from status.lastFailure, not from the text of a condition.
    """
    failing = act(model(loading()), observed(job(), pods=(limited(),))).status
    between = f"{FAILURE}; Job JOB is about to create another Pod"
    check_retry(failing, between)
    assert plain(failing)["lastFailure"]["reason"] == "RateLimited"
    other_words = plain(failing)
    for condition in other_words["conditions"]:
        condition["message"] = "in the words of a later version"
    gone = act(model(other_words), observed(job())).status
    check_retry(gone, between)
    next_pod = observed(job(), pods=(limited(), pod(job(), age=1)))
    starts = f"{FAILURE}; its next Pod is starting"
    check_retry(act(model(plain(failing)), next_pod).status, starts)
    only_next = observed(job(), pods=(pod(job(), age=1),))
    check_retry(act(model(plain(gone)), only_next).status, starts)
    loads = act(model(plain(failing)), observed(job(), pods=(pod(job(), running("fetch")),))).status
    assert (loads.phase, loads.reason) == ("Downloading", "RateLimited")
    loads = act(model(plain(loads)), with_pod(job(), running("fetch"))).status
    assert (loads.phase, loads.reason) == ("Downloading", "RateLimited")
    done = with_pod(job(COMPLETE), answered("convert", LOADED))
    assert act(model(plain(loads)), done).status.last_failure is None


def test_the_last_failure_of_another_job_does_not_count() -> None:
    """The next Job has not failed yet, so the last failure of the previous Job is dropped."""
    status = loading() | {"lastFailure": {"reason": "RateLimited", "message": "429"}}
    other = job(attempt=1)
    moved = status | {"job": job_status(1) | {"uid": "another"}}
    assert act(model(moved), with_pod(other, running("fetch"))).status.last_failure is None


def plain(status: Any) -> dict[str, Any]:
    """Return a status as the API server has it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def check_retry(status: Any, message: str) -> None:
    """Check that a status reports the failure while the Job goes on."""
    assert (status.phase, status.reason) == ("Pending", "RateLimited")
    messages = {one.message.replace(f"{job().name}-abcde", "POD") for one in status.conditions}
    assert {one.replace(job().name, "JOB") for one in messages} == {message}


def test_the_next_job_of_a_load_keeps_the_reason_of_the_last_failure() -> None:
    """status.reason is still that of the last failure when the load's next Job starts."""
    again = model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None})
    assert act(again, with_pod(job(attempt=1), running("fetch"))).status.reason == "RateLimited"


def test_another_spec_forgets_the_last_failure() -> None:
    """After a change of the spec, status.reason no longer has the previous load's failure."""
    edited = model(stalled(Reason.RATE_LIMITED), revision="fp16")
    assert act(edited, observed()).status.reason is None


@pytest.mark.parametrize(
    ("seen", "phase", "reason"),
    [
        (observed(job()), "Pending", None),
        (scheduled(1), "Pending", None),
        (with_pod(job(), running("fetch")), "Downloading", None),
        (with_pod(job(ready=1), running("convert")), "Converting", None),
        (scheduled(60), "Pending", "VolumeNotMounted"),
        (with_pod(job(), unscheduled="0/3 nodes are available"), "Pending", "Unschedulable"),
        (observed(admitted=False, position=3), "Queued", None),
    ],
    ids=["created", "starting", "fetching", "converting", "not mounted", "no node", "in the queue"],
)
def test_the_column_reason_does_not_repeat_the_phase(
    seen: Any, phase: str, reason: str | None
) -> None:
    """The column is empty while all is well; it names a delay's cause before the Pod is stuck."""
    status = act(model(loading() if seen.load_job else None), seen).status
    assert (status.phase, status.reason) == (phase, reason)


@pytest.mark.parametrize(
    ("status", "options", "phase", "reason"),
    [
        (None, {"suspend": True}, "Pending", "Suspended"),
        (published(), {"deleted_ago": 5}, "Deleting", None),
        (published(), {}, "Ready", None),
        (published(), {"revision": "fp16"}, "Ready", "Queued"),
    ],
    ids=["suspended", "being deleted", "Ready", "served, and its next version is in the queue"],
)
def test_the_column_reason_adds_to_the_phase(
    status: Any, options: dict[str, Any], phase: str, reason: str | None
) -> None:
    """The column shows a reason that does not follow from the phase."""
    result = act(model(status, **options), observed(admitted=False, position=3)).status
    assert (result.phase, result.reason) == (phase, reason)
