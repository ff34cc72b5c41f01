"""Checks of a PVC: the operator trusts only the single Pod of the Job that it created."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from sd_api import names
from sd_api.check import VERSIONS_MAX, CheckRequest, CheckResult
from sd_api.reasons import Reason
from sd_api.wire import LoadResult
from sd_operator.base.errors import (
    AlreadyExistsError,
    ApiError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from sd_operator.base.settings import Settings
from sd_operator.reconciler import checks, supervisor
from sd_operator.rules import volume_jobs
from tests.support.operator.checkstage import (
    COMPLETE,
    EMPTY,
    FORGED,
    INTERVAL,
    MISSING,
    SETTINGS,
    Cluster,
    Json,
    Stage,
    acting,
)
from tests.support.rules.observed import claim


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "BACKOFF_MAX_SECONDS", 0.01)


def test_two_checks_in_a_row_find_missing_files() -> None:
    """The second check starts a pass over the model; the first one does not."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.results = [MISSING]
        await stage.run()
        assert (stage.missed(), stage.woken) == (1, [])
        await stage.run()
        assert (stage.missed(), stage.woken) == (2, ["uid-000"])

    assert acting(play).counted() == {"missing": 2}


def test_files_that_are_back_are_found_by_one_check() -> None:
    """One check starts a pass over the model, because its status still reports missing files."""

    async def play(stage: Stage) -> None:
        stage.show(missingTime="2026-01-01T00:00:00Z")
        await stage.run()
        assert (stage.missed(), stage.woken) == (0, ["uid-000"])

    assert acting(play).counted() == {"complete": 1}


def test_complete_models_are_not_woken() -> None:
    """A check that finds all files of a Ready model starts no pass over the model."""

    async def play(stage: Stage) -> None:
        stage.show()
        await stage.run()
        await stage.run()

    stage = acting(play)
    assert (stage.missed(), stage.woken, stage.api.events) == (0, [], [])


def test_the_job_asks_about_the_published_versions() -> None:
    """The check Job equals the manifest of `build_check` for the models' PVC and versions.

    Each run has a new Job name.
    """

    async def play(stage: Stage) -> None:
        stage.show(1)
        stage.show(0)
        await stage.run()
        await stage.run()

    first, second = acting(play).api.jobs.values()
    assert first["metadata"]["name"] != second["metadata"]["name"]
    template = first["spec"]["template"]["spec"]
    request = CheckRequest.from_argument(template["containers"][0]["args"][2])
    assert [version.uid for version in request.versions] == ["uid-000", "uid-001"]
    name = first["metadata"]["name"]
    assert name.startswith(f"{names.CHECK_NAME}-")
    planned = volume_jobs.build_check("art", name, "models", request, SETTINGS.loader)
    metadata = {key: value for key, value in first["metadata"].items() if key != "uid"}
    assert (metadata, first["spec"]) == (planned["metadata"], planned["spec"])


def test_many_models_are_checked_in_several_jobs() -> None:
    """The Jobs run one after another. If one fails, the other batches are still checked."""

    async def play(stage: Stage) -> None:
        for number in range(VERSIONS_MAX * 2 + 1):
            stage.show(number)
        stage.api.results = [MISSING, "no result", MISSING]
        await stage.run(jobs=3)
        missed = [stage.missed(number) for number in range(VERSIONS_MAX * 2 + 1)]
        assert missed[0] == 1
        assert missed[1:VERSIONS_MAX] == [0] * (VERSIONS_MAX - 1)
        assert missed[VERSIONS_MAX:-1] == [None] * VERSIONS_MAX
        assert missed[-1] == 1

    assert acting(play).counted() == {"missing": 2, "failed": 1}


