"""A model's life on a cluster: operator and loader are processes, kubectl is the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_api import names
from sd_api.controlnets import CONTROLNET_REPOS
from tests.support.kube.cluster import Cluster, claim_manifest, model_manifest, secret_manifest
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.controlnets import save_repo as save_controlnet
from tests.support.models.vaes import tiny as tiny_vae
from tests.support.operator.operated import SLOW, Operated, condition

pytestmark = pytest.mark.cluster


def test_a_model_is_loaded_served_and_removed(operated: Operated) -> None:
    """`kubectl apply` leads to a complete folder, a Ready status and signed webhook calls."""
    operated.start()
    url, hook = operated.link() + "?token=secret", operated.receiver.url
    manifest = model_manifest("sketch", url=url, modelId="Big.Model", webhook=hook)
    operated.cluster.kubectl_apply(manifest)
    item = operated.ready()
    status = item["status"]
    artifact = status["artifact"]
    uid = item["metadata"]["uid"]
    assert status["phase"] == "Ready"
    assert status["modelType"] == "custom_ckpt"
    assert artifact["path"] == "Big.Model"
    assert artifact["immutablePath"] == f".store/{uid}/{status['loadHash']}"
    assert (artifact["baseModel"], artifact["precision"]) == ("sd-1", "fp16")
    assert "secret" not in str(status), "neither the url's query"
    assert "secret" not in str(operated.cluster.events("sketch")), "nor its token is ever shown"
    published = operated.cluster.store / "Big.Model"
    assert str(published.readlink()) == artifact["immutablePath"]
    assert (published / "model_index.json").is_file()
    index = operated.cluster.store / names.INDEX_DIR / f"{operated.cluster.namespace}.json"
    (listed,) = json.loads(index.read_text())["models"]
    assert (listed["modelId"], listed["digest"]) == ("Big.Model", artifact["digest"])
    assert not condition(item, "Reconciling")

    operated.wait("sketch", lambda one: condition(one, "WebhookDelivered")["status"] == "True")
    operated.eventually(lambda: len(operated.receiver.calls) == 2)
    assert operated.receiver.events("Big.Model") == ["model.load_started", "model.loaded"]

    operated.cluster.kubectl("delete", "sdm", "sketch")
    operated.eventually(lambda: len(operated.receiver.calls) == 3)
    assert operated.receiver.events("Big.Model")[-1] == "model.deleted"
    assert all(call.verified for call in operated.receiver.calls)
    assert operated.left() == []
    operated.eventually(lambda: "ModelDeleted" in operated.reasons())
    assert {"LoadStarted", "CredentialsInUrl", "ModelLoaded"} <= set(operated.reasons())


@pytest.mark.slow
def test_a_controlnet_of_the_table_and_a_vae_are_loaded(operated: Operated, tmp_path: Path) -> None:
    """The ControlNet comes from the Hub by its id alone, the VAE from a link."""
    operated.start()
    repo, front_matter = CONTROLNET_REPOS["canny"], {"license": "openrail"}
    operated.hub.add_repo(repo, save_controlnet(tmp_path, "SD 1"), card_data=front_matter)
    vae = save_safetensors(tmp_path / "vae.safetensors", tiny_vae())
    link = operated.hub.serve_file("/vae.safetensors", vae)
    operated.cluster.model("canny", modelType="controlnet")
    operated.cluster.model("my-vae", url=link, modelType="vae", baseModel="sdxl")
    for name, kind, base in (
        ("canny", "ControlNetModel", "sd-1"),
        ("my-vae", "AutoencoderKL", "sdxl"),
    ):
        artifact = operated.ready(name)["status"]["artifact"]
        assert (artifact["pipelineClass"], artifact["baseModel"]) == (kind, base)
        published = operated.cluster.store / name
        assert json.loads((published / "config.json").read_text())["_class_name"] == kind
    card = operated.ready("canny")["status"]["artifact"]["card"]
    assert (card["license"], f"{card['author']}/{card['title']}") == ("openrail", repo)


def test_a_load_costs_few_requests(light_operated: Operated) -> None:
    """A load writes finalizer, Job and at most four status patches, and reads only the log.

    In addition, the operator reads the Lease for sweeps when it sees the first model of a
    namespace, and again when it sees the Lease that it has created.
    """
    operated = light_operated
    operated.start(SD_OPERATOR_POLL_SECONDS="60", SD_OPERATOR_RESYNC_SECONDS="600")
    item = operated.load(url=operated.light_link("sketch"))
    requests = {
        key[1:]: count
        for key, count in operated.metrics().items()
        if key[0] == "sdmodel_api_requests_total"
    }
    patches = sum(n for (_, what, verb), n in requests.items() if (verb, what) == ("patch", PLURAL))
    assert item["status"]["job"]["attempt"] == 0
    assert patches <= 1 + 4, requests
    assert requests["201", "jobs", "create"] == 1
    reads = {what for (_, what, verb) in requests if verb == "get"}
    if operated.cluster.backend.local_pods:
        assert reads <= {"pods/log", "leases"}, requests
    # The end of a Job can be known before the end of its Pod on a real node. The operator then
    # reads Jobs, Pods and PVC again.
    assert reads <= {"pods/log", "leases", "persistentvolumeclaims"}, requests
    of_the_pvc = sum(n for (_, what, verb), n in requests.items() if (verb, what) == GET_PVC)
    assert of_the_pvc <= 1, requests
    of_the_lease = sum(n for (_, what, verb), n in requests.items() if (verb, what) == GET_LEASE)
    assert of_the_lease <= 2, requests


PLURAL = "stablediffusionmodels"
GET_LEASE = ("get", "leases")
GET_PVC = ("get", "persistentvolumeclaims")


@pytest.mark.slow
def test_shared_bytes_are_shown_in_status_and_metrics(operated: Operated) -> None:
    """Equal files lie on the volume once and stay while one of the two models exists."""
    operated.start()
    first = operated.load("sketch", url=operated.link())["status"]["artifact"]
    second = operated.load("copy", url=operated.link(name="copy"))["status"]["artifact"]
    assert first["sharedBytes"] == 0
    assert 0.9 * second["sizeBytes"] < second["sharedBytes"] < second["sizeBytes"]
    shown = operated.cluster.kubectl("get", "sdm", "copy", "-o", "yaml")
    assert f"sharedBytes: {second['sharedBytes']}" in shown
    series = ("sdmodel_artifact_shared_bytes", operated.cluster.namespace)
    operated.eventually(lambda: operated.metrics().get(series) == second["sharedBytes"])
    store = operated.cluster.store
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (store / "sketch" / unet).samefile(store / "copy" / unet)

    operated.delete("sketch")
    operated.gone("sketch")
    assert (store / "copy" / unet).is_file()
    operated.delete("copy")
    operated.gone("copy")
    assert operated.left() == []


def test_edits_of_other_fields_do_not_reload(shared_light_operated: Operated) -> None:
    """A changed webhook only advances the generation of Ready."""
    operated = shared_light_operated
    url, hook = operated.light_link("edited"), operated.receiver.url
    first = operated.load("edited", url=url)
    second = operated.load("edited", url=url, webhook=hook, priority=5)
    assert second["metadata"]["generation"] > first["metadata"]["generation"]
    assert second["status"]["artifact"] == first["status"]["artifact"]
    assert len(operated.jobs("load", "edited")) == 1
    assert operated.receiver.events("edited") == []


def test_a_changed_source_is_served_when_it_is_complete(shared_light_operated: Operated) -> None:
    """Until the new version is complete, the previous one is served under the same path."""
    operated = shared_light_operated
    old, new = operated.light_link("old"), operated.light_link("new", seconds=1)
    first = operated.load("changed", url=old)
    link = operated.cluster.store / "changed"
    operated.cluster.model("changed", url=new)
    during = operated.wait("changed", lambda one: condition(one, "Reconciling"))
    assert condition(during, "Ready")["status"] == "True"
    assert condition(during, "Reconciling")["status"] == "True"
    assert str(link.readlink()) == first["status"]["artifact"]["immutablePath"]
    index = (link / "model_index.json").read_text()
    after = operated.ready("changed")
    assert str(link.readlink()) == after["status"]["artifact"]["immutablePath"]
    assert (
        after["status"]["artifact"]["immutablePath"] != first["status"]["artifact"]["immutablePath"]
    )
    if operated.cluster.stub:
        assert (index, (link / "model_index.json").read_text()) == (old, new)


def test_a_source_that_is_changed_back_is_served_again(shared_light_operated: Operated) -> None:
    """The ended Job of the first load has the name of the new Job, so it is replaced."""
    operated = shared_light_operated
    urls = [operated.light_link(name) for name in ("one", "another")]
    first = operated.load("back", url=urls[0])["status"]
    operated.load("back", url=urls[1])
    last = operated.load("back", url=urls[0])["status"]
    assert last["artifact"]["immutablePath"] == first["artifact"]["immutablePath"]
    assert str((operated.cluster.store / "back").readlink()) == last["artifact"]["immutablePath"]
    assert last["job"]["name"] == first["job"]["name"]
    assert last["job"]["uid"] != first["job"]["uid"]


def test_a_changed_source_in_mid_load_stops_the_old_load(shared_light_operated: Operated) -> None:
    """The load of the old spec is stopped, and only the newest spec is published."""
    operated = shared_light_operated
    operated.cluster.model("hasty", url=operated.light_link("old", seconds=60))
    old = operated.wait("hasty", lambda one: one["status"].get("job"))["status"]["loadHash"]
    operated.cluster.model("hasty", url=operated.light_link("new"))
    item = operated.ready("hasty")
    assert item["status"]["loadHash"] != old
    (job,) = operated.jobs("load", "hasty")
    assert job["metadata"]["annotations"]["sd-operator.dev/load-hash"] == item["status"]["loadHash"]


@pytest.fixture(scope="module")
def served(shared_operated: Operated) -> Operated:
    """The shared operator with a model `served` that is loaded."""
    shared_operated.load("served", url=shared_operated.link(name="served"))
    return shared_operated


def test_a_failed_reload_leaves_the_old_version_served(served: Operated) -> None:
    """The model is Ready and Stalled; a corrected spec ends Stalled."""
    before = (served.cluster.store / "served").readlink()
    served.cluster.model("served", url=served.link(1, name="served"), sha256="0" * 64)
    item = served.stalled("served", "DigestMismatch")
    assert condition(item, "Ready")["status"] == "True"
    assert (item["status"]["phase"], item["status"]["reason"]) == ("Ready", "DigestMismatch")
    assert (served.cluster.store / "served").readlink() == before
    served.cluster.patch("sdm", "served", {"spec": {"sha256": None}})
    assert not condition(served.ready("served"), "Stalled")


@pytest.mark.slow
def test_the_reload_annotation_loads_again(operated: Operated) -> None:
    """A new value of the annotation starts a load, although spec and source are unchanged."""
    operated.start()
    first = operated.load(url=operated.link())
    operated.cluster.annotate("sdm", "sketch", {names.ANNOTATION_RELOAD: "1"})
    second = operated.wait(
        "sketch", lambda one: one["status"]["artifact"] != first["status"]["artifact"]
    )
    assert second["status"]["loadHash"] != first["status"]["loadHash"]
    assert second["status"]["artifact"]["digest"] == first["status"]["artifact"]["digest"]


def test_retained_files_are_taken_over_without_a_download(shared_operated: Operated) -> None:
    """The folder outlives the resource, and a new resource of that name takes it over."""
    operated = shared_operated
    before = operated.left()
    url = operated.link(name="retained")
    first = operated.load("retained", url=url, deletionPolicy="Retain")
    operated.delete("retained")
    operated.gone("retained")
    assert (operated.cluster.store / "retained" / "model_index.json").is_file()
    operated.hub.forget()
    second = operated.load("retained", url=url, deletionPolicy="Delete")
    assert operated.hub.bytes_served == 0
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["status"]["artifact"]["digest"] == first["status"]["artifact"]["digest"]
    operated.delete("retained")
    operated.gone("retained")
    assert operated.left() == before


@pytest.mark.slow
def test_suspending_stops_the_load_and_keeps_the_download(operated: Operated) -> None:
    """After spec.suspend is removed, the load continues with the download of the stopped load."""
    operated.start()
    size = operated.checkpoints[0].stat().st_size
    link = operated.link(rate=SLOW)
    operated.cluster.model("sketch", url=link)
    operated.wait("sketch", lambda one: one["status"].get("progress", {}).get("percent", 0) > 20)
    operated.cluster.model("sketch", url=link, suspend=True)
    operated.wait("sketch", lambda one: condition(one, "Ready")["reason"] == "Suspended")
    operated.eventually(lambda: not operated.jobs("load"))
    item = operated.load(url=link, suspend=False)
    assert item["status"]["job"]["attempt"] == 1
    assert operated.hub.bytes_served < 1.9 * size, "not downloaded twice"


@pytest.mark.slow
def test_a_pvc_that_is_created_later_is_found(operated: Operated) -> None:
    """Without the PVC, the status names it and no Job exists; once it is created, the load runs."""
    operated.start()
    operated.cluster.model("sketch", url=operated.link(), storage={"claimName": "later"})
    item = operated.stalled("sketch", "ClaimNotFound")
    assert "PersistentVolumeClaim later does not exist" in condition(item, "Ready")["message"]
    assert "finalizers" not in item["metadata"], "deleting it needs nothing from us"
    assert operated.jobs("load") == []
    operated.cluster.apply(claim_manifest("later"))
    assert operated.ready()["status"]["artifact"]["claimName"] == "later"


@pytest.mark.slow
def test_a_pvc_that_is_not_for_models_is_not_mounted(operated: Operated) -> None:
    """After the PVC gets the label, the model is loaded; once published, it needs no label."""
    operated.start()
    cluster = operated.cluster
    cluster.apply(claim_manifest("database", for_models=False))
    cluster.model("sketch", url=operated.link(), storage={"claimName": "database"})
    item = operated.stalled("sketch", "ClaimNotAllowed")
    assert f'label {names.LABEL_MODELS}: "true"' in condition(item, "Stalled")["message"]
    assert "finalizers" not in item["metadata"], "deleting it needs nothing from us"
    assert operated.jobs("load") == []
    cluster.patch("pvc", "database", {"metadata": {"labels": {names.LABEL_MODELS: "true"}}})
    item = operated.ready()
    assert item["status"]["artifact"]["claimName"] == "database"
    cluster.patch("pvc", "database", {"metadata": {"labels": {names.LABEL_MODELS: None}}})
    cluster.annotate("sdm", "sketch", {names.ANNOTATION_RELOAD: "again"})
    first = item["status"]["artifact"]["immutablePath"]
    operated.wait("sketch", lambda one: one["status"]["artifact"]["immutablePath"] != first)
    operated.delete()
    operated.gone()
    operated.eventually(lambda: operated.jobs("remove") == [])


def test_a_secret_that_is_created_later_is_found(shared_operated: Operated) -> None:
    """The status names the remedy; once the Secret exists, the load succeeds without an edit."""
    operated = shared_operated
    token = "hf_not-to-be-shown"
    url = operated.hub.serve_file("/private.safetensors", operated.checkpoints[0], token=token)
    operated.cluster.model("private", url=url, credentialsSecretRef={"name": "token"})
    item = operated.stalled("private", "SecretNotFound")
    assert "Create the Secret" in condition(item, "Ready")["message"]
    operated.cluster.apply(secret_manifest("token", token=token, host=operated.hub.host))
    item = operated.ready("private")
    assert token not in str(item) + str(operated.cluster.events("private"))
    assert token not in operated.cluster.operator_log()


def test_a_model_id_has_one_owner(served: Operated) -> None:
    """The second model's status names the owner; the first model is not affected."""
    link = served.cluster.store / "served"
    before = link.readlink()
    served.cluster.model("second", url=served.link(1, name="second"), modelId="served")
    item = served.stalled("second", "ModelIdConflict")
    # The message of Ready may already be about the next attempt.
    assert "served" in condition(item, "Stalled")["message"]
    served.delete("second")
    served.gone("second")
    assert link.readlink() == before


