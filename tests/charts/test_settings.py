"""The chart's values and the operator's settings agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sd_api.spec import JobOverrides, Toleration
from sd_operator.base.settings import PREFIX, LoaderSettings, Settings
from sd_operator.rules import volume_jobs
from sd_operator.rules.manifests import _CONTAINER_SECURITY, _POD_SECURITY
from tests.support.charts.helmcharts import (
    FULL,
    NAMESPACE,
    VALUES,
    deployment,
    env_of,
    of_kind,
    one,
    pod_of,
    render,
    with_value,
)
from tests.support.environment import Recorder

NOT_VALUES = {
    "BIND_ADDRESS": "probes and metrics are for the cluster's network",
    "METRICS_PORT": "the container's port",
    "PROBES_PORT": "the container's port",
    "RESYNC_SECONDS": "for tests and rare cases: extraEnv",
    "POLL_SECONDS": "for tests and rare cases: extraEnv",
    "RETRY_FIRST_SECONDS": "for tests and rare cases: extraEnv",
    "RETRY_MAX_SECONDS": "for tests and rare cases: extraEnv",
    "STUCK_SECONDS": "for rare cases: extraEnv",
    "LEADER_ELECTION": "on in a Pod; off with more than one operator would do harm",
}
"""Settings without a value in the chart, and the reason."""


def settings_of(variables: Mapping[str, str]) -> set[str]:
    """Return the names of settings among these variables, without their prefix."""
    return {name.removeprefix(PREFIX) for name in variables if name.startswith(PREFIX)}


def test_a_release_without_values_has_the_operators_own_defaults() -> None:
    """The chart sets only the namespace and the tolerations of loader Pods."""
    settings = Settings.from_env(env_of(render()))

    toleration = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    assert settings.namespaces == (NAMESPACE,)
    assert settings.loader == LoaderSettings(placement=JobOverrides(tolerations=[toleration]))
    assert settings.claim_name == Settings().claim_name
    assert settings.allowed_hosts == frozenset()
    assert settings.webhook_retry_seconds == Settings().webhook_retry_seconds
    for port, name in ((settings.metrics_port, "metrics"), (settings.probes_port, "probes")):
        (container,) = pod_of(deployment(render()))["containers"]
        assert {"name": name, "containerPort": port} in container["ports"]


def test_every_value_sets_its_setting() -> None:
    """Each value sets its setting, also numbers above a million, which Helm reads as floats."""
    settings = Settings.from_env(env_of(render(FULL)))

    registry = "registry.example.com/sd"
    assert settings.loader.image == f"{registry}/load@sha256:{'b' * 64}"
    assert settings.loader.slim_image == f"{registry}/slim@sha256:{'c' * 64}"
    assert settings.loader.image_pull_secrets == ("pull", "more")
    assert (settings.loader.gpu_resource, settings.loader.gpu_count) == ("amd.com/gpu", 2)
    assert settings.loader.ca_configmap == "company-ca"
    assert settings.loader.max_bytes == 123456789012
    assert settings.loader.retain_previous_seconds == 3600
    assert settings.check_seconds == 7200
    assert settings.loader.tmp_size == "2Gi"
    assert settings.loader.active_deadline_seconds == 7200
    assert (settings.loader.load_ttl_seconds, settings.loader.remove_ttl_seconds) == (60, 30)
    assert settings.loader.default_parts == {"sd-1": "org/one", "sdxl": "org/xl"}
    assert settings.loader.allow_overrides is False
    assert settings.loader.priority_classes == {"low", "lowest"}
    assert settings.loader.security_context == FULL["loader"]["securityContext"]
    assert settings.loader.placement == JobOverrides(
        node_selector={"pool": "gpu"},
        tolerations=[Toleration(key="gpu", operator="Equal", value="yes")],
        runtime_class_name="nvidia",
        priority_class_name="batch",
    )
    assert settings.namespaces == ("art", "ads")
    assert settings.claim_name == "weights"
    assert settings.allowed_claims == {"archive", "fast"}
    assert settings.allowed_hosts == {"mirror.example.com", "10.1.2.3:8443"}
    assert settings.hub_endpoint == "https://mirror.example.com/hf"
    assert settings.trained_url_template == "https://trainer.example.com/models/{id}"
    assert settings.https_proxy == "http://proxy.example.com:3128"
    assert settings.no_proxy == ".example.com"
    assert settings.loader.logins_secret == "logins"
    assert settings.webhook_retry_seconds == (1.0, 2.5)
    assert settings.stuck_seconds == 60
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert (settings.max_loads, settings.max_loads_per_namespace) == (20, 5)
    assert settings.loader.kueue_queue == "loads"
    assert settings.lease_namespace == NAMESPACE


def test_webhook_key_and_ca_are_mounted_where_the_operator_reads_them() -> None:
    """The values name the Secret of the key and the ConfigMap of the certificate authorities."""
    objects = render(FULL)
    settings = Settings.from_env(env_of(objects))
    pod = pod_of(deployment(objects))
    mounts = {one["name"]: Path(one["mountPath"]) for one in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    secret = volumes["webhook-key"]["secret"]
    (item,) = secret["items"]
    assert (secret["secretName"], item["key"]) == ("webhook", "signing")
    assert settings.webhook_key_file == mounts["webhook-key"] / item["path"]
    assert volumes["webhook-ca"]["configMap"] == {"name": "hook-ca"}
    assert settings.webhook_ca_file == mounts["webhook-ca"] / "ca.crt"


@pytest.mark.parametrize(
    ("component", "keys"), [("operator", ["proxy"]), ("gateway", ["proxy", "hub"])]
)
def test_logins_are_mounted_where_they_are_read(component: str, keys: list[str]) -> None:
    """Each Pod gets only the logins that it uses, and starts without them."""
    objects = render(FULL)
    (pod,) = [
        pod_of(item)
        for item in of_kind(objects, "Deployment")
        if pod_of(item)["containers"][0]["name"] == component
    ]
    (container,) = pod["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "logins"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "logins"]
    assert env[f"SD_{component.upper()}_LOGINS_DIR"] == mount["mountPath"]
    assert (mount["readOnly"], volume["secret"]["optional"]) == (True, True)
    assert volume["secret"]["secretName"] == "logins"
    assert [item["key"] for item in volume["secret"]["items"]] == keys


def test_the_operator_reads_every_variable_of_the_chart() -> None:
    """The chart sets only variables that the operator reads; others would be ignored."""
    env = Recorder(env_of(render(FULL)))
    Settings.from_env(env)

    assert settings_of(env.env) <= settings_of(dict.fromkeys(env.asked, ""))


def test_every_setting_without_a_value_has_a_reason() -> None:
    """A new setting needs either a value in the chart or an entry in NOT_VALUES."""
    env = Recorder(env_of(render(FULL)))
    Settings.from_env(env)

    missing = settings_of(dict.fromkeys(env.asked, "")) - settings_of(env.env)
    assert missing <= NOT_VALUES.keys()


def test_cluster_wide_means_all_namespaces() -> None:
    """With clusterWide, the operator serves all namespaces, also if the values list some."""
    values = with_value(FULL, ("models", "clusterWide"), True)
    assert Settings.from_env(env_of(render(values))).namespaces == ()


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
def test_the_chart_secures_its_pods_as_the_operator_does(kind: str) -> None:
    """The same restricted security context is written in the chart and in the operator."""
    pod = pod_of(one(render({"sweep": {"enabled": True}}), kind))

    assert pod["securityContext"] == _POD_SECURITY
    assert pod["containers"][0]["securityContext"] == _CONTAINER_SECURITY


def test_the_sweep_uses_the_volume_and_image_of_loads() -> None:
    """The sweep has the PVC, the image and the retention of the operator's settings."""
    objects = render(FULL)
    settings = Settings.from_env(env_of(objects))
    pod = pod_of(of_kind(objects, "CronJob")[0])
    (container,) = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}

    assert container["image"] == settings.loader.slim_image
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == settings.claim_name
    retained = settings.loader.retain_previous_seconds
    assert env["SD_LOADER_RETAIN_PREVIOUS_SECONDS"] == str(retained)
    assert VALUES["retainPrevious"] == LoaderSettings().retain_previous_seconds


@pytest.mark.parametrize("values", [{"sweep": {"enabled": True}}, FULL], ids=["default", "full"])
def test_the_operators_sweep_is_that_of_the_chart(values: dict[str, Any]) -> None:
    """The two Pods differ at most in resources, and their Jobs have the same labels."""
    objects = render(values)
    settings = Settings.from_env(env_of(objects))
    template = of_kind(objects, "CronJob")[0]["spec"]["jobTemplate"]
    made = volume_jobs.build_sweep("art", "sweep", settings.claim_name, settings.loader)
    mine, theirs = made["spec"]["template"]["spec"], template["spec"]["template"]["spec"]
    if values is FULL:
        theirs["containers"][0]["resources"] = mine["containers"][0]["resources"]

    assert mine == theirs
    assert made["metadata"]["labels"] == template["metadata"]["labels"]
    labels = template["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["template"]["metadata"]["labels"].items() <= labels.items()
    for key in ("backoffLimit", "activeDeadlineSeconds"):
        assert made["spec"][key] == template["spec"][key]
