"""Events that explain why Jobs have no Pods are listed once per namespace and minute."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from sd_operator.base.errors import ApiError
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import Listing, Resource
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.gather import Gatherer, LastProgress
from sd_operator.reconciler.job_warnings import JobWarnings
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import JobView
from tests.support.kube.scriptedapi import Json, Script
from tests.support.rules.observed import NOW, claim, job, loading, model, pod


def event(kind: str, uid: str, message: str, reporter: str, **fields: Any) -> Json:
    """Return an Event from this component, as the recorders of Kubernetes write it."""
    about = {"kind": kind, "uid": uid}
    return {"involvedObject": about, "message": message, "source": {"component": reporter}} | fields


class Events(Script):
    """An API server with some Events that records its requests; with `fails`, it is unavailable."""

    def __init__(self, *events: tuple[str, str, str]) -> None:
        super().__init__({})
        self.events_of_jobs: list[Json] = [
            event("Job", uid, text, "job-controller") | {"lastTimestamp": at}
            for uid, at, text in events
        ]
        self.fails = False

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        """Record the request, and return the namespace's Events a moment later.

        Meanwhile, further callers may ask for them.
        """
        self.asked.append(f"{resource.plural} of {namespace}: {fields}")
        await asyncio.sleep(0)
        if self.fails:
            raise ApiError("the server is away", 503)
        return Listing(list(self.events_of_jobs), "9")


class Hands:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.clock = Clock(lambda: NOW, lambda: self.seconds)


def aged(seconds: float, uid: str = "a", namespace: str = "art") -> JobView:
    """Return a Job of this age."""
    return job(uid=uid, namespace=namespace, created=NOW - timedelta(seconds=seconds))


def ask(warnings: JobWarnings, *jobs: JobView) -> list[str]:
    """Return the warnings of several Jobs that are read at once."""

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(warnings.newest, jobs))

    return asyncio.run(all_of_them())


def test_many_jobs_share_one_list() -> None:
    """The warnings of a thousand Jobs without Pods are read by one request."""
    api = Events(("u7", "2026-01-01T00:00:00Z", "exceeded quota: gpu"))
    said = ask(JobWarnings(api, Hands().clock), *(aged(30, f"u{number}") for number in range(1000)))
    assert said[7] == "exceeded quota: gpu"
    assert set(said[:7] + said[8:]) == {""}
    assert api.asked == ["events of art: type=Warning"]


def test_each_namespace_is_listed_by_itself() -> None:
    """Jobs of two namespaces need two LISTs: the operator may have no right on all namespaces."""
    api = Events()
    ask(JobWarnings(api, Hands().clock), aged(30, namespace="art"), aged(30, namespace="lab"))
    assert [one.partition(":")[0] for one in api.asked] == ["events of art", "events of lab"]


def test_the_newest_warning_of_a_job_is_reported() -> None:
    """The newest is found by time, although a LIST is ordered by name."""
    api = Events(
        ("a", "2026-01-01T00:00:09Z", "exceeded quota: gpu"),
        ("a", "2026-01-01T00:00:01Z", "denied by a policy"),
    )
    assert ask(JobWarnings(api, Hands().clock), aged(30)) == ["exceeded quota: gpu"]


def test_a_pod_has_its_own_warnings_from_the_same_list() -> None:
    """Only an Event with the Pod's uid counts, and only after the Pod has had a node for 30 s."""
    api, hands = Events(("a", "2026-01-01T00:00:09Z", "exceeded quota: gpu")), Hands()
    warnings = JobWarnings(api, hands.clock)
    work = job()
    young = pod(work, scheduled=NOW - timedelta(seconds=29))
    assert asyncio.run(warnings.newest_of_pod(young)) is None
    assert asyncio.run(warnings.newest_of_pod(pod(work))) is None
    assert api.asked == []

    old = pod(work, scheduled=NOW - timedelta(seconds=31))
    about_it = {"kind": "Pod", "name": old.name, "uid": old.uid}
    for involved, text in (
        (about_it, "mount failed: https://me:hunter2@example.com/share?key=1"),
        (about_it | {"uid": "another"}, "of an earlier Pod of this name"),
        (about_it | {"kind": "Node"}, "not of a Pod"),
        ({"kind": "Pod"}, "without a uid"),
    ):
        body = {"involvedObject": involved, "reason": "FailedMount", "message": text}
        moment = {"eventTime": "2026-01-02T03:04:00.000001Z", "reportingComponent": "kubelet"}
        api.events_of_jobs.append(body | moment)
    warning = asyncio.run(warnings.newest_of_pod(old))
    assert warning is not None
    assert warning.reason == "FailedMount"
    assert warning.message.startswith("mount failed: ")
    assert "hunter2" not in warning.message
    assert ask(warnings, aged(30)) == ["exceeded quota: gpu"]
    assert len(api.asked) == 1