@pytest.mark.parametrize("forge", FORGED.values(), ids=list(FORGED))
def test_only_the_jobs_own_pod_is_believed(forge: Callable[[Cluster, Json], None]) -> None:
    """Without a valid result of the Pod that belongs to the check Job, the check fails.

    The count of checks that found files missing begins again.
    """

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.results = [MISSING]
        await stage.run()
        assert stage.missed() == 1
        stage.api.ends = lambda job: forge(stage.api, job)
        await stage.run()
        assert (stage.missed(), stage.woken) == (None, [])

    assert acting(play).counted() == {"missing": 1, "failed": 1}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("Traceback", id="text"),
        pytest.param('{"outcome": "loaded"}', id="another command's result"),
        pytest.param('{"outcome": "checked", "missing": [1]}', id="a model that was not asked for"),
        pytest.param('{"outcome": "checked", "unreadable": [1]}', id="another such model"),
        pytest.param(json.dumps({"outcome": "checked", "missing": [0] * 4000}), id="too long"),
    ],
)
def test_an_invalid_result_counts_as_a_failed_check(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator ignores a result that breaks the contract in any way, and logs the Job."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.results = [text]
        await stage.run()

    stage = acting(play)
    assert (stage.missed(), stage.counted()) == (None, {"failed": 1})
    (name,) = stage.api.jobs
    warning = f"the check of PVC art/models failed: Job {name} has no valid result"
    assert warning in caplog.messages


def test_the_log_says_why_a_check_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The logged cause is the loader's message or, if the loader left none, the Job's message."""

    async def play(stage: Stage) -> None:
        stage.show()
        failed = LoadResult(
            outcome="failed", reason=Reason.VOLUME_NOT_WRITABLE, message="cannot open the volume"
        )
        stage.api.results = [failed]
        stage.api.ends = lambda job: (
            stage.api.succeed(job, ended={"exitCode": 3}, phase="Failed"),
            stage.api.end(job, "Failed"),
        )
        await stage.run()
        stage.api.ends = lambda job: stage.api.end(job, "Failed")
        await stage.run()

    acting(play)
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert logged == [
        "the check of PVC art/models failed: cannot open the volume",
        "the check of PVC art/models failed: it was too slow",
    ]


def test_a_job_that_never_ends_is_given_up() -> None:
    """If somebody suspends the Job, its deadline never comes, so the operator deletes it."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.ends = lambda _: None
        await asyncio.sleep(0)
        stage.seconds += INTERVAL
        stage.checks._supervisor.start("art/models")
        async with asyncio.timeout(10):
            while not stage.api.jobs:  # noqa: ASYNC110 - another task creates it
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert stage.outcomes() == 0
            stage.seconds += volume_jobs.CHECK_DEADLINE_SECONDS + checks.LATE_SECONDS
            while not stage.outcomes():  # noqa: ASYNC110 - another task counts
                await asyncio.sleep(0.005)

    stage = acting(play)
    assert stage.counted() == {"failed": 1}
    assert stage.api.deleted == list(stage.api.jobs)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ForbiddenError("exceeded quota: jobs", 403), id="quota"),
        pytest.param(InvalidError("not valid", 422), id="invalid"),
        pytest.param(NotFoundError("no such namespace", 404), id="namespace gone"),
    ],
)
def test_a_job_that_is_rejected_is_not_created_again_at_once(error: ApiError) -> None:
    """After a rejected check Job, the next one is created after the usual interval."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.fails = [error]
        await stage.run()
        await asyncio.sleep(0.05)
        assert stage.api.jobs == {}
        await stage.run()

    assert acting(play).counted() == {"failed": 1, "complete": 1}


@pytest.mark.parametrize(
    "error", [UnavailableError("away", 503), AlreadyExistsError("exists", 409)]
)
def test_a_request_that_fails_for_a_moment_is_repeated(error: ApiError) -> None:
    """The check is tried again after a short delay with a new name, and completes."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.fails = [error]
        await stage.run()

    stage = acting(play)
    assert stage.counted() == {"complete": 1}
    first, second = stage.api.names
    assert first != second


