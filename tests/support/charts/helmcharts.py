"""Renders the charts with Helm."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tools.kubectl import helm3_path, helm_path

CHARTS = ROOT / "charts"
OPERATOR = CHARTS / "sd-operator"
CATALOG = CHARTS / "sd-models"
VALUES: dict[str, Any] = yaml.safe_load((OPERATOR / "values.yaml").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((OPERATOR / "files" / "rules.yaml").read_text())
"""The operator's rights in a namespace with models."""
LEADER_RULES: list[dict[str, Any]] = yaml.safe_load(
    (OPERATOR / "files" / "leader-rules.yaml").read_text()
)
GATEWAY_RULES: list[dict[str, Any]] = yaml.safe_load(
    (OPERATOR / "files" / "gateway-rules.yaml").read_text()
)
HELMS = {"helm": helm_path, "helm3": helm3_path}
NAMESPACE = "sd-system"
# The CRD is long. The YAML loader in C reads it fast; the one in pure Python is slow.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Json = dict[str, Any]

FULL: Json = {
    "fullnameOverride": "models-operator",
    "registry": "registry.example.com/sd",
    "image": {"repository": "op", "tag": "1.2.3", "digest": "sha256:" + "a" * 64},
    "imagePullSecrets": ["pull", "more"],
    "replicas": 3,
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
    "securityContext": {
        "pod": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "container": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    },
    "networkPolicy": {
        "enabled": True,
        "apiServer": {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [6443]},
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.7.7.7/32"}}]}],
    },
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "podLabels": {"team": "images"},
    "podAnnotations": {"example.com/note": "one"},
    "podDisruptionBudget": {"enabled": True},
    "serviceAccount": {
        "create": True,
        "name": "models",
        "annotations": {"example.com/role": "models"},
    },
    "rbac": {"create": True, "aggregate": True, "namespaceDeletion": True},
    "logLevel": "DEBUG",
    "logFormat": "json",
    "crd": {"install": True, "keep": True},
    "models": {
        "namespaces": ["art", "ads"],
        "clusterWide": False,
        "claim": {
            "create": True,
            "name": "weights",
            "size": "1Ti",
            "storageClassName": "nfs",
            "accessModes": ["ReadWriteOnce"],
            "annotations": {"example.com/backup": "true"},
        },
        "allowedClaims": ["archive", "fast"],
    },
    "loader": {
        "image": {"repository": "load", "tag": "2", "digest": "sha256:" + "b" * 64},
        "slimImage": {"repository": "slim", "tag": "3", "digest": "sha256:" + "c" * 64},
        "gpu": {"resource": "amd.com/gpu", "count": 2},
        "securityContext": {
            "pod": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "container": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "batch",
        "allowedPriorityClasses": ["low", "lowest"],
        "allowOverrides": False,
        "maxBytes": 123456789012,
        "tmpSize": "2Gi",
        "activeDeadlineSeconds": 7200,
        "loadTtlSeconds": 60,
        "removeTtlSeconds": 30,
        "defaultParts": {"sdxl": "org/xl", "sd-1": "org/one"},
        "networkPolicy": {
            "enabled": True,
            "dns": {"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}], "ports": [54]},
            "refusedCIDRs": ["10.0.0.0/8", "203.0.113.0/24", "fd00::/8"],
        },
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}],
    },
    "limits": {"loads": 20, "loadsPerNamespace": 5},
    "kueueQueue": "loads",
    "retainPrevious": 3600,
    "checkSeconds": 7200,
    "allowedHosts": ["mirror.example.com", "10.1.2.3:8443"],
    "hubEndpoint": "https://mirror.example.com/hf",
    "sources": {
        "civitaiEndpoint": "https://civitai.example.com",
        "verifyDigest": "whenWhole",
        "pictures": "all",
    },
    "trainedUrlTemplate": "https://trainer.example.com/models/{id}",
    "loginsSecret": "logins",
    "credentials": {
        "defaults": {
            "hub.example.com": {"secret": "hub-token", "private": True},
            "site.example.com:8443": {"secret": "site-token"},
        }
    },
    "proxy": {"https": "http://proxy.example.com:3128", "noProxy": ".example.com"},
    "caConfigMap": "company-ca",
    "webhook": {
        "keySecret": {"name": "webhook", "key": "signing"},
        "caConfigMap": "hook-ca",
        "retrySeconds": [1, 2.5],
    },
    "sweep": {
        "enabled": True,
        "schedule": "5 4 * * *",
        "resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "3Gi"}},
    },
    "gateway": {
        "enabled": True,
        "replicas": 4,
        "resources": {"requests": {"cpu": "3", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "keysSecret": {"name": "callers", "key": "lines"},
        "serviceAccountName": "caller",
        "publicUrl": "http://models.internal",
        "trustedProxies": ["10.0.0.1", "10.0.0.2"],
        "callsPerMinute": 5000000,
        "failuresPerMinute": 0,
        "maxConnections": 1000,
        "maxConnectionsPerAddress": 50,
        "previews": True,
        "lookups": False,
        "caConfigMap": "gateway-ca",
        "ingress": {
            "className": "nginx",
            "host": "models.example.com",
            "tlsSecret": "models-tls",
            "annotations": {"example.com/issuer": "letsencrypt"},
        },
        "networkPolicy": {
            "enabled": True,
            "from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
        },
        "extraEnv": [{"name": "SD_GATEWAY_MAX_BODY_BYTES", "value": "2048"}],
    },
    "metrics": {
        "podMonitor": {"enabled": True, "interval": "10s", "labels": {"release": "monitoring"}},
        "serviceMonitor": {"enabled": False, "interval": "20s", "labels": {"release": "services"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "rules"}, "job": "pods"},
        "dashboard": {
            "enabled": True,
            "labels": {"grafana_dashboard": "yes"},
            "annotations": {"grafana_folder": "models"},
        },
    },
    "extraEnv": [{"name": "SD_OPERATOR_STUCK_SECONDS", "value": "60"}],
}
"""Every value of the chart, each different from its default."""


def helm(
    *arguments: object, values: Mapping[str, Any] | None = None, program: str = "helm"
) -> subprocess.CompletedProcess[str]:
    """Run helm without access to a cluster; the exit code is not checked."""
    with tempfile.TemporaryDirectory(prefix="sd-helm-") as folder:
        command = [str(HELMS[program]()), *map(str, arguments)]
        if values is not None:
            given = Path(folder) / "values.yaml"
            given.write_text(yaml.safe_dump(dict(values)))
            command += ["-f", str(given)]
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "KUBECONFIG": "/none"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def render(
    values: Mapping[str, Any] | None = None,
    chart: Path = OPERATOR,
    program: str = "helm",
    release: str = "sd-operator",
    namespace: str = NAMESPACE,
) -> list[Json]:
    """Return the objects of a release."""
    return json.loads(_rendered(json.dumps(values or {}), chart, program, release, namespace))


@cache
def _rendered(values: str, chart: Path, program: str, release: str, namespace: str) -> str:
    done = helm(
        *("template", release, chart, "--namespace", namespace),
        values=json.loads(values),
        program=program,
    )
    assert done.returncode == 0, done.stderr
    return json.dumps([one for one in yaml.load_all(done.stdout, Loader=_LOADER) if one])


def one(objects: list[Json], kind: str, name: str | None = None) -> Json:
    """Return the only object of a kind, and of a name if given."""
    (found,) = of_kind(objects, kind, name)
    return found


def of_kind(objects: list[Json], kind: str, name: str | None = None) -> list[Json]:
    """Return the objects of a kind, and of a name if given."""
    return [
        item
        for item in objects
        if item["kind"] == kind and name in (None, item["metadata"]["name"])
    ]


def pod_of(item: Json) -> Json:
    """Return the Pod spec of a Pod, Deployment, Job or CronJob."""
    spec: Json = item["spec"]
    if item["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec if item["kind"] == "Pod" else spec["template"]["spec"]


def deployment(objects: list[Json], component: str = "operator") -> Json:
    """Return the Deployment of the operator or of the gateway."""
    (found,) = [
        item
        for item in of_kind(objects, "Deployment")
        if item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == component
    ]
    return found


def env_of(objects: list[Json], component: str = "operator") -> dict[str, str]:
    """Return the environment variables of the operator's or the gateway's Pod."""
    (container,) = pod_of(deployment(objects, component))["containers"]
    fields = {"metadata.namespace": NAMESPACE}
    return {"KUBERNETES_SERVICE_HOST": "10.96.0.1"} | {
        entry["name"]: entry["value"]
        if "value" in entry
        else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }


def leaves(values: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all leaves: values that are not mappings, and empty mappings."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, *path, key)
    else:
        yield path


def at(values: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path."""
    for key in path:
        values = values[key]
    return values


def with_value(values: Json, path: tuple[str, ...], value: Any) -> Json:
    """Return the values with one of them replaced."""
    key, *rest = path
    changed = with_value(values[key], tuple(rest), value) if rest else value
    return {**values, key: changed}
