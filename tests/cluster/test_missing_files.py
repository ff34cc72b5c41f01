"""Published files that are removed by hand: found by two checks, and loaded again on request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_api import names
from tests.support.kube.cluster import Cluster
from tests.support.operator.operated import Operated, condition, operated_in

pytestmark = pytest.mark.cluster

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def operated(
    shared_cluster: Cluster, checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operated]:
    """An operator that checks published files every second, with a loaded model `kept`.

    Each test leaves that model loaded.
    """
    with operated_in(shared_cluster, checkpoints, tmp_path_factory.mktemp("operated")) as made:
        made.start(SD_OPERATOR_CHECK_SECONDS="1")
        made.load("kept", url=made.link(name="kept"))
        yield made


def checks(operated: Operated) -> float:
    """Return how many checks have ended, by the operator's metrics."""
    found = operated.metrics().items()
    return sum(value for key, value in found if key[0] == "sdmodel_checks_total")


def check_jobs(operated: Operated) -> set[str]:
    """Return the uids of the Jobs of checks."""
    jobs = operated.cluster.list("jobs", labelSelector=f"{names.LABEL_NAME}={names.CHECK_NAME}")
    return {job["metadata"]["uid"] for job in jobs}


def after_checks(operated: Operated, count: int) -> None:
    """Wait until this many more checks have ended."""
    before = checks(operated)
    operated.eventually(lambda: checks(operated) >= before + count, timeout=60)


# Slow: the next test covers the report, tests/operator/rules/test_missing.py restart and reload.
@pytest.mark.slow
def test_a_model_whose_files_are_gone_is_reported_and_reloaded(operated: Operated) -> None:
    """The model is not Ready; only after somebody sets the reload annotation is it loaded."""
    other = operated.cluster.get("sdm", "kept")
    first = operated.load("lost", url=operated.link(1, name="lost"))
    folder = operated.cluster.store / first["status"]["artifact"]["immutablePath"]
    after_checks(operated, 2)
    assert condition(operated.cluster.get("sdm", "lost"), "Ready")["status"] == "True"
    operated.hub.forget()

    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    status = operated.stalled("lost", "ArtifactMissing")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "ArtifactMissing")
    ready = condition({"status": status}, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ArtifactMissing")
    assert status["artifact"]["immutablePath"] in ready["message"]
    assert status["artifact"]["missingTime"] >= status["artifact"]["lastUpdateTime"]
    operated.eventually(lambda: operated.reasons("lost").count("ArtifactMissing") == 1)
    namespace = operated.cluster.namespace
    assert operated.metrics()["sdmodel_artifacts_missing", namespace] == 1

    operated.kill()
    operated.start(SD_OPERATOR_CHECK_SECONDS="1")
    after_checks(operated, 3)
    still = operated.cluster.get("sdm", "lost")["status"]
    assert still["artifact"] == status["artifact"], "a restarted operator reports it as before"
    assert operated.reasons("lost").count("ArtifactMissing") == 1
    assert operated.hub.bytes_served == 0
    untouched = operated.cluster.get("sdm", "kept")["status"]
    assert untouched["artifact"] == other["status"]["artifact"]
    assert untouched["phase"] == "Ready"

    operated.cluster.annotate("sdm", "lost", {names.ANNOTATION_RELOAD: "now"})
    again = operated.wait("lost", lambda item: item["status"]["phase"] == "Ready")["status"]
    assert condition({"status": again}, "Ready")["status"] == "True"
    assert not condition({"status": again}, "Stalled")
    assert again["artifact"]["digest"] == first["status"]["artifact"]["digest"]
    assert "missingTime" not in again["artifact"]
    assert (operated.cluster.store / "lost" / WEIGHTS).is_file()


def test_a_model_is_ready_again_when_its_files_are_back(operated: Operated) -> None:
    """Once the files are back on the volume, the model is Ready again without a load."""
    item = operated.ready("kept")
    weights = operated.cluster.store / item["status"]["artifact"]["immutablePath"] / WEIGHTS
    operated.hub.forget()
    moved = weights.rename(operated.cluster.store / "elsewhere")
    operated.stalled("kept", "ArtifactMissing")
    moved.rename(weights)
    after = operated.ready("kept")["status"]
    assert after["artifact"] == item["status"]["artifact"]
    assert not condition({"status": after}, "Stalled")
    operated.eventually(lambda: "ArtifactRestored" in operated.reasons("kept"))
    assert operated.hub.bytes_served == 0


def test_an_empty_volume_is_reported_on_the_pvc_only(operated: Operated) -> None:
    """The status of the model stays, since another volume may be mounted by mistake."""
    item = operated.ready("kept")
    store = operated.cluster.store / ".store"
    moved = store.rename(operated.cluster.store / "elsewhere")
    operated.eventually(lambda: operated.reasons("models") == ["StoreMissing"], timeout=60)
    after_checks(operated, 2)
    assert operated.reasons("models") == ["StoreMissing"]
    after = operated.cluster.get("sdm", "kept")["status"]
    assert after == item["status"]
    if store.exists():
        store.rmdir()
    moved.rename(store)


@pytest.mark.slow
def test_a_check_is_not_counted_as_a_load(operated: Operated) -> None:
    """The metrics count no load, and the Jobs of checks that found all files are deleted."""
    operated.ready("kept")
    before = check_jobs(operated)  # In other tests, checks found files missing; their Jobs stay.
    after_checks(operated, 3)
    assert len(check_jobs(operated) - before) <= 1, "at most one that still runs"
    assert operated.metrics()[("sdmodel_load_jobs_active",)] == 0
