"""Tests of the gateway in the chart: off by default, and its settings and rights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd_operator.gateway.settings import PREFIX, GatewaySettings
from tests.support.charts.helmcharts import (
    FULL,
    GATEWAY_RULES,
    NAMESPACE,
    OPERATOR,
    deployment,
    env_of,
    helm,
    of_kind,
    one,
    pod_of,
    render,
    with_value,
)
from tests.support.environment import Recorder

ON = {"gateway": {"enabled": True}}
NAME = "sd-operator-gateway"
NOT_VALUES = {
    "BIND_ADDRESS": "it is there to be called",
    "PORT": "the container's port",
    "METRICS_PORT": "the container's port",
    "PROBES_PORT": "the container's port",
}
"""GatewaySettings without a value in the chart, and the reason."""


def settings(values: Any) -> GatewaySettings:
    """Return the gateway's settings in a release."""
    return GatewaySettings.from_env(env_of(render(values), "gateway"))


def test_the_gateway_is_disabled_by_default() -> None:
    """No gateway Deployment, Service, Role or NetworkPolicy is rendered."""
    assert not [item for item in render() if "gateway" in item["metadata"]["name"]]


def test_gateway_without_values_has_its_own_defaults() -> None:
    """The chart's values repeat the defaults of the code."""
    assert settings(ON) == GatewaySettings(Path("/etc/sd-gateway/keys/keys"))


def test_every_value_reaches_the_gateway() -> None:
    """Each value sets its setting, also the values that the gateway shares with the operator."""
    found = settings(FULL)
    assert found.claim_name == "weights"
    assert found.allowed_claims == {"archive", "fast"}
    assert found.allowed_hosts == {"mirror.example.com", "10.1.2.3:8443"}
    assert found.hub_endpoint == "https://mirror.example.com/hf"
    assert found.civitai_endpoint == "https://civitai.example.com"
    assert found.lookups is False
    assert (found.https_proxy, found.no_proxy) == ("http://proxy.example.com:3128", ".example.com")
    assert (found.public_url, found.cookie_secure) == ("http://models.internal", False)
    assert found.trusted_proxies == ("10.0.0.1", "10.0.0.2")
    assert (found.calls_per_minute, found.failures_per_minute) == (5_000_000, 0)
    assert (found.max_connections, found.max_connections_per_address) == (1000, 50)
    assert found.max_body_bytes == 2048
    assert (found.log_level, found.log_format) == ("DEBUG", "json")


def test_gateway_reads_every_variable_of_the_chart() -> None:
    """The gateway reads all variables; a setting without a value has a reason in NOT_VALUES."""
    env = Recorder(env_of(render(FULL), "gateway"))
    GatewaySettings.from_env(env)
    given = {name for name in env.env if name.startswith(PREFIX)}
    asked = {name for name in env.asked if name.startswith(PREFIX)}
    assert given <= asked
    assert {name.removeprefix(PREFIX) for name in asked - given} == NOT_VALUES.keys()


def test_the_ingress_host_is_the_public_url() -> None:
    """The public url is https://HOST unless the values give another url."""
    ingress = {"host": "models.example.com"}
    found = settings({"gateway": {"enabled": True, "ingress": ingress}})
    assert (found.public_url, found.cookie_secure) == ("https://models.example.com", True)


def test_keys_and_ca_are_mounted_where_the_gateway_reads_them() -> None:
    """Key file and CA are mounted as folders: a file that is mounted by subPath never changes."""
    objects = render(FULL)
    found = settings(FULL)
    pod = pod_of(deployment(objects, "gateway"))
    mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    secret = volumes["keys"]["secret"]
    (item,) = secret["items"]
    assert (secret["secretName"], item["key"], secret["optional"]) == ("callers", "lines", True)
    assert found.keys_file == Path(mounts["keys"]["mountPath"], item["path"])
    assert volumes["ca"]["configMap"] == {"name": "gateway-ca"}
    assert found.ca_file == Path(mounts["ca"]["mountPath"], "ca.crt")
    claim = volumes["models"]["persistentVolumeClaim"]
    assert claim == {"claimName": "weights", "readOnly": True}
    assert found.store == Path(mounts["models"]["mountPath"])
    assert not [name for name, one in mounts.items() if "subPath" in one]
    assert {name for name, one in mounts.items() if not one.get("readOnly")} == {"tmp"}
    assert "models" not in {
        volume["name"] for volume in pod_of(deployment(render(ON), "gateway"))["volumes"]
    }


