"""Why Jobs have no Pods: one LIST of Events a namespace and minute, however many Jobs wait."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from typing_extensions import override

from sd_operator.base.errors import ApiError
from sd_operator.base.times import Clock
from sd_operator.clients.kube import Listing, Resource
from sd_operator.reconciler.job_warnings import JobWarnings
from sd_operator.resources.observed import JobView
from tests.support.kube.scriptedapi import Json, Script
from tests.support.rules.observed import NOW, job


class Events(Script):
    """An API server with some Events, which counts what it is asked for. fails: it is away."""

    def __init__(self, *events: tuple[str, str, str]) -> None:
        super().__init__({})
        self.events_of_jobs: list[Json] = [
            {"involvedObject": {"kind": "Job", "uid": uid}, "lastTimestamp": at, "message": text}
            for uid, at, text in events
        ]
        self.fails = False

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        """All of the namespace, a moment later: as a page of it, more come to ask."""
        self.asked.append(f"{resource.plural} of {namespace}: {fields}")
        await asyncio.sleep(0)
        if self.fails:
            raise ApiError("the server is away", 503)
        return Listing(list(self.events_of_jobs), "9")


class Hands:
    """The hands of a clock that a test turns."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.clock = Clock(lambda: NOW, lambda: self.seconds)


def aged(seconds: float, uid: str = "a", namespace: str = "art") -> JobView:
    """A Job that was made so long ago."""
    return job(uid=uid, namespace=namespace, created=NOW - timedelta(seconds=seconds))


def ask(warnings: JobWarnings, *jobs: JobView) -> list[str]:
    """What is said of several Jobs that are looked at at once."""

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(warnings.newest, jobs))

    return asyncio.run(all_of_them())


def test_many_jobs_share_one_list() -> None:
    """A thousand Jobs without Pods cost what one costs."""
    api = Events(("u7", "2026-01-01T00:00:00Z", "exceeded quota: gpu"))
    said = ask(JobWarnings(api, Hands().clock), *(aged(30, f"u{number}") for number in range(1000)))
    assert said[7] == "exceeded quota: gpu"
    assert set(said[:7] + said[8:]) == {""}
    assert api.asked == ["events of art: involvedObject.kind=Job,type=Warning"]


def test_each_namespace_is_listed_by_itself() -> None:
    """The operator may have rights in its models' namespaces alone."""
    api = Events()
    ask(JobWarnings(api, Hands().clock), aged(30, namespace="art"), aged(30, namespace="lab"))
    assert [one.partition(":")[0] for one in api.asked] == ["events of art", "events of lab"]


def test_the_newest_of_a_jobs_warnings_is_said() -> None:
    """The order of a LIST is by name."""
    api = Events(
        ("a", "2026-01-01T00:00:09Z", "exceeded quota: gpu"),
        ("a", "2026-01-01T00:00:01Z", "denied by a policy"),
    )
    assert ask(JobWarnings(api, Hands().clock), aged(30)) == ["exceeded quota: gpu"]


def test_a_job_just_made_is_not_asked_for() -> None:
    """Its controller has said nothing yet; most have their Pods at the next look."""
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
def test_a_look_serves_until_it_is_old_or_came_too_early(
    age: float, waited: float, lists: int
) -> None:
    """age: the Job's at the second look, which comes so many seconds after the first."""
    api, hands = Events(), Hands()
    warnings = JobWarnings(api, hands.clock)
    ask(warnings, aged(30, "another"))
    hands.seconds += waited
    ask(warnings, aged(age))
    assert len(api.asked) == lists


def test_what_was_known_stays_while_the_server_is_away() -> None:
    """A look that failed is not repeated for each Job, either."""
    api, hands = Events(("a", "2026-01-01T00:00:00Z", "exceeded quota: gpu")), Hands()
    warnings = JobWarnings(api, hands.clock)
    ask(warnings, aged(30))
    hands.seconds += 60
    api.fails = True
    assert ask(warnings, aged(90), aged(90, "b")) == ["exceeded quota: gpu", ""]
    assert len(api.asked) == 2
