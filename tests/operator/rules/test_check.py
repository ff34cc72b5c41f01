"""When the files on a PVC are checked, and what follows from the results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from sd_api import names
from sd_api.check import CheckRequest, CheckResult
from sd_api.reasons import Reason
from sd_api.spec import JobOverrides
from sd_api.status import Status, StatusArtifact
from sd_operator.base.settings import LoaderSettings
from sd_operator.resources.check_finding import CheckFinding
from sd_operator.resources.claim import ClaimView
from sd_operator.rules import check, volume_jobs
from sd_operator.rules.check import Claim, Pause, Served, Start
from tests.support.rules.decisions import act, observed, with_pod
from tests.support.rules.observed import (
    UID,
    WANTED,
    claim,
    job,
    loading,
    model,
    published,
    running,
    stalled,
)

INTERVAL = 3600.0
LOAD = check.LOADING_LOOK_SECONDS


def artifact(**fields: Any) -> StatusArtifact:
    """Return a published version."""
    return StatusArtifact.model_validate(published(**fields)["artifact"])


def served(number: int = 0, *, loading: bool = False, **fields: Any) -> Served:
    """Return a model with a published version."""
    return Served(f"uid-{number:04}", f"m{number}", artifact(**fields), loading)


UNPUBLISHED = Served("uid-new", "new", None, loading=False)


@dataclass(frozen=True)
class Due:
    """A row: a PVC with its models, and the expected uids to check, or seconds to wait."""

    id: str
    expected: list[str] | float
    models: tuple[Served, ...] = (served(),)
    view: ClaimView | None = claim()  # noqa: RUF009 - it is frozen
    due_in: float = 0.0
    rest: tuple[Served, ...] = ()


@pytest.mark.parametrize(
    "row",
    [
        Due("due", ["uid-0000"]),
        Due("overdue", ["uid-0000"], due_in=-1e6),
        Due("not due yet", 7.0, due_in=7.0),
        Due("the PVC does not exist", INTERVAL, view=None),
        Due("the PVC is being deleted", INTERVAL, view=claim(deleting=True)),
        Due("no Pod could mount the PVC", INTERVAL, view=claim(lost=True)),
        Due("no models", INTERVAL, models=()),
        Due("no version is published", INTERVAL, models=(UNPUBLISHED,)),
        Due("only published versions", ["uid-0000"], models=(UNPUBLISHED, served())),
        Due("in one order", ["uid-0001", "uid-0002"], models=(served(2), served(1))),
        Due("published on an earlier PVC of the name", INTERVAL, view=claim(uid="new")),
        Due("the version does not name its PVC", INTERVAL, models=(served(claimUID=None),)),
        Due("a load runs", LOAD, models=(served(0), served(1, loading=True))),
        Due("a load runs, and no check is due", 7.0, due_in=7.0, models=(served(loading=True),)),
        Due("the run goes on", ["uid-0007"], due_in=INTERVAL, rest=(served(7),)),
        Due("a load begins during the run", LOAD, (served(1, loading=True),), rest=(served(7),)),
    ],
    ids=lambda row: row.id,
)
def test_a_check_is_due(row: Due) -> None:
    """No check starts while a load runs, or without a PVC that has published versions."""
    step = check.plan(Claim(row.view, row.models, row.due_in, row.rest), INTERVAL)
    if isinstance(step, Pause):
        assert step.seconds == row.expected
    else:
        assert [one.uid for one in step.batch] == row.expected
        assert step.claim == row.view


def test_a_pvc_with_a_load_is_looked_at_again_at_the_interval() -> None:
    """The pause is the interval if this is shorter than LOADING_LOOK_SECONDS."""
    models = (served(loading=True),)
    assert check.plan(Claim(claim(), models, 0.0), 1.0) == Pause(1.0)


def test_a_thousand_models_are_checked_in_batches() -> None:
    """Each of the models is in exactly one batch of the run."""
    models = tuple(served(number) for number in range(1001))
    rest: tuple[Served, ...] = ()
    batches = []
    while not batches or rest:
        step = check.plan(Claim(claim(), models, 0.0, rest), INTERVAL)
        assert isinstance(step, Start)
        batches.append(step.request().versions)
        rest = step.rest
    assert [len(batch) for batch in batches] == [250, 250, 250, 250, 1]
    asked = [version.model_id for batch in batches for version in batch]
    assert asked == [one.model_id for one in models]


def test_the_request_names_the_published_version() -> None:
    """The request takes uid, load hash and model id from the published version."""
    other = "f" * 16
    start = Start(claim(), (served(load_hash=other),), ())
    (version,) = start.request().versions
    assert (version.uid, version.load_hash, version.model_id) == ("uid-0000", other, "m0")


def status_of(status: dict[str, Any]) -> Status:
    """Return the `Status` that is parsed from this JSON."""
    return Status.model_validate(status)


@pytest.mark.parametrize(
    ("status", "loads"),
    [
        pytest.param(published(), False, id="Ready"),
        pytest.param(stalled(Reason.ARTIFACT_MISSING, base=published()), False, id="missing"),
        pytest.param(stalled(Reason.SOURCE_NOT_FOUND), False, id="failed"),
        pytest.param({}, False, id="new"),
    ],
)
def test_a_settled_model_does_not_load(status: dict[str, Any], loads: bool) -> None:
    """`Served.loading` is false for a model that is Ready, that failed, or that is new."""
    assert Served.of(model(status), status_of(status)).loading is loads


def test_a_model_loads_from_its_job_to_its_result() -> None:
    """`Served.loading` is true from the Job's creation to its result.

    It is false for a load that cannot start: such a load may wait for days.
    """
    created = act(model(), observed()).status
    assert Served.of(model(), created).loading
    runs = act(model(loading()), with_pod(job(), running("fetch"), phase="Running")).status
    assert Served.of(model(), runs).loading
    waits = with_pod(job(), unscheduled="no GPU", age=100_000)
    assert not Served.of(model(), act(model(loading()), waits).status).loading
    queued = act(model(), observed(admitted=False)).status
    assert not Served.of(model(), queued).loading


def test_a_deleted_model_is_not_checked() -> None:
    """A model that is being deleted has no version to check: its files are about to be removed."""
    assert Served.of(model(published(), deleted_ago=5), status_of(published())).artifact is None


RESULT = CheckResult(outcome="checked")
MISSED = CheckResult(outcome="checked", missing=(0,))
UNREADABLE = CheckResult(outcome="checked", unreadable=(0,))
EMPTY = CheckResult(outcome="empty", missing=(0,))


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        pytest.param([RESULT], 0, id="complete"),
        pytest.param([MISSED], 1, id="missing once"),
        pytest.param([MISSED, MISSED], 2, id="missing twice"),
        pytest.param([MISSED, RESULT, MISSED], 1, id="not in a row"),
        pytest.param([MISSED, None, MISSED], 1, id="a failed check in between"),
        pytest.param([MISSED, UNREADABLE, MISSED], 1, id="unreadable in between"),
        pytest.param([MISSED, EMPTY, MISSED], 1, id="an empty volume in between"),
        pytest.param([MISSED, MISSED, None], None, id="a failed check"),
        pytest.param([MISSED, MISSED, UNREADABLE], None, id="unreadable"),
        pytest.param([MISSED, MISSED, EMPTY], None, id="an empty volume"),
        pytest.param([MISSED, MISSED, RESULT], 0, id="back"),
    ],
)
def test_checks_in_a_row_are_counted(results: list[CheckResult | None], missed: int | None) -> None:
    """After a check without a result about the version, the count begins again."""
    known: dict[str, CheckFinding] = {}
    for result in results:
        known = check.findings(known, (served(),), result)
    found = known.get("uid-0000")
    assert (found.missed if found else None) == missed


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"lastUpdateTime": "2026-01-01T00:10:00Z"}, id="loaded again"),
        pytest.param({"digest": "blake3:" + "ef" * 32}, id="other content"),
        pytest.param({"load_hash": "f" * 16}, id="another version"),
        pytest.param({"claimUID": "another"}, id="another claim"),
    ],
)
def test_another_version_is_counted_from_the_start(change: dict[str, Any]) -> None:
    """A finding about the previous version does not count for the version that replaced it."""
    known = check.findings({}, (served(),), MISSED)
    known = check.findings(known, (served(**change),), MISSED)
    assert known["uid-0000"].missed == 1


def test_a_version_is_the_same_while_its_files_are_missing() -> None:
    """With missingTime in the status, the version counts as the one before: the count goes on."""
    known = check.findings({}, (served(),), MISSED)
    known = check.findings(known, (served(missingTime="2026-01-01T00:10:00Z"),), MISSED)
    assert known["uid-0000"].missed == 2


def test_only_the_named_models_of_a_batch_are_missing() -> None:
    """A result lists missing versions by their position in the request."""
    batch = tuple(served(number) for number in range(4))
    result = CheckResult(outcome="checked", missing=(1, 3), unreadable=(2,))
    known = check.findings({}, batch, result)
    missed = {uid: finding.missed for uid, finding in known.items()}
    assert missed == {"uid-0000": 0, "uid-0001": 1, "uid-0003": 1}


REQUEST = CheckRequest.model_validate(
    {"versions": [{"uid": UID, "loadHash": WANTED, "modelId": "sketch"}]}
)


def made(loader: LoaderSettings | None = None) -> dict[str, Any]:
    """Return the Job of a check."""
    return volume_jobs.build_check("art", "check-1", "models", REQUEST, loader or LoaderSettings())


def test_a_check_only_reads() -> None:
    """Volume and root are read-only, and the Pod has no token, no Secret and no GPU."""
    pod = made()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert [volume["name"] for volume in pod["volumes"]] == ["models", "tmp"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == LoaderSettings().slim_image
    assert LoaderSettings().gpu_resource not in json.dumps(container["resources"])


def test_a_check_is_not_a_load() -> None:
    """The check Job has no labels or owner of a model's Job, and does not wait for Kueue."""
    made_by = made(LoaderSettings(kueue_queue="queue"))
    assert made_by["metadata"]["labels"] == {names.LABEL_NAME: names.CHECK_NAME}
    assert made_by["spec"]["template"]["metadata"]["labels"] == made_by["metadata"]["labels"]
    assert "suspend" not in made_by["spec"]
    assert "ownerReferences" not in made_by["metadata"]