@pytest.mark.slow
def test_an_unreachable_webhook_delays_nothing(operated: Operated) -> None:
    """The model becomes Ready, and the calls are made when the receiver is reachable."""
    operated.start()
    operated.receiver.status = 503
    operated.cluster.model("sketch", url=operated.link(), webhook=operated.receiver.url)
    item = operated.wait(
        "sketch",
        lambda one: (
            condition(one, "Ready")["status"] == "True"
            and condition(one, "WebhookDelivered").get("reason") == "DeliveryFailed"
        ),
    )
    message = condition(item, "WebhookDelivered")["message"]
    assert "it answered 503. The next attempt is at" in message
    assert "Check spec.webhook" in message
    operated.receiver.status = 204
    operated.wait("sketch", lambda one: condition(one, "WebhookDelivered")["status"] == "True")
    ids = {call.body["event"]: call.id for call in operated.receiver.calls}
    assert set(ids) == {"model.load_started", "model.loaded"}
    assert {call.id for call in operated.receiver.calls} == set(ids.values()), "the same ids again"
    assert {"WebhookDeliveryFailed", "WebhookDelivered"} <= set(operated.reasons())


def test_a_missing_webhook_secret_is_named(shared_light_operated: Operated) -> None:
    """The condition has the reason SecretNotReadable; the call waits and is not sent unsigned."""
    operated = shared_light_operated
    operated.cluster.model(
        "unsigned",
        url=operated.light_link("unsigned"),
        webhook=operated.receiver.url,
        webhookSecretRef={"name": "hook", "key": "k"},
    )
    item = operated.wait(
        "unsigned",
        lambda one: condition(one, "WebhookDelivered").get("reason") == "SecretNotReadable",
    )
    assert "whsec_<base64>" in condition(item, "WebhookDelivered")["message"]
    operated.ready("unsigned")
    assert operated.receiver.events("unsigned") == []