def test_jobs_are_kept_only_for_their_log() -> None:
    """The Job of a complete check is deleted, since even an ended Pod keeps a PVC from deletion."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.api.results = [COMPLETE, MISSING, CheckResult(outcome="checked", unreadable=(0,))]
        for _ in range(3):
            await stage.run()

    api = acting(play).api
    assert api.deleted == list(api.jobs)[:1]


def test_a_job_that_cannot_be_deleted_goes_by_its_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the Job of a complete check cannot be deleted, its result counts nevertheless.

    Kubernetes deletes the Job after its TTL.
    """

    async def refuse(*_: object) -> None:
        raise ForbiddenError("no right to delete", 403)

    async def play(stage: Stage) -> None:
        monkeypatch.setattr(stage.api, "delete", refuse)
        stage.show(missingTime="2026-01-01T00:00:00Z")
        await stage.run()

    stage = acting(play)
    assert (stage.counted(), stage.woken) == ({"complete": 1}, ["uid-000"])


def test_an_empty_volume_is_one_event_on_the_pvc() -> None:
    """No model is reported as missing, and only the first check of an empty volume emits an Event.

    After a complete check, an empty volume emits an Event again.
    """

    async def play(stage: Stage) -> None:
        stage.show(0)
        stage.show(1, missingTime="2026-01-01T00:00:00Z")
        stage.api.results = [MISSING, EMPTY, EMPTY, COMPLETE, EMPTY]
        await stage.run()
        for _ in range(2):
            await stage.run()
            assert (stage.missed(0), stage.missed(1)) == (None, None)
        assert len(stage.api.events) == 1
        await stage.run()
        await stage.run()
        assert len(stage.api.events) == 2

    stage = acting(play)
    assert stage.counted() == {"missing": 1, "empty": 3, "complete": 1}
    event = stage.api.events[0]
    assert (event["reason"], event["type"]) == ("StoreMissing", "Warning")
    about = event["involvedObject"]
    assert (about["kind"], about["name"], about["uid"]) == (
        "PersistentVolumeClaim",
        "models",
        claim().uid,
    )


def test_no_check_runs_beside_a_load() -> None:
    """The check follows once the load has ended."""

    async def play(stage: Stage) -> None:
        condition = {
            "type": "Reconciling",
            "status": "True",
            "reason": "Downloading",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        stage.show(0)
        stage.show_status({"conditions": [condition]}, 1)
        stage.seconds += INTERVAL
        stage.checks._supervisor.start("art/models")
        await asyncio.sleep(0.05)
        assert stage.api.jobs == {}
        stage.show(1)
        await stage.run()

    assert acting(play).counted() == {"complete": 1}


def test_a_model_that_is_gone_is_forgotten() -> None:
    """A result that arrives later is not kept. A PVC without models is no longer checked."""

    async def play(stage: Stage) -> None:
        stage.show(0)
        stage.show(1)
        stage.api.results = [CheckResult(outcome="checked", missing=(0, 1))]
        stage.api.ends = lambda job: (stage.checks.forget("uid-000"), stage.api.succeed(job))
        await stage.run()
        assert (stage.missed(0), stage.missed(1)) == (None, 1)
        stage.checks.forget("uid-001")
        assert stage.missed(1) is None
        assert stage.checks._claims == {}

    acting(play)


def test_a_namespace_without_rights_is_left() -> None:
    """After `leave`, no check Job is created in the namespace until a model is shown again."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.checks.leave("elsewhere")
        assert list(stage.checks._claims) == ["art/models"]
        stage.checks.leave("art")
        stage.seconds += INTERVAL
        await asyncio.sleep(0.05)
        assert (stage.api.jobs, stage.checks._claims) == ({}, {})
        stage.show()
        await stage.run()

    assert acting(play).counted() == {"complete": 1}


def test_checks_can_be_switched_off() -> None:
    """With an interval of 0, no PVC is checked."""

    async def play(stage: Stage) -> None:
        stage.show()
        stage.seconds += 1e9
        await asyncio.sleep(0.05)

    stage = acting(play, Settings(check_seconds=0))
    assert (stage.api.jobs, stage.checks._claims) == ({}, {})
