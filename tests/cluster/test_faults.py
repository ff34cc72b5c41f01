"""The operator is killed at every stage; the model ends as in a run without the fault."""

from __future__ import annotations

import pytest

from tests.support.kube.stubjobs import has_condition
from tests.support.operator.operated import (
    SLOW,
    Operated,
    condition,
    loaded_once,
    told_once,
)

pytestmark = pytest.mark.cluster


@pytest.mark.slow
def test_killed_before_the_job(operated: Operated) -> None:
    """The operator may have written the finalizer, the Job or the status before it dies."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(), webhook=operated.receiver.url)
    operated.cluster.wait_for("sdm", "sketch", lambda one: one["metadata"].get("finalizers"))
    operated.kill()
    operated.start()
    operated.ready()
    loaded_once(operated)


# Slow, because test_outages.py tests a Job that ends unseen, and the next test tests a restart.
@pytest.mark.slow
def test_killed_during_the_load(light_operated: Operated) -> None:
    """The Job ends while no operator runs; its Pod still has the result."""
    operated = light_operated
    operated.start()
    url = operated.light_link("sketch", seconds=1)
    operated.cluster.model("sketch", url=url, webhook=operated.receiver.url)
    operated.in_phase("sketch", "Converting")
    operated.kill()
    (job,) = operated.jobs("load")
    operated.cluster.wait_for("job", job["metadata"]["name"], has_condition("Complete"))
    operated.start()
    operated.ready()
    loaded_once(operated)
    assert operated.light_loads("sketch") == 1


@pytest.mark.slow
def test_killed_and_the_job_deleted_in_the_meantime(operated: Operated) -> None:
    """The result is lost with the Job; a new Job returns it from the receipt on the volume."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(rate=2 * SLOW))
    operated.in_phase("sketch", "Downloading")
    operated.kill()
    (job,) = operated.jobs("load")
    name = job["metadata"]["name"]
    operated.cluster.wait_for("job", name, has_condition("Complete"))
    operated.cluster.delete("job", name)
    operated.cluster.wait_gone("job", name)
    served = operated.hub.bytes_served
    operated.start()
    item = operated.ready()
    assert item["status"]["job"]["attempt"] == 1
    assert operated.hub.bytes_served == served, "nothing is downloaded again"


def test_a_restart_with_loaded_models_writes_nothing(light_operated: Operated) -> None:
    """No status changes, not even a time. On SIGTERM the operator ends with the exit code 0."""
    operated = light_operated
    operated.start()
    before = operated.load(url=operated.light_link("sketch"))
    operated.kill()
    operated.start()
    ready = ("sdmodel_models", operated.cluster.namespace, "Ready", "")
    operated.eventually(lambda: operated.metrics().get(ready) == 1)
    after = operated.cluster.get("sdm", "sketch")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    writes = [key for key in operated.metrics() if key[-1] in ("patch", "create", "delete")]
    assert writes == []

    assert operated.operator is not None
    operated.operator.terminate()
    assert operated.operator.wait(5) == 0


@pytest.mark.slow
def test_deleted_during_the_load_while_the_operator_is_down(operated: Operated) -> None:
    """The loader is stopped first, then every file is removed."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(rate=SLOW))
    operated.wait("sketch", lambda one: one["status"].get("progress", {}).get("percent", 0) > 5)
    operated.kill()
    operated.delete()
    operated.start()
    operated.gone()
    assert operated.left() == []
    assert operated.jobs("load") == []


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.slow
def test_killed_during_the_clean_up(operated: Operated, propagation: str) -> None:
    """Foreground deletion deletes every owned Job, so the clean-up Job has no owner."""
    operated.start()
    operated.load(url=operated.link())
    operated.kill()
    operated.cluster.delete("sdm", "sketch", propagation)
    operated.start()
    operated.eventually(lambda: operated.jobs("remove"))
    operated.kill()
    operated.start()
    operated.gone()
    assert operated.left() == []
    operated.eventually(lambda: operated.jobs("remove") == [])


@pytest.mark.slow
def test_a_recreated_model_of_the_same_name_is_another_model(operated: Operated) -> None:
    """The new model has another uid and takes over only the files of the previous model."""
    operated.start()
    first = operated.load(url=operated.link())
    operated.kill()
    operated.delete()
    operated.cluster.release("sketch")
    operated.gone()
    operated.hub.forget()
    operated.cluster.model("sketch", url=operated.link())
    operated.start()
    second = operated.ready()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["metadata"]["uid"] in second["status"]["artifact"]["immutablePath"]
    assert second["status"]["artifact"]["digest"] == first["status"]["artifact"]["digest"]
    assert operated.hub.bytes_served == 0, "the files are taken over"
    operated.delete()
    operated.gone()
    assert operated.left() == []


@pytest.mark.slow
def test_a_job_that_exceeds_its_deadline_is_reported(operated: Operated) -> None:
    """The status shows the Job's condition if the loader could not write a result."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(rate=SLOW))
    operated.in_phase("sketch", "Downloading")
    (job,) = operated.jobs("load")
    change = {"spec": {"activeDeadlineSeconds": 1}}
    operated.cluster.patch("job", job["metadata"]["name"], change)
    item = operated.stalled("sketch", "DeadlineExceeded")
    assert "spec.job.activeDeadlineSeconds" in condition(item, "Ready")["message"]


# Slow, because test_election.py also tests two operators.
@pytest.mark.slow
def test_two_operators_do_no_harm(light_operated: Operated) -> None:
    """Two operators may run before one is elected, or while a previous leader still runs."""
    operated = light_operated
    operated.start()
    operated.start()
    operated.load(url=operated.light_link("sketch"), webhook=operated.receiver.url)
    loaded_once(operated)
    assert operated.light_loads("sketch") == 1
    operated.delete()
    operated.gone()
    told_once(operated)
    assert operated.left() == []
