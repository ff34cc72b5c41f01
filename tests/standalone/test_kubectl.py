"""The API server as a real kubectl sees it; every test also holds for a real one."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml

from tests.support.kube.cluster import Cluster, model_manifest
from tools.kubectl import kubectl_path

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
SUPPORTED = (
    'supported values: "huggingface", "api_trained", "custom_ckpt", "lora", "embeddings",'
    ' "controlnet", "vae"'
)


def set_status(cluster: Cluster, name: str, **status: object) -> None:
    """Write a model's status as the operator does."""
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "sdm", name, "--subresource=status", "--type=merge", "-p", patch)


def test_apply_creates_changes_and_leaves_alone(cluster):
    """Client-side apply says what it did, and what is removed from the file is removed."""
    manifest = model_manifest("a", url=LINK, webhook="https://example.com/hook", priority=3)

    assert cluster.apply(manifest).endswith("/a created\n")
    assert cluster.apply(manifest).endswith("/a unchanged\n")
    assert cluster.apply(model_manifest("a", url=LINK, priority=4)).endswith("/a configured\n")
    spec = cluster.get("sdm", "a")["spec"]
    assert spec["priority"] == 4
    assert "webhook" not in spec


def test_server_side_apply_is_a_merge_by_one_manager(cluster):
    """What the manager no longer applies is removed, what others set stays."""
    cluster.apply(model_manifest("a", url=LINK, priority=3), "--server-side")
    cluster.kubectl("label", "sdm", "a", "team=x")

    applied = cluster.apply(model_manifest("a", url=LINK, suspend=True), "--server-side")

    assert "serverside-applied" in applied
    model = cluster.get("sdm", "a")
    assert model["spec"]["suspend"] is True
    assert model["spec"]["priority"] == 0  # the default
    assert model["metadata"]["labels"] == {"team": "x"}


def test_diff_and_dry_runs_say_what_would_be_done(cluster):
    """And do nothing, on either side of apply."""
    manifest = model_manifest("a", url=LINK, priority=3)
    assert "created (server dry run)" in cluster.apply(manifest, "--dry-run=server")
    assert not cluster.exists("sdm", "a")
    cluster.apply(manifest)
    model = cluster.get("sdm", "a")

    changed = yaml.safe_dump(model_manifest("a", url=LINK, priority=4))
    for options in ([], ["--server-side"]):
        found = cluster.run("diff", "-f", "-", *options, stdin=changed)
        assert found.returncode == 1, found.stderr
        lines = [line for line in found.stdout.splitlines() if line[:2] in ("- ", "+ ")]
        assert lines[-2:] == ["-  priority: 3", "+  priority: 4"]
    assert cluster.run("diff", "-f", "-", stdin=yaml.safe_dump(manifest)).returncode == 0
    assert "(server dry run)" in cluster.kubectl("delete", "sdm", "a", "--dry-run=server")
    assert cluster.get("sdm", "a") == model


