"""Tests of the API server with a real kubectl. They also hold for a real API server."""

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
    cluster.patch("sdm", name, {"status": status}, "status")


def test_apply_creates_updates_and_removes_fields(cluster):
    """Client-side apply reports what it did; a field removed from the file is removed."""
    manifest = model_manifest("a", url=LINK, webhook="https://example.com/hook", priority=3)

    assert cluster.kubectl_apply(manifest).endswith("/a created\n")
    assert cluster.kubectl_apply(manifest).endswith("/a unchanged\n")
    assert cluster.kubectl_apply(model_manifest("a", url=LINK, priority=4)).endswith(
        "/a configured\n"
    )
    spec = cluster.get("sdm", "a")["spec"]
    assert spec["priority"] == 4
    assert "webhook" not in spec


def test_server_side_apply_removes_only_the_managers_fields(cluster):
    """A field that the manager stops applying is removed; fields that others set stay."""
    cluster.kubectl_apply(model_manifest("a", url=LINK, priority=3), "--server-side")
    cluster.kubectl("label", "sdm", "a", "team=x")

    applied = cluster.kubectl_apply(model_manifest("a", url=LINK, suspend=True), "--server-side")

    assert "serverside-applied" in applied
    model = cluster.get("sdm", "a")
    assert model["spec"]["suspend"] is True
    assert model["spec"]["priority"] == 0  # the default
    assert model["metadata"]["labels"] == {"team": "x"}


def test_diff_and_dry_runs_change_nothing(cluster):
    """The commands print what they would change, for client-side and server-side apply."""
    manifest = model_manifest("a", url=LINK, priority=3)
    assert "created (server dry run)" in cluster.kubectl_apply(manifest, "--dry-run=server")
    assert not cluster.exists("sdm", "a")
    cluster.kubectl_apply(manifest)
    model = cluster.get("sdm", "a")

    changed = yaml.safe_dump(model_manifest("a", url=LINK, priority=4))
    for options in ([], ["--server-side"]):
        diff = cluster.run("diff", "-f", "-", *options, stdin=changed)
        assert diff.returncode == 1, diff.stderr
        lines = [line for line in diff.stdout.splitlines() if line[:2] in ("- ", "+ ")]
        assert lines[-2:] == ["-  priority: 3", "+  priority: 4"]
    assert cluster.run("diff", "-f", "-", stdin=yaml.safe_dump(manifest)).returncode == 0
    assert "(server dry run)" in cluster.kubectl("delete", "sdm", "a", "--dry-run=server")
    assert cluster.get("sdm", "a") == model


def test_defaults_are_set_without_a_new_generation(cluster):
    """Objects get the CRD's defaults; only later changes of the spec increase the generation."""
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
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"url": "https://x.org/" + "a" * 2048},
            "spec.url: Too long: may not be more than 2048 bytes",
            id="too-long",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"url": ""},
            'spec.url: Invalid value: "": spec.url in body should be at least 1 chars long',
            id="too-short",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"url": LINK, "verify": {"steps": 0}},
            "spec.verify.steps: Invalid value: 0: spec.verify.steps in body should be greater than"
            " or equal to 1",
            id="minimum",
            marks=pytest.mark.slow,
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
            {"url": "justaname"},
            "a bare id needs spec.modelType: api_trained",
            id="rule-id",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"url": LINK, "webhook": "ftp://x"},
            "spec.webhook must be an http(s) URL",
            id="rule-hook",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_invalid_spec_is_rejected_with_a_helpful_message(shared_cluster, spec, complaint):
    """Schema, strict decoding and CEL rules have the messages of a real API server."""
    error = shared_cluster.refused(
        "apply", "-f", "-", stdin=yaml.safe_dump(model_manifest("wrong", **spec))
    )

    assert complaint in error
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
def test_immutable_field_cannot_be_changed(cluster, change, complaint):
    """The change is rejected, also if it adds a field that the object was created without."""
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
def test_invalid_name_is_rejected(shared_cluster, name, complaint):
    """A name that breaks a rule of Kubernetes or of the CRD is rejected with this message."""
    manifest = yaml.safe_dump(model_manifest(name, url=LINK))

    assert complaint in shared_cluster.refused("apply", "-f", "-", stdin=manifest)


def test_get_prints_the_columns_of_the_crd(cluster):
    """With `-o wide`, columns of a priority above 0 are printed too."""
    cluster.model("a", url=LINK)
    set_status(
        cluster, "a", phase="Downloading", modelId="a", reason="Downloading",
        progress={"stage": "Downloading", "text": "12 %"},
    )  # fmt: skip

    header, row = cluster.kubectl("get", "sdm").splitlines()
    assert header.split() == ["NAME", "TYPE", "PHASE", "PROGRESS", "REASON", "BASE", "SIZE", "AGE"]
    assert row.split()[:4] == ["a", "Downloading", "12", "%"]
    assert row.split()[-1].endswith("s")
    wide = cluster.kubectl("get", "sdm", "a", "-o=wide").splitlines()[0]
    assert wide.split()[-4:] == ["AGE", "MODEL", "ID", "PATH"]
    assert "sdm" not in cluster.kubectl("get", "all", "-o=name").splitlines()[0]


