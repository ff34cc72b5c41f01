"""Loads that wait in the operator's own queue or in Kueue."""

from __future__ import annotations

import pytest

from tests.support.operator.operated import Operated, condition

pytestmark = pytest.mark.cluster

LABEL = "kueue.x-k8s.io/queue-name"


def place(operated: Operated, name: str, text: str) -> None:
    """Wait until a model has this queue position."""
    operated.wait(
        name,
        lambda one: (
            (one["status"].get("phase"), condition(one, "Ready").get("message"))
            == ("Queued", f"{text} in the queue")
        ),
    )


def test_loads_wait_in_the_queue(light_operated: Operated) -> None:
    """Priority decides the order. Each load that ends admits the next, also after a restart."""
    operated = light_operated
    operated.start(SD_OPERATOR_MAX_LOADS="1")
    operated.cluster.model("first", url=operated.light_link("first", seconds=60))
    operated.in_phase("first", "Converting")
    operated.cluster.model("second", url=operated.light_link("second"))
    place(operated, "second", "position 1")
    third = operated.light_link("third", seconds=60)
    operated.cluster.model("third", url=third, priority=5)
    place(operated, "third", "position 1")
    place(operated, "second", "position 2")

    operated.kill()
    operated.start(SD_OPERATOR_MAX_LOADS="1")
    operated.eventually(lambda: operated.metrics().get(("sdmodel_queue_length",)) == 2)
    assert operated.metrics()["sdmodel_load_jobs_active",] == 1
    assert len(operated.jobs("load")) == 1

    operated.cluster.patch("sdm", "first", {"spec": {"suspend": True}})
    operated.in_phase("third", "Converting")
    place(operated, "second", "position 1")

    operated.delete("third")
    operated.gone("third")
    item = operated.ready("second")
    assert item["status"]["job"]["attempt"] == 0
    assert operated.metrics()["sdmodel_queue_length",] == 0


# Slow, because tests/operator/rules tests the manifest and the states of a Job in a Kueue queue.
@pytest.mark.slow
def test_with_kueue_jobs_wait_suspended(light_operated: Operated) -> None:
    """Kueue admits the Jobs; the operator's own limits are off, and it leaves the Jobs alone."""
    operated = light_operated
    operated.start(SD_OPERATOR_KUEUE_QUEUE="gpus", SD_OPERATOR_MAX_LOADS="1")
    for name in ("sketch", "other"):
        url, hook = operated.light_link(name), operated.receiver.url
        operated.cluster.model(name, url=url, webhook=hook)
        item = operated.in_phase(name, "Queued")
        message = condition(item, "Ready")["message"]
        assert "is waiting for Kueue to admit it into queue gpus" in message
    jobs = operated.jobs("load")
    assert [(job["metadata"]["labels"][LABEL], job["spec"]["suspend"]) for job in jobs] == [
        ("gpus", True)
    ] * 2
    assert operated.receiver.calls == []
    assert operated.metrics()["sdmodel_queue_length",] == 2
    assert operated.metrics()["sdmodel_load_jobs_active",] == 0
    # As Kueue does.
    for job in jobs:
        operated.cluster.patch("job", job["metadata"]["name"], {"spec": {"suspend": False}})
    for name in ("sketch", "other"):
        assert operated.ready(name)["status"]["job"]["attempt"] == 0
    assert len(operated.jobs("load")) == 2
    operated.eventually(
        lambda: operated.receiver.events("sketch") == ["model.load_started", "model.loaded"]
    )