def test_defaults_are_filled_in_and_counted_as_no_change(cluster):
    """The schema's defaults appear in what is stored; generation counts changes of spec."""
    model = cluster.model("a", url=LINK, verify={})

    assert model["spec"] == {
        "url": LINK,
        "verify": {"weights": False},
        "weights": "standard",
        "deletionPolicy": "Delete",
        "suspend": False,
        "priority": 0,
    }
    assert model["metadata"]["generation"] == 1
    cluster.kubectl("annotate", "sdm", "a", "note=1")
    set_status(cluster, "a", phase="Ready")
    assert cluster.get("sdm", "a")["metadata"]["generation"] == 1
    cluster.kubectl("patch", "sdm", "a", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    assert cluster.get("sdm", "a")["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        pytest.param(
            {"url": LINK, "modelType": "sdxl"},
            f'spec.modelType: Unsupported value: "sdxl": {SUPPORTED}',
            id="enum",
        ),
        pytest.param(
            {"url": LINK, "modelId": "-x"},
            'spec.modelId: Invalid value: "-x": spec.modelId in body should match'
            " '^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$'",
            id="pattern",
        ),
        pytest.param(
            {"url": LINK, "suspend": "yes"},
            'spec.suspend: Invalid value: "string": spec.suspend in body must be of type'
            ' boolean: "string"',
            id="type",
        ),
        pytest.param(
            {"url": "https://x.org/" + "a" * 2048},
            "spec.url: Too long: may not be more than 2048 bytes",
            id="too-long",
        ),
        pytest.param(
            {"url": ""},
            'spec.url: Invalid value: "": spec.url in body should be at least 1 chars long',
            id="too-short",
        ),
        pytest.param(
            {"url": LINK, "verify": {"steps": 0}},
            "spec.verify.steps: Invalid value: 0: spec.verify.steps in body should be greater than"
            " or equal to 1",
            id="minimum",
        ),
        pytest.param(
            {"url": LINK, "priority": 2_000_000},
            "spec.priority: Invalid value: 2000000: spec.priority in body should be less than or"
            " equal to 1000000",
            id="maximum",
        ),
        pytest.param({"url": LINK, "vae": {}}, "spec.vae.url: Required value", id="required"),
        pytest.param(
            {"url": LINK, "foo": 1, "verify": {"bar": 2}},
            'strict decoding error: unknown field "spec.foo", unknown field "spec.verify.bar"',
            id="unknown-fields",
        ),
        pytest.param({}, "spec.url is required: a Hugging Face repo id", id="rule-no-url"),
        pytest.param(
            {"url": "justaname"}, "a bare id needs spec.modelType: api_trained", id="rule-id"
        ),
        pytest.param(
            {"url": LINK, "webhook": "ftp://x"},
            "spec.webhook must be an http(s) URL",
            id="rule-hook",
        ),
    ],
)
def test_a_wrong_spec_is_refused_and_the_message_helps(shared_cluster, spec, complaint):
    """Schema, strict decoding and CEL rules answer in Kubernetes' own words."""
    refusal = shared_cluster.refused(
        "apply", "-f", "-", stdin=yaml.safe_dump(model_manifest("wrong", **spec))
    )

    assert complaint in refusal
    assert not shared_cluster.exists("sdm", "wrong")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"modelId": "other"}, "spec.modelId is immutable", id="model-id"),
        pytest.param(
            {"storage": {"claimName": "other"}}, "spec.storage is immutable", id="storage"
        ),
    ],
)
def test_an_immutable_field_cannot_be_changed(cluster, change, complaint):
    """Transition rules hold on updates, also for fields that are set or unset."""
    cluster.model("a", url=LINK)

    changed = yaml.safe_dump(model_manifest("a", url=LINK, **change))

    assert complaint in cluster.refused("apply", "-f", "-", stdin=changed)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        pytest.param("A_b", "a lowercase RFC 1123 subdomain must consist of", id="characters"),
        pytest.param("a" * 64, "metadata.name must be at most 63 characters", id="length"),
    ],
)
def test_a_wrong_name_is_refused(shared_cluster, name, complaint):
    """Names are checked by Kubernetes' rules and by ours."""
    manifest = yaml.safe_dump(model_manifest(name, url=LINK))

    assert complaint in shared_cluster.refused("apply", "-f", "-", stdin=manifest)


def test_get_prints_the_columns_of_the_definition(cluster):
    """The printer columns are those of the CRD; -o wide adds those of lower priority."""
    cluster.model("a", url=LINK)
    set_status(
        cluster, "a", phase="Downloading", modelId="a", reason="Downloading",
        progress={"stage": "Downloading", "text": "12 %"},
    )  # fmt: skip

    header, row = cluster.kubectl("get", "sdm").splitlines()
    assert header.split() == ["NAME", "TYPE", "PHASE", "PROGRESS", "BASE", "SIZE", "AGE"]
    assert row.split()[:4] == ["a", "Downloading", "12", "%"]
    assert row.split()[-1].endswith("s")
    wide = cluster.kubectl("get", "sdm", "a", "-o=wide").splitlines()[0]
    assert wide.split()[-4:] == ["MODEL", "ID", "REASON", "PATH"]
    assert "sdm" not in cluster.kubectl("get", "all", "-o=name").splitlines()[0]


