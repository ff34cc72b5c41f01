"""Passes over models, with an API server whose objects and errors the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from typing_extensions import override

from sd_api import names
from sd_api.status import Phase, Status
from sd_operator.base.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from sd_operator.base.metrics import Metrics
from sd_operator.base.settings import Settings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.clients.kube import CLAIMS, JOBS, Resource
from sd_operator.reconciler import supervisor
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.controller import Controller
from sd_operator.reconciler.execute import Executor
from sd_operator.resources.model import Model
from sd_operator.rules.manifests import plan_load
from sd_operator.standalone.patch import merge_patch
from tests.support.kube.scriptedapi import Json, Script
from tests.support.rules.observed import CLAIM_UID, UID, WANTED, body, claim, job, published


def keep(
    api: Script,
    scenario: Callable[[Controller], Coroutine[Any, Any, None]],
    **settings: Any,
) -> None:
    """Run a controller whose cache already has a PVC and the model."""

    async def run() -> None:
        controller = Controller(api, Settings(**settings), Metrics(), SYSTEM_CLOCK)
        controller.cache.put_claim(claim())
        controller.see(api.model)
        try:
            async with asyncio.timeout(10):
                await scenario(controller)
        finally:
            await controller.close()

    asyncio.run(run())


def test_a_pvc_deletion_that_the_watch_missed_is_found_at_the_resync() -> None:
    """Even for a Ready model, the resync reads the PVC, whose deletion a watch may have missed."""
    api = Script(body(published()))

    async def scenario(_: Controller) -> None:
        await api.until(lambda found: found.get("Ready") == "ClaimNotFound")

    keep(api, scenario, resync_seconds=0.1)
    assert api.asked[:2] == ["get stablediffusionmodels", "get persistentvolumeclaims"]


def test_a_pvc_wakes_only_its_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of a PVC starts no pass over the models on other PVCs, which may be thousands."""
    api, woken = Script(body()), list[str]()

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        monkeypatch.setattr(controller.supervisor, "wake", woken.extend)
        controller.claim_changed(claim(name="scratch"))
        controller.claim_changed(claim(namespace="elsewhere"))
        assert woken == []
        controller.claim_changed(claim())
        assert woken == [UID]

    keep(api, scenario)


def test_a_label_of_a_pvc_wakes_its_models() -> None:
    """As soon as its PVC gets the label, the model is loaded, without waiting for the resync."""
    api = Script(body(storage={"claimName": "database"}))

    def relabel(controller: Controller, version: str, *, for_models: bool) -> None:
        view = claim(name="database", resource_version=version, for_models=for_models)
        if controller.cache.put_claim(view):
            controller.claim_changed(view)

    async def scenario(controller: Controller) -> None:
        relabel(controller, "1", for_models=False)
        await api.until(lambda found: found.get("Stalled") == "ClaimNotAllowed")
        assert "create jobs" not in api.asked
        relabel(controller, "2", for_models=True)
        await api.until(lambda found: "Reconciling" in found)
        assert "create jobs" in api.asked

    keep(api, scenario)


def test_a_corrected_spec_is_tried_at_once() -> None:
    """The rejection of the previous spec's Job does not delay the Job of the corrected spec."""
    api = Script(body())
    api.refuses = InvalidError("limits: must be at least the request", 422)

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Stalled" in found)
        api.refuses = None
        metadata = api.model["metadata"] | {"generation": 2, "resourceVersion": "90"}
        api.model = api.model | {"metadata": metadata}
        controller.see(api.model)
        await api.until(lambda found: "Reconciling" in found)

    keep(api, scenario)
    assert api.asked.count("create jobs") == 2


def test_the_uid_of_a_job_is_recorded_in_the_pass_that_creates_it() -> None:
    """The status write that the pass makes in any case has the uid; no further request is sent."""
    api = Script(body())

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        await asyncio.sleep(0.1)
        assert controller.cache.active_loads() == {UID: "art"}

    keep(api, scenario)
    (made,) = api.jobs
    assert api.model["status"]["job"]["uid"] == made["metadata"]["uid"]
    assert api.asked == ["create jobs", "patch stablediffusionmodels", "create events"]