@pytest.mark.parametrize("reporter", ["", "policy-controller", "sd-operator", "job-controller"])
def test_only_events_of_kubernetes_explain_why_a_pod_does_not_start(reporter: str) -> None:
    """A newer Warning of another component, or without a component, does not hide the kubelet's.

    The component counts in both fields: `reportingComponent` and `source.component`.
    """
    old = pod(job(), scheduled=NOW - timedelta(seconds=60))
    api, late = Events(), {"lastTimestamp": "2026-01-02T03:04:04Z"}
    api.events_of_jobs = [
        event("Pod", old.uid, "mount failed", "kubelet", lastTimestamp="2026-01-02T03:04:01Z"),
        event("Pod", old.uid, "not the cause", reporter, **late),
        event("Pod", old.uid, "not the cause", "kubelet", reportingComponent="backup-tool", **late),
        event("Pod", old.uid, "without a source", "", source=None, **late),
    ]
    found = asyncio.run(JobWarnings(api, Hands().clock).newest_of_pod(old))
    assert found is not None
    assert found.message == "mount failed"


def test_a_claim_has_warnings_about_its_binding_only() -> None:
    """A Warning of a storage driver, which has a name of its own, is returned.

    A later Event of the operator about the PVC, or an Event of another PVC, is not.
    """
    api, late = Events(), {"lastTimestamp": "2026-01-02T03:04:04Z"}
    bound_by = claim(never_bound=True)
    kind, driver = "PersistentVolumeClaim", "nfs.csi.k8s.io_node-7_0e3c"
    api.events_of_jobs = [
        event(kind, bound_by.uid, "no space", driver, reason="ProvisioningFailed"),
        event(kind, bound_by.uid, "no models", "sd-operator", reason="StoreMissing", **late),
        event(kind, "another", "not found", driver, reason="ProvisioningFailed", **late),
    ]
    warnings = JobWarnings(api, Hands().clock)
    found = [
        asyncio.run(warnings.newest_of_claim(bound_by, pod(job(), age=age))) for age in (1, 30)
    ]
    assert found[0] is None
    assert found[1] is not None
    assert found[1].message == "no space"
    assert api.asked == ["events of art: type=Warning"]


@pytest.mark.parametrize(
    ("view", "fields", "warned"),
    [
        pytest.param(claim(never_bound=True), {}, True, id="never bound"),
        pytest.param(claim(lost=True), {}, True, id="lost"),
        pytest.param(claim(), {}, False, id="bound"),
        pytest.param(claim(never_bound=True), {"phase": "Failed"}, False, id="the Pod has ended"),
        pytest.param(claim(never_bound=True), {"scheduled": NOW}, False, id="the Pod has a node"),
    ],
)
def test_a_pod_without_a_node_is_observed_with_the_warning_of_its_claim(
    view: ClaimView, fields: dict[str, Any], warned: bool
) -> None:
    """The Warning is only read (`warned`) if the PVC keeps the Pod waiting."""
    api, cache, hands = Events(), ObjectCache(), Hands()
    kind = "PersistentVolumeClaim"
    api.events_of_jobs = [event(kind, view.uid, "no space", "driver", reason="ProvisioningFailed")]
    cache.put_job(job())
    cache.put_pod(pod(job(), **fields))
    cache.put_claim(view)
    gatherer = Gatherer(api, Settings(), cache, hands.clock)
    observed = asyncio.run(gatherer.observe(model(loading()), LastProgress()))
    assert (observed.claim_warning is not None, len(api.asked)) == (warned, int(warned))


def test_a_new_job_causes_no_request() -> None:
    """The Events of a young Job without Pods are not read: its Pod usually follows soon."""
    api = Events()
    assert ask(JobWarnings(api, Hands().clock), aged(1)) == [""]
    assert api.asked == []


@pytest.mark.parametrize(
    ("age", "waited", "lists"),
    [
        pytest.param(30, 4, 1, id="any Job, at once"),
        pytest.param(70, 53, 1, id="an old Job, within the minute"),
        pytest.param(70, 55, 2, id="an old Job, after it"),
        pytest.param(9, 8, 2, id="a Job that was too young at the last look"),
        pytest.param(11, 8, 1, id="a Job that was old enough then"),
    ],
)
def test_a_list_is_reused_until_it_is_too_old_or_predates_a_warning(
    age: float, waited: float, lists: int
) -> None:
    """`age` is the Job's age at the second read, which comes `waited` seconds after the first."""
    api, hands = Events(), Hands()
    warnings = JobWarnings(api, hands.clock)
    ask(warnings, aged(30, "another"))
    hands.seconds += waited
    ask(warnings, aged(age))
    assert len(api.asked) == lists


def test_known_warnings_stay_while_the_server_is_unavailable() -> None:
    """If a LIST fails, the Warnings of the previous LIST are returned, and it is not repeated."""
    api, hands = Events(("a", "2026-01-01T00:00:00Z", "exceeded quota: gpu")), Hands()
    warnings = JobWarnings(api, hands.clock)
    ask(warnings, aged(30))
    hands.seconds += 60
    api.fails = True
    assert ask(warnings, aged(90), aged(90, "b")) == ["exceeded quota: gpu", ""]
    assert len(api.asked) == 2
