"""Golden files of whole Job manifests; REGOLD=1 rewrites the files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.choices import Pictures, VerifyDigest
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.default_credentials import DefaultSecret
from sd_api.load import LoadRequest, RemoveRequest
from sd_api.spec import JobOverrides, Toleration
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import manifests
from tests.support.rules.observed import claim, model

GOLDEN = Path(__file__).parent / "golden"
CPU = Settings(loader=LoaderSettings(gpu_count=0))
FULL = Settings(
    loader=LoaderSettings(
        image_pull_secrets=("registry",),
        ca_configmap="company-ca",
        logins_secret="logins",
        max_bytes=10**10,
        retain_previous_seconds=60,
        priority_classes=frozenset({"batch"}),
    ),
    allowed_hosts=frozenset({"mirror.example.com", "10.0.0.1:8080"}),
    hub_endpoint="https://mirror.example.com/hf",
    civitai_endpoint="https://civitai.example.com",
    verify_digest=VerifyDigest.WHEN_WHOLE,
    pictures=Pictures.ALL,
    https_proxy="http://proxy.example.com:3128",
    no_proxy=".example.com",
)
TOKENS = Settings(
    hub_endpoint="https://mirror.example.com/hf",
    loader=LoaderSettings(
        gpu_count=0,
        default_credentials={
            "huggingface.co": DefaultSecret("hub-token"),
            "mirror.example.com": DefaultSecret("mirror-token", for_private=True),
            "site.example:8443": DefaultSecret("site-token"),
            "other.example": DefaultSecret("other-token"),
        },
    ),
)
SITE_VAE = {"vae": {"url": "https://site.example:8443/vae.safetensors"}}
KUEUE = Settings(loader=LoaderSettings(gpu_count=0, kueue_queue="gpus"))
OVERRIDES = {
    "resources": {"requests": {"memory": "8Gi"}, "limits": {"memory": "32Gi"}},
    "nodeSelector": {"pool": "loaders"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "batch",
    "activeDeadlineSeconds": 3600,
}


def load(settings: Settings, **spec: Any) -> dict[str, Any]:
    """Return the manifest of a loader Job."""
    return manifests.build(manifests.plan_load(model(**spec), settings, claim(), 0), settings)


def remove(settings: Settings, **spec: Any) -> dict[str, Any]:
    """Return the manifest of a clean-up Job."""
    return manifests.build(manifests.plan_remove(model(**spec), settings, "models", 2), settings)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the Pod's spec."""
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def env(container: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of a container."""
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        pytest.param("load-cpu", load(CPU), id="cpu"),
        pytest.param("load-gpu", load(Settings()), id="gpu"),
        pytest.param("load-adapter", load(Settings(), modelType="lora"), id="adapter"),
        pytest.param(
            "load-full",
            load(FULL, job=OVERRIDES, credentialsSecretRef={"name": "token"}, modelId="Big_Model"),
            id="everything set",
        ),
        pytest.param("load-kueue", load(KUEUE), id="Kueue"),
        pytest.param("load-tokens", load(TOKENS, url="org/name", **SITE_VAE), id="tokens"),
        pytest.param("remove", remove(FULL, job=OVERRIDES, deletionPolicy="Retain"), id="remove"),
    ],
)
def test_the_manifest_is_the_golden_file(name: str, manifest: dict[str, Any]) -> None:
    """The whole manifest equals its golden file."""
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("REGOLD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.dump(manifest, Dumper=_NoAliases, sort_keys=False, width=100))
    assert yaml.safe_load(path.read_text()) == manifest


def test_clean_up_is_not_queued() -> None:
    """The clean-up Job waits neither for Kueue nor for the operator's queue."""
    assert remove(KUEUE) == remove(CPU)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - inherited
        return True


@pytest.mark.parametrize(
    ("settings", "spec", "image", "gpus"),
    [
        pytest.param(
            Settings(), {"modelType": "custom_ckpt"}, "image", 1, id="a GPU by setting: renders"
        ),
        pytest.param(Settings(), {}, "image", 1, id="unknown type: planned as a checkpoint"),
        pytest.param(CPU, {}, "slim_image", None, id="no GPU: slim"),
        pytest.param(
            Settings(), {"verify": {"render": False}}, "slim_image", None, id="not to render"
        ),
        pytest.param(CPU, {"verify": {"render": True}}, "image", None, id="to render on a CPU"),
        pytest.param(Settings(), {"modelType": "lora"}, "slim_image", None, id="an adapter"),
        pytest.param(
            Settings(),
            {"modelType": "lora", "verify": {"render": True}},
            "image",
            1,
            id="an adapter to render",
        ),
        pytest.param(
            CPU,
            {"modelType": "huggingface", "job": {"resources": {"limits": {"nvidia.com/gpu": 2}}}},
            "image",
            2,
            id="a GPU by override",
        ),
        pytest.param(
            Settings(),
            {"job": {"resources": {"limits": {"nvidia.com/gpu": "0"}}}},
            "slim_image",
            "0",
            id="no GPU by override",
        ),
    ],
)
def test_the_slim_image_is_used_unless_the_model_is_rendered(
    settings: Settings, spec: dict[str, Any], image: str, gpus: object
) -> None:
    """Only convert requests the GPU; the request tells the loader whether to render."""
    pod = pod_of(load(settings, **spec))
    (fetch,), (convert,) = pod["initContainers"], pod["containers"]
    assert fetch["image"] == convert["image"] == getattr(settings.loader, image)
    assert "nvidia.com/gpu" not in fetch["resources"]["limits"]
    assert convert["resources"]["limits"].get("nvidia.com/gpu") == gpus
    request = LoadRequest.from_argument(convert["args"][2])
    if "modelType" not in spec and "verify" not in spec:
        # The type may turn out to be one that is not rendered by default.
        assert request.render_if_pipeline is (image == "image")
        assert bool(request.verify.render) is False
    else:
        assert request.verify.render is (image == "image")


def test_overrides_may_be_forbidden() -> None:
    """If overrides are forbidden, the Job equals that of a spec without spec.job."""
    settings = replace(CPU, loader=replace(CPU.loader, allow_overrides=False))
    assert load(settings, job=OVERRIDES) == load(settings)


def test_a_default_never_contradicts_an_override() -> None:
    """A default request or limit is left out if spec.job sets the other one of the resource.

    The API server rejects a limit below the request.
    """
    job = {"resources": {"requests": {"memory": "8Gi"}, "limits": {"cpu": "100m"}}}
    resources = pod_of(load(CPU, job=job))["containers"][0]["resources"]
    assert resources == {"requests": {"memory": "8Gi"}, "limits": {"cpu": "100m"}}


def test_the_request_tells_the_loader_everything() -> None:
    """The request can be parsed as a LoadRequest of the contract."""
    spec = {"gitRevision": "v1", "url": "org/repo", "modelType": "huggingface"}
    args = pod_of(load(CPU, **spec))["containers"][0]["args"]
    assert args[0::2] == [
        "convert",
        json.dumps(json.loads(args[2]), separators=(",", ":")),
        *args[4::2],
    ]
    request = LoadRequest.from_argument(args[2])
    assert request.git_revision == "v1"
    assert request.model_type == "huggingface"
    assert request.load_hash == model(gitRevision="v1", url="org/repo").wanted


def test_kubernetes_expands_nothing_in_the_request() -> None:
    """`$(HOME)` in a url stays as it is."""
    url = "https://example.com/$(HOME)/$$m.ckpt"
    args = pod_of(load(CPU, url=url))["containers"][0]["args"]
    assert "$" not in args[2]
    assert LoadRequest.from_argument(args[2]).url == url


def test_a_trained_models_id_becomes_a_link_in_the_loader() -> None:
    """The request has only the model's id, and fetch alone gets the link template.

    The link may need a key, which the operator does not have.
    """
    template = "https://trainer.example.com/models/{id}.zip?key={key}"
    settings = replace(CPU, trained_url_template=template)
    pod = pod_of(load(settings, url="abc-1", modelType="api_trained"))
    request = LoadRequest.from_argument(pod["containers"][0]["args"][2])
    assert (request.url, request.model_type) == ("abc-1", "api_trained")
    (fetch,), (convert,) = pod["initContainers"], pod["containers"]
    variable = "SD_LOADER_TRAINED_URL_TEMPLATE"
    assert [env(fetch).get(variable), env(convert).get(variable)] == [template, None]


@pytest.mark.parametrize(("model_id", "repo"), CONTROLNET_REPOS.items(), ids=CONTROLNET_REPOS)
def test_a_controlnet_of_the_vendors_table_needs_no_url(model_id: str, repo: str) -> None:
    """The Job's request has the Hub repo that CONTROLNET_REPOS names for the model's id."""
    args = pod_of(load(CPU, url=None, modelType="controlnet", modelId=model_id))["containers"][0]
    request = LoadRequest.from_argument(args["args"][2])
    assert (request.model_type, request.url) == ("controlnet", repo)
    assert request.model_id == model_id


def test_default_parts_reach_fetch_only() -> None:
    """Only fetch downloads missing components."""
    loader = replace(CPU.loader, default_parts={"sdxl": "org/two", "sd-1": "org/one"})
    pod = pod_of(load(replace(CPU, loader=loader)))
    found = [
        {one["name"]: one.get("value") for one in container["env"]}.get("SD_LOADER_DEFAULT_PARTS")
        for container in (*pod["initContainers"], *pod["containers"])
    ]
    assert found == ["sd-1=org/one,sdxl=org/two", None]


@pytest.mark.parametrize(
    ("name", "manifest", "keys"),
    [
        pytest.param(
            "credentials",
            load(CPU, credentialsSecretRef={"name": "secret"}),
            ["token", "host"],
            id="token of the source",
        ),
        pytest.param(
            "logins",
            load(replace(CPU, loader=replace(CPU.loader, logins_secret="secret"))),
            ["proxy", "hub", "trained"],
            id="logins of the administrator",
        ),
    ],
)
def test_a_secret_reaches_fetch_only(name: str, manifest: dict[str, Any], keys: list[str]) -> None:
    """Only the listed keys are mounted; all are optional, so the loader reports a missing one."""
    pod = pod_of(manifest)
    mounts = {
        one["name"]: {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
        for one in (*pod["initContainers"], *pod["containers"])
    }
    usual = {"models": "/models", "tmp": "/tmp"}
    folder = env(pod["initContainers"][0])[f"SD_LOADER_{name.upper()}_DIR"]
    assert mounts == {"fetch": usual | {name: folder}, "convert": usual}
    (volume,) = [one for one in pod["volumes"] if one["name"] == name]
    assert volume["secret"] == {
        "secretName": "secret",
        "optional": True,
        "defaultMode": 0o440,
        "items": [{"key": key, "path": key} for key in keys],
    }


def test_the_security_context_can_be_replaced_whole() -> None:
    """OpenShift chooses the user ids itself."""
    loader = replace(CPU.loader, security_context={"container": {"runAsNonRoot": True}})
    pod = pod_of(load(replace(CPU, loader=loader)))
    assert pod["securityContext"] == {}
    assert pod["containers"][0]["securityContext"] == {"runAsNonRoot": True}


def test_the_clean_up_job_has_no_owner() -> None:
    """Foreground deletion would delete an owned Job before it could clean up."""
    manifest = remove(Settings(), deletionPolicy="Delete")
    assert "ownerReferences" not in manifest["metadata"]
    (container,) = pod_of(manifest)["containers"]
    assert set(container["resources"]["limits"]) == {"memory"}
    assert RemoveRequest.from_argument(container["args"][2]).retain is False


def test_names_fit_whatever_the_models_name() -> None:
    """Job names have at most 51 characters and no dots, and differ for each attempt."""
    names = {
        manifests.plan_load(model(name=name), CPU, claim(), attempt).name
        for name in ("a" * 63, "with.dots.-" + "b" * 50, "c")
        for attempt in (0, 1)
    }
    assert len(names) == 6
    assert all(len(name) <= 51 and "." not in name for name in names)


PLACED = Settings(
    loader=LoaderSettings(
        placement=JobOverrides(
            node_selector={"pool": "gpu"},
            tolerations=[Toleration(key="nvidia.com/gpu", operator="Exists")],
            runtime_class_name="nvidia",
        )
    )
)


def test_a_models_placement_replaces_the_default_field_by_field() -> None:
    """The node selector of spec.job replaces the default one; the two are not merged."""
    pod = pod_of(load(PLACED, job={"nodeSelector": {"zone": "a"}}))

    assert pod["nodeSelector"] == {"zone": "a"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert pod["runtimeClassName"] == "nvidia"


def test_a_clean_up_ignores_a_priority_class_that_is_not_allowed() -> None:
    """The clean-up Job has no PriorityClass: a deleted model's spec cannot be corrected."""
    job = {"priorityClassName": "system-node-critical", "nodeSelector": {"zone": "a"}}
    pod = pod_of(remove(CPU, job=job))
    assert pod["nodeSelector"] == {"zone": "a"}
    assert "priorityClassName" not in pod
    assert "priorityClassName" not in pod_of(load(CPU, job=job))


def test_a_clean_up_is_placed_too_but_needs_no_gpu_runtime() -> None:
    """The clean-up Job has the configured node selector and tolerations, but no RuntimeClass.

    Perhaps only the selected nodes can reach the volume.
    """
    pod = pod_of(remove(PLACED))

    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert "runtimeClassName" not in pod