def test_giving_the_files_up_releases_the_resource(shared_light_operated: Operated) -> None:
    """With the annotation skip-cleanup, no clean-up Job is created, and the files stay."""
    operated = shared_light_operated
    operated.load("given-up", url=operated.light_link("given-up"))
    operated.cluster.annotate("sdm", "given-up", {names.ANNOTATION_SKIP_CLEANUP: "true"})
    operated.delete("given-up")
    operated.gone("given-up")
    assert operated.jobs("remove", "given-up") == []
    assert (operated.cluster.store / "given-up").is_symlink()


# Slow, because test_namespaces.py deletes a namespace other than the operator's own.
@pytest.mark.slow
def test_a_model_in_a_deleted_namespace_is_released(light_operated: Operated) -> None:
    """The model is released without a clean-up Job, which a terminating namespace would reject."""
    operated = light_operated
    operated.start()
    operated.load(url=operated.light_link("sketch"))
    cluster = operated.cluster
    cluster.delete("namespace", cluster.namespace)
    cluster.wait_gone("namespace", cluster.namespace)


@pytest.mark.slow
def test_wrong_fields_are_refused_at_apply(shared_cluster: Cluster) -> None:
    """The message lists the allowed values."""
    wrong = json.dumps(model_manifest("sketch", url="org/repo", revision="fp17"))
    message = shared_cluster.refused("apply", "-f", "-", stdin=wrong)
    assert '"fp16", "fp32", "bf16"' in message