def test_get_watch_prints_every_change(cluster):
    """`kubectl get -w` prints one row per change under one header."""
    cluster.model("a", url=LINK)
    # With a single object, kubectl would drop a change that precedes the watch.
    command = [str(kubectl_path()), f"--kubeconfig={cluster.kubeconfig}", f"-n={cluster.namespace}"]
    with subprocess.Popen(
        [*command, "get", "sdm", "-w"], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline(), watch.stdout.readline()]
        for phase in ("Downloading", "Ready"):
            set_status(cluster, "a", phase=phase)
            lines.append(watch.stdout.readline())
        watch.terminate()

    assert lines[0].startswith("NAME")
    assert [line.split()[1] for line in lines[2:]] == ["Downloading", "Ready"]


def test_kubectl_wait_waits_for_a_condition(cluster):
    """`kubectl wait` times out before the condition is true, and succeeds afterwards."""
    cluster.model("a", url=LINK)
    assert "timed out" in cluster.refused(
        "wait", "sdm/a", "--for=condition=Ready", "--timeout=0.3s"
    )
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
    """`kubectl describe` finds Events by their involvedObject."""
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
        "message": "The load has started",
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
    assert cluster.events("a") == [("LoadStarted", "The load has started")]


def test_explain_prints_the_schema(shared_cluster):
    """`kubectl explain` works for the CRD and for built-in kinds."""
    explained = shared_cluster.kubectl("explain", "sdm.spec.modelType")

    assert "ENUM:\n    huggingface\n" in explained
    assert "api_trained" in explained.partition("DESCRIPTION")[2]
    assert "backoffLimit" in shared_cluster.kubectl("explain", "job.spec")


def test_labels_select_and_annotations_can_be_removed(cluster):
    """Each form of label selector finds its objects; `kubectl annotate` removes an annotation."""
    for name in ("a", "b"):
        cluster.model(name, url=LINK)
    cluster.kubectl("label", "sdm", "a", "team=x")
    cluster.kubectl("annotate", "sdm", "a", "note=1")
    cluster.kubectl("annotate", "sdm", "a", "note-")

    def selected(selector: str) -> list[str]:
        found = json.loads(cluster.kubectl("get", "sdm", f"--selector={selector}", "-o=json"))
        return [item["metadata"]["name"] for item in found["items"]]

    assert selected("team=x") == selected("team in (x, y)") == selected("team") == ["a"]
    assert selected("team!=x") == selected("!team") == ["b"]
    assert "note" not in cluster.get("sdm", "a")["metadata"].get("annotations", {})


def test_json_patch_is_applied_only_if_its_test_succeeds(cluster):
    """A failed test operation leaves the object unchanged."""
    cluster.model("a", url=LINK)
    replace = {"op": "replace", "path": "/spec/priority", "value": 7}

    def patch(expected: int) -> list[str]:
        operations = [{"op": "test", "path": "/spec/priority", "value": expected}, replace]
        return ["patch", "sdm", "a", "--type=json", "-p", json.dumps(operations)]

    cluster.refused(*patch(5))
    assert cluster.get("sdm", "a")["spec"]["priority"] == 0
    cluster.kubectl(*patch(0))
    assert cluster.get("sdm", "a")["spec"]["priority"] == 7


def test_status_is_written_only_through_its_subresource(cluster):
    """The main endpoint ignores status, and /status ignores everything else."""
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


def test_finalizer_holds_a_deleted_object(cluster):
    """The object stays, marked as being deleted, until its last finalizer is removed."""
    cluster.model("a", url=LINK)
    merge = ["patch", "sdm", "a", "--type=merge", "-p"]
    cluster.kubectl(*merge, '{"metadata":{"finalizers":["sd-operator.dev/cleanup"]}}')

    cluster.kubectl("delete", "sdm", "a", "--wait=false")

    assert "deletionTimestamp" in cluster.get("sdm", "a")["metadata"]
    added = cluster.refused(*merge, '{"metadata":{"finalizers":["x.org/a"]}}')
    assert "no new finalizers can be added if the object is being deleted" in added
    cluster.kubectl(*merge, '{"metadata":{"finalizers":null}}')
    assert not cluster.exists("sdm", "a")


def test_deleted_namespace_is_emptied_first(cluster):
    """The namespace goes after its objects; meanwhile, no new object can be created in it."""
    cluster.model("a", url=LINK)
    merge = ["patch", "sdm", "a", "--type=merge", "-p"]
    cluster.kubectl(*merge, '{"metadata":{"finalizers":["x.org/hold"]}}')
    cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")
    cluster.wait_for("sdm", "a", lambda model: "deletionTimestamp" in model["metadata"])

    manifest = yaml.safe_dump(model_manifest("b", url=LINK))
    error = cluster.refused("create", "-f", "-", stdin=manifest)
    assert f"namespace {cluster.namespace} because it is being terminated" in error
    cluster.kubectl(*merge, '{"metadata":{"finalizers":null}}')
    cluster.wait_gone("namespace", cluster.namespace)
    # The fixture deletes the namespace again.
    cluster.kubectl("create", "namespace", cluster.namespace)


def test_creation_in_a_missing_namespace_is_rejected(shared_cluster):
    """The message names the namespace."""
    manifest = yaml.safe_dump(model_manifest("a", url=LINK))

    error = shared_cluster.refused("create", "-n=nowhere", "-f", "-", stdin=manifest)

    assert 'namespaces "nowhere" not found' in error


def test_secrets_are_stored_as_base64_and_shown_without_values(cluster):
    """The stored values are base64; the table of `kubectl get` has only the number of keys."""
    cluster.kubectl("create", "secret", "generic", "s", "--from-literal=token=abc")

    assert cluster.get("secret", "s")["data"] == {"token": "YWJj"}
    assert cluster.kubectl("get", "secret", "s").splitlines()[1].split()[:3] == ["s", "Opaque", "1"]