def test_a_job_is_found_again_if_its_uid_could_not_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The repeated pass takes over the Job that the first pass created; LoadStarted comes once."""
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_SECONDS", 0.01)
    api = Script(body())
    api.away = UnavailableError("no", 503)

    async def scenario(controller: Controller) -> None:
        while api.asked.count("create jobs") < 2:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.01)
        api.away = None
        await api.until(lambda found: "Reconciling" in found)
        await asyncio.sleep(0.1)
        assert controller.cache.active_loads() == {UID: "art"}

    keep(api, scenario)
    (made,) = api.jobs
    assert api.model["status"]["job"]["uid"] == made["metadata"]["uid"]
    assert "delete jobs" not in api.asked
    assert api.reasons == {"LoadStarted": 1}


def test_no_more_jobs_are_created_if_the_crd_drops_their_uid(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the status loses the uid, one Job is created, not one more in every pass."""

    class Older(Script):
        """An API server with a CRD from before status.job.uid."""

        @override
        async def patch(
            self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
        ) -> Json:
            """Patch the model, but drop the uid of the Job."""
            job = body.get("status", {}).get("job")
            if job:
                pruned = {key: value for key, value in job.items() if key != "uid"}
                body = body | {"status": body["status"] | {"job": pruned}}
            return await super().patch(resource, namespace, name, body, sub)

    api = Older(body())

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        controller.supervisor.wake([UID])
        await api.until(lambda found: "Reconciling" not in found)

    keep(api, scenario)
    assert api.asked.count("create jobs") == 1
    (ready,) = api.model["status"]["conditions"]
    assert "the loader Job cannot be created: the CRD is older than the op" in ready["message"]
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "Upgrade the CRD with the chart, then restart the operator" in errors[0]


def test_a_spec_that_changes_before_the_uid_is_recorded_stops_the_job() -> None:
    """The status write conflicts with the edit; the next pass deletes the previous spec's Job."""

    class Edited(Script):
        """An API server on which somebody edits the model as its first Job is created."""

        @override
        async def get(self, resource: Resource, namespace: str, name: str) -> Json:
            """Return the object; for the PVC, return its manifest."""
            if resource is CLAIMS:
                return {"metadata": {"name": name, "namespace": namespace, "uid": CLAIM_UID}}
            return await super().get(resource, namespace, name)

        @override
        async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
            """Create the object, after the edit."""
            if resource is JOBS and "create jobs" not in self.asked:
                self.change({"spec": {"revision": "fp16"}})
            return await super().create(resource, namespace, body)

        @override
        async def patch(
            self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
        ) -> Json:
            """Patch the version that the operator knows."""
            if body["metadata"]["resourceVersion"] != self.model["metadata"]["resourceVersion"]:
                raise ConflictError("the object has been modified", 409)
            return await super().patch(resource, namespace, name, body, sub)

    api = Edited(body())

    async def scenario(_: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)

    keep(api, scenario)
    (made,) = api.jobs
    wanted = Model.from_body(api.model).wanted
    assert made["metadata"]["annotations"][names.ANNOTATION_LOAD_HASH] == wanted
    assert api.model["status"]["job"]["uid"] == made["metadata"]["uid"]
    assert (api.asked.count("create jobs"), api.asked.count("delete jobs")) == (2, 1)


def test_a_job_that_is_deleted_during_a_pass_is_retried() -> None:
    """If a Job exists at first and then is gone, ConflictError is raised: the pass is repeated.

    NotFoundError would mean that the model is gone.
    """
    api = Script(body())
    api.refuses = AlreadyExistsError("it exists", 409)
    model, settings = Model.from_body(api.model), Settings()

    async def create() -> None:
        job = plan_load(model, settings, claim(), 0)
        await Executor(api, settings, ObjectCache(), SYSTEM_CLOCK).create_job(job)

    with pytest.raises(ConflictError):
        asyncio.run(create())


def test_a_status_that_cannot_be_read_is_replaced() -> None:
    """If the status stayed unreadable, the model would be loaded again for ever."""
    api = Script(body({"phase": "Dreaming", "startTime": "2026-01-01T00:00:00Z"}))
    sent: list[Json] = []

    async def write() -> None:
        executor = Executor(api, Settings(), ObjectCache(), SYSTEM_CLOCK)
        answer = await executor.write_status(Model.from_body(api.model), Status(phase=Phase.READY))
        sent.append((answer or {})["status"])

    asyncio.run(write())
    assert sent[0]["phase"] == "Ready"
    assert "startTime" not in sent[0]


