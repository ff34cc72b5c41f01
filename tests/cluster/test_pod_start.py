"""Pods that have a node but do not start, and clean-up Jobs whose Pods would keep the PVC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sd_api import names
from sd_operator.base import times
from tests.support.kube.cluster import claim_manifest
from tests.support.operator.operated import Operated, condition

pytestmark = pytest.mark.cluster


def block(operated: Operated) -> None:
    """Put a file in the place of the volume's folder, so that the kubelet cannot mount it."""
    store = operated.cluster.store
    if store.exists():
        store.rename(store.with_name("aside"))
    store.parent.mkdir(parents=True, exist_ok=True)
    store.touch()


def unblock(operated: Operated) -> None:
    """Put the folder back."""
    store = operated.cluster.store
    store.unlink()
    aside = store.with_name("aside")
    if aside.exists():
        aside.rename(store)


def age_pod(operated: Operated, role: str) -> None:
    """Backdate the Pod's scheduling once the kubelet has warned about the Pod, to save the wait."""
    selector = f"{names.LABEL_ROLE}={role}"

    def warned() -> bool:
        pods = operated.cluster.list("pods", labelSelector=selector)
        events = operated.cluster.events(pods[0]["metadata"]["name"]) if pods else []
        return "FailedMount" in [reason for reason, _ in events]

    operated.eventually(warned)
    pod = operated.cluster.list("pods", labelSelector=selector)[0]
    ago = times.stamp(datetime.now(UTC) - timedelta(seconds=40))
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago}
    status = {"status": {"conditions": [scheduled]}}
    operated.cluster.patch("pod", pod["metadata"]["name"], status, "status")


def test_a_volume_that_cannot_be_mounted_is_reported(light_operated: Operated) -> None:
    """The load and the clean-up name the cause, and both go on once the volume is there."""
    operated = light_operated
    operated.start(SD_OPERATOR_STUCK_SECONDS="20")
    block(operated)
    operated.cluster.model("sketch", url=operated.light_link("sketch"))
    age_pod(operated, names.ROLE_LOAD)
    item = operated.stalled("sketch", "VolumeNotMounted")
    assert item["status"]["reason"] == "VolumeNotMounted"
    assert "MountVolume.SetUp failed" in condition(item, "Ready")["message"]
    unblock(operated)
    assert condition(operated.ready(), "Stalled") == {}

    block(operated)
    operated.delete()
    age_pod(operated, names.ROLE_REMOVE)
    item = operated.wait(
        "sketch", lambda one: "MountVolume.SetUp failed" in condition(one, "Ready")["message"]
    )
    item = operated.stalled("sketch", "VolumeNotMounted")
    assert "skip-cleanup" in condition(item, "Stalled")["message"]
    unblock(operated)
    operated.gone()
    operated.eventually(lambda: operated.jobs("remove") == [])
    assert operated.left() == []


@pytest.mark.slow
def test_a_model_on_a_pvc_that_is_never_bound_says_why_and_is_released(
    light_operated: Operated,
) -> None:
    """The status says why the PVC is not bound. The deletion completes without a clean-up Job."""
    operated = light_operated
    operated.start()
    unbound = claim_manifest("unbound")
    unbound["spec"] |= {"volumeName": "missing", "storageClassName": ""}
    operated.cluster.apply(unbound)
    operated.cluster.model(
        "sketch", url=operated.light_link("sketch"), storage={"claimName": "unbound"}
    )
    cause = "PersistentVolumeClaim unbound is not bound: PersistentVolume missing does not exist"
    item = operated.wait("sketch", lambda one: cause in condition(one, "Ready")["message"])
    assert item["status"]["reason"] == "ClaimNotBound"
    operated.delete()
    operated.gone()
    assert operated.jobs("remove") == []


def test_deleted_models_leave_no_pod_that_keeps_the_pvc(shared_light_operated: Operated) -> None:
    """The finished clean-up Job is deleted before its TTL, since its Pod would keep the PVC."""
    operated = shared_light_operated
    operated.load(url=operated.light_link("sketch"))
    operated.delete()
    operated.gone()
    operated.eventually(lambda: operated.jobs("remove") == [])
    operated.eventually(lambda: operated.cluster.list("pods") == [])


@pytest.mark.slow
def test_a_stuck_clean_up_job_is_deleted_when_the_files_are_given_up(
    shared_light_operated: Operated,
) -> None:
    """The Job is deleted: its Pod would wait for the volume until the Job's deadline."""
    operated = shared_light_operated
    operated.load("stuck", url=operated.light_link("stuck"))
    block(operated)
    operated.delete("stuck")
    # The operator deletes the Job whose uid it has recorded, which is a moment after its creation.
    operated.wait("stuck", lambda one: one["status"].get("cleanupJob"))
    assert operated.jobs("remove") != []
    operated.cluster.annotate("sdm", "stuck", {names.ANNOTATION_SKIP_CLEANUP: "true"})
    operated.gone("stuck")
    operated.eventually(lambda: operated.jobs("remove") == [])
    unblock(operated)