def test_gateway_selectors_match_only_the_gateway() -> None:
    """The operator's selectors do not match the gateway."""
    objects = render(with_value(FULL, ("crd", "install"), False))
    selector = deployment(objects, "gateway")["spec"]["selector"]["matchLabels"]
    name = "models-operator-gateway"
    assert one(objects, "Service", name)["spec"]["selector"] == selector
    assert one(objects, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == selector
    policy = one(objects, "NetworkPolicy", name)["spec"]
    assert policy["podSelector"]["matchLabels"] == selector
    assert one(objects, "PodMonitor", name)["spec"]["selector"]["matchLabels"] == selector
    theirs = deployment(objects)["spec"]["selector"]["matchLabels"]
    labels = deployment(objects, "gateway")["spec"]["template"]["metadata"]["labels"]
    assert not theirs.items() <= labels.items()


def test_gateway_probes_and_service_use_its_ports() -> None:
    """Ingress, Service and container use the same port names."""
    objects = render(FULL)
    (container,) = pod_of(deployment(objects, "gateway"))["containers"]
    default = GatewaySettings(Path("keys"))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "http": default.port,
        "metrics": default.metrics_port,
        "probes": default.probes_port,
    }
    assert container["command"] + container["args"] == ["sd-gateway", "run"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "probes"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "probes"}
    service = one(objects, "Service", "models-operator-gateway")
    assert {port["name"]: port["targetPort"] for port in service["spec"]["ports"]} == {
        "http": "http",
        "metrics": "metrics",
    }
    ingress = one(objects, "Ingress")["spec"]
    (rule,) = ingress["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": "http"}}
    assert ingress["tls"] == [{"hosts": [rule["host"]], "secretName": "models-tls"}]
    policy = one(objects, "NetworkPolicy", "models-operator-gateway")["spec"]
    calls, metrics = policy["ingress"]
    assert (calls["ports"], calls["from"]) == (
        [{"port": "http"}],
        FULL["gateway"]["networkPolicy"]["from"],
    )
    assert metrics == {"ports": [{"port": "metrics"}]}


@pytest.mark.parametrize("cluster_wide", [False, True], ids=["per namespace", "cluster-wide"])
def test_only_the_gateways_account_has_the_gateways_rights(cluster_wide: bool) -> None:
    """The rights are limited to the served namespaces."""
    models = {"namespaces": ["art", "ads"], "clusterWide": cluster_wide}
    objects = render({**ON, "models": models})
    role, binding = (
        ("ClusterRole", "ClusterRoleBinding") if cluster_wide else ("Role", "RoleBinding")
    )
    name = f"sd-system-{NAME}" if cluster_wide else NAME
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    roles, bindings = of_kind(objects, role, name), of_kind(objects, binding, name)
    assert [item["rules"] for item in roles] == [GATEWAY_RULES] * (1 if cluster_wide else 2)
    assert [item["metadata"].get("namespace") for item in bindings] == (
        [None] if cluster_wide else ["art", "ads"]
    )
    for item in bindings:
        assert (item["subjects"], item["roleRef"]["name"]) == (subjects, name)
    assert pod_of(deployment(objects, "gateway"))["serviceAccountName"] == NAME
    assert one(objects, "ServiceAccount", NAME)["metadata"]["namespace"] == NAMESPACE
    others = [
        subject["name"]
        for item in of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding")
        if item not in bindings
        for subject in item["subjects"]
    ]
    assert NAME not in others


def test_without_a_host_there_is_no_ingress() -> None:
    """Without a host, no Ingress is rendered; the Service can be exposed in another way."""
    assert not of_kind(render(ON), "Ingress")
    assert one(render(ON), "Service", NAME)


def test_the_notes_show_how_to_make_a_key() -> None:
    """A command in the gateway's own Pod, which starts without keys, makes the key."""
    done = helm("install", "sd", OPERATOR, "--dry-run=client", "-n", NAMESPACE, values=ON)
    notes = done.stdout.partition("NOTES:")[2]
    assert "deploy/sd-sd-operator-gateway -- sd-gateway new-key sd-system" in notes
    assert "create secret generic sd-gateway-keys -n sd-system --from-literal=keys=" in notes