def test_get_watch_prints_every_change(cluster):
    """`kubectl get -w` prints a row per change, under one header."""
    cluster.model("a", url=LINK)
    command = [str(kubectl_path()), f"--kubeconfig={cluster.kubeconfig}", f"-n={cluster.namespace}"]
    with subprocess.Popen(
        [*command, "get", "sdm", "a", "-w"], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline(), watch.stdout.readline()]
        for phase in ("Downloading", "Ready"):
            set_status(cluster, "a", phase=phase)
            lines.append(watch.stdout.readline())
        watch.terminate()

    assert lines[0].startswith("NAME")
    assert [line.split()[1] for line in lines[2:]] == ["Downloading", "Ready"]


def test_wait_sees_a_condition(cluster):
    """`kubectl wait` ends when the condition comes true."""
    cluster.model("a", url=LINK)
    assert "timed out" in cluster.refused("wait", "sdm/a", "--for=condition=Ready", "--timeout=1s")
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Loaded",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    set_status(cluster, "a", conditions=[ready])

    assert "condition met" in cluster.kubectl(
        "wait", "sdm/a", "--for=condition=Ready", "--timeout=9s"
    )


def test_describe_shows_the_object_and_its_events(cluster):
    """`kubectl describe` finds Events by the object they are about."""
    model = cluster.model("a", url=LINK)
    meta = model["metadata"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "involvedObject": {
            "apiVersion": model["apiVersion"],
            "kind": model["kind"],
            **{key: meta[key] for key in ("name", "namespace", "uid")},
        },
        "reason": "LoadStarted",
        "message": "Loading has begun",
        "type": "Normal",
        "source": {"component": "test"},
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }
    cluster.kubectl("create", "-f", "-", stdin=yaml.safe_dump(event))

    described = cluster.kubectl("describe", "sdm", "a")

    assert LINK in described
    assert "LoadStarted" in described
    assert cluster.events("a") == [("LoadStarted", "Loading has begun")]


def test_explain_knows_the_fields(shared_cluster):
    """`kubectl explain` reads the schema, of our kind and of built-in ones."""
    explained = shared_cluster.kubectl("explain", "sdm.spec.modelType")

    assert "ENUM:\n    huggingface\n" in explained
    assert "repo id" in explained
    assert "backoffLimit" in shared_cluster.kubectl("explain", "job.spec")


def test_labels_and_annotations_select(cluster):
    """Labels can be set and selected by; an annotation can be removed."""
    for name in ("a", "b"):
        cluster.model(name, url=LINK)
    cluster.kubectl("label", "sdm", "a", "team=x")
    cluster.kubectl("annotate", "sdm", "a", "note=1")
    cluster.kubectl("annotate", "sdm", "a", "note-")

    def selected(selector: str) -> list[str]:
        return [item["metadata"]["name"] for item in cluster.list("sdm", f"--selector={selector}")]

    assert selected("team=x") == selected("team in (x, y)") == selected("team") == ["a"]
    assert selected("team!=x") == selected("!team") == ["b"]
    assert "note" not in cluster.get("sdm", "a")["metadata"].get("annotations", {})


def test_json_patch_tests_and_sets(cluster):
    """A JSON patch is applied whole or not at all."""
    cluster.model("a", url=LINK)
    sets = {"op": "replace", "path": "/spec/priority", "value": 7}

    def patch(tested: int) -> list[str]:
        operations = [{"op": "test", "path": "/spec/priority", "value": tested}, sets]
        return ["patch", "sdm", "a", "--type=json", "-p", json.dumps(operations)]

    cluster.refused(*patch(5))
    assert cluster.get("sdm", "a")["spec"]["priority"] == 0
    cluster.kubectl(*patch(0))
    assert cluster.get("sdm", "a")["spec"]["priority"] == 7