def test_a_check_that_cannot_start_ends() -> None:
    """The check Job has a deadline and no retries: another node may hold the volume for long."""
    spec = made()["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (600, 0)
    assert spec["ttlSecondsAfterFinished"] == 600


def test_the_request_of_a_check_reaches_the_loader() -> None:
    """The container gets the request as an argument, and the path of the termination message."""
    (container,) = made()["spec"]["template"]["spec"]["containers"]
    command, option, request, *store = container["args"]
    assert [command, option, *store] == ["check", "--request", "--store", "/models"]
    assert CheckRequest.from_argument(request) == REQUEST
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["SD_LOADER_TERMINATION_LOG"] == container["terminationMessagePath"]


def test_checks_are_placed_as_loads_are() -> None:
    """The Pod has the node selector that the administrator sets for loads."""
    loader = LoaderSettings(placement=JobOverrides(node_selector={"disk": "fast"}))
    assert made(loader)["spec"]["template"]["spec"]["nodeSelector"] == {"disk": "fast"}


def test_the_event_about_an_empty_volume_says_what_to_check() -> None:
    """The message has the number of models that cannot be checked, and the next step."""
    event = check.empty_event(3)
    assert event.reason == "StoreMissing"
    assert event.message == (
        "the volume has no folder .store, so the files of 3 models cannot be checked; their status"
        " stays as it is. Check that this is the volume that they were published on"
    )