def test_removing_the_finalizer_of_a_deleted_model_succeeds() -> None:
    """For this write, a 404 means success: the model is gone. For others, it is an error."""

    class Gone(Script):
        @override
        async def patch(
            self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
        ) -> Json:
            """Raise the error of a deleted model."""
            raise NotFoundError("not found", 404)

    executor = Executor(Gone(body()), Settings(), ObjectCache(), SYSTEM_CLOCK)
    model = Model.from_body(body())
    assert asyncio.run(executor.remove_finalizer(model)) is None
    with pytest.raises(NotFoundError):
        asyncio.run(executor.add_finalizer(model))


def test_the_job_of_a_newer_spec_is_left_alone() -> None:
    """The operator with the old spec does not delete a Job that another operator has started."""
    api = Script(body(published()))

    async def scenario(controller: Controller) -> None:
        wanted = Model.from_body(api.change({"spec": {"revision": "fp16"}})).wanted
        controller.cache.put_job(job(load_hash=wanted))
        await api.until(lambda found: "Reconciling" in found)

    keep(api, scenario)
    assert "delete jobs" not in api.asked


def test_a_deleted_model_is_not_seen_again() -> None:
    """Old events that a watch repeats start no pass: a load would leave files without an owner."""
    api = Script(body())

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        controller.forget(UID)
        asked = list(api.asked)
        controller.see(api.change({"spec": {"revision": "fp16"}}))
        await asyncio.sleep(0.1)
        assert api.asked == asked

    keep(api, scenario)
    assert api.asked.count("create jobs") == 1


def test_a_decision_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """A pass with the same decision as the previous pass logs nothing."""
    api, name = Script(body()), names.job_name("sketch", UID, WANTED, 0)
    caplog.set_level("INFO", "sd_operator.reconciler.controller")

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        for _ in range(3):
            controller.supervisor.wake([UID])
            await asyncio.sleep(0.02)
        controller.see(api.change({"spec": {"suspend": True}}))
        while len(caplog.messages) < 4:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.01)

    keep(api, scenario)
    assert caplog.messages == [
        f"load_is_due: create Job {name}: Job {name} was created; its Pod is starting",
        f"load_job_is_running: Job {name} was created; its Pod is starting",
        f"model_is_suspended: delete Job {name}: spec.suspend is true; set it to false to load",
        "model_is_suspended: spec.suspend is true; set it to false to load",
    ]


class Released(Script):
    """An API server that removes the finalizer in its reply but stores the model unchanged."""

    @override
    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
    ) -> Json:
        """Release the model, or raise the error if the model is already gone."""
        if self.away is not None:
            raise self.away
        return merge_patch(self.model, {"metadata": {"finalizers": None}})


@pytest.mark.parametrize(
    "away",
    [
        pytest.param(None, id="released"),
        pytest.param(NotFoundError("not found", 404), id="gone before"),
    ],
)
def test_an_unseen_deletion_is_reported_once(away: Exception | None) -> None:
    """MODEL_DELETED is reported once, even if an old list still contains the released model."""
    api = Released(body(deleted_ago=1, annotations={names.ANNOTATION_SKIP_CLEANUP: "true"}))
    api.away = away

    async def scenario(controller: Controller) -> None:
        while not api.events:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.01)
        controller.see(api.model)
        await asyncio.sleep(0.2)

    keep(api, scenario, resync_seconds=0.05)
    assert api.reasons == {"ModelDeleted": 1}


def test_a_stale_response_does_not_replace_a_newer_object() -> None:
    """A response with an older resourceVersion is ignored: its old spec would stop the new load."""
    api = Script(body())

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Reconciling" in found)
        old, wanted = api.model, api.change({"spec": {"revision": "fp16"}})
        controller.see(wanted)
        await api.until(lambda _: api.asked.count("create jobs") == 2)
        asked, api.model = len(api.asked), old
        while "get stablediffusionmodels" not in api.asked[asked:]:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    keep(api, scenario, resync_seconds=0.1)
    assert (api.asked.count("create jobs"), api.asked.count("delete jobs")) == (2, 1)