def test_the_status_is_written_through_its_subresource_only(cluster):
    """The main endpoint ignores status, /status ignores everything else."""
    cluster.model("a", url=LINK)
    both = '{"spec":{"priority":5},"status":{"phase":"Failed"}}'

    cluster.kubectl("patch", "sdm", "a", "--type=merge", "-p", both)
    model = cluster.get("sdm", "a")
    assert model["spec"]["priority"] == 5
    assert "status" not in model

    cluster.kubectl(
        "patch", "sdm", "a", "--subresource=status", "--type=merge", "-p", both.replace("5", "6")
    )
    model = cluster.get("sdm", "a")
    assert model["spec"]["priority"] == 5
    assert model["status"] == {"phase": "Failed"}


def test_a_finalizer_holds_a_deleted_object(cluster):
    """A deleted object stays, marked, until its last finalizer is removed."""
    cluster.model("a", url=LINK)
    merge = ["patch", "sdm", "a", "--type=merge", "-p"]
    cluster.kubectl(*merge, '{"metadata":{"finalizers":["sd-operator.dev/cleanup"]}}')

    cluster.kubectl("delete", "sdm", "a", "--wait=false")

    assert "deletionTimestamp" in cluster.get("sdm", "a")["metadata"]
    added = cluster.refused(*merge, '{"metadata":{"finalizers":["x.org/a"]}}')
    assert "no new finalizers can be added if the object is being deleted" in added
    cluster.kubectl(*merge, '{"metadata":{"finalizers":null}}')
    assert not cluster.exists("sdm", "a")


def test_a_namespace_is_emptied_and_goes(cluster):
    """Deleting a namespace deletes what is in it, and takes nothing new meanwhile."""
    cluster.model("a", url=LINK)
    merge = ["patch", "sdm", "a", "--type=merge", "-p"]
    cluster.kubectl(*merge, '{"metadata":{"finalizers":["x.org/hold"]}}')
    cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")
    cluster.wait_for("sdm", "a", lambda model: "deletionTimestamp" in model["metadata"])

    manifest = yaml.safe_dump(model_manifest("b", url=LINK))
    refusal = cluster.refused("create", "-f", "-", stdin=manifest)
    assert f"namespace {cluster.namespace} because it is being terminated" in refusal
    cluster.kubectl(*merge, '{"metadata":{"finalizers":null}}')
    cluster.wait_gone("namespace", cluster.namespace)
    # The fixture deletes the namespace again.
    cluster.kubectl("create", "namespace", cluster.namespace)


def test_a_namespace_that_does_not_exist_takes_nothing(shared_cluster):
    """404 names the namespace."""
    manifest = yaml.safe_dump(model_manifest("a", url=LINK))

    refusal = shared_cluster.refused("create", "-n=nowhere", "-f", "-", stdin=manifest)

    assert 'namespaces "nowhere" not found' in refusal


def test_secrets_are_stored_as_base64_and_shown_without_values(cluster):
    """What is given as stringData becomes data; the table shows how many keys there are."""
    cluster.kubectl("create", "secret", "generic", "s", "--from-literal=token=abc")

    assert cluster.get("secret", "s")["data"] == {"token": "YWJj"}
    assert cluster.kubectl("get", "secret", "s").splitlines()[1].split()[:3] == ["s", "Opaque", "1"]


def test_ages_are_rough_when_long():
    """Ages read as kubectl's own do."""
    from sd_operator.standalone.tables import human_duration

    ages = {0: "0s", 119: "119s", 120: "2m", 150: "2m30s", 601: "10m", 3 * 3600 + 60: "3h1m"}
    ages |= {30 * 3600: "30h", 3 * 86_400 + 7200: "3d2h", 9 * 86_400: "9d"}
    assert {seconds: human_duration(seconds) for seconds in ages} == ages
