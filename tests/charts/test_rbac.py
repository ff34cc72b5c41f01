"""The operator has exactly the rights that its code uses, in the namespaces that it serves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sd_operator
from sd_api import names
from sd_operator.base.settings import Settings
from sd_operator.clients import kube
from sd_operator.runtime.handlers import kopf_settings, register
from tests.support.charts.helmcharts import (
    GATEWAY_RULES,
    LEADER_RULES,
    NAMESPACE,
    RULES,
    Json,
    of_kind,
    one,
    render,
)
from tests.support.kube import rights

Right = tuple[str, str]
"""A verb, and a resource with its subresource."""

WITHOUT_REQUEST = {("update", "stablediffusionmodels/finalizers")}
"""An admission plugin requires it for ownerReferences with blockOwnerDeletion."""
OF_NAMESPACES = {("get", "namespaces")}
"""A separate ClusterRole grants this right, for the listed namespaces."""
GIVEN_BY_USERS = {("get", "secrets")}
"""Users grant it with a Role that names the Secret of spec.webhookSecretRef."""


def granted(rules: list[Json]) -> set[Right]:
    """Return the rights that these RBAC rules grant."""
    return {(verb, name) for rule in rules for verb in rule["verbs"] for name in rule["resources"]}


OPERATOR = ("runtime", "reconciler", "rules", "resources", "clients", "base")
"""The packages of the operator's process; gateway, cli and standalone run in other processes."""


def calls(*rooms: str) -> Iterator[ast.Call]:
    """Yield the method calls in the modules of these packages."""
    for room in rooms:
        for path in Path(sd_operator.__path__[0], room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield node


def requests(*rooms: str) -> set[Right]:
    """Return the requests that these packages send through the operator's own client."""
    found = set()
    for call in calls(*rooms):
        assert isinstance(call.func, ast.Attribute)
        verb = {"check": "list", "snapshot": "list"}.get(call.func.attr, call.func.attr)
        if verb == "last_log_line":
            found.add(("get", "pods/log"))
        first = call.args[0] if call.args else None
        resource = getattr(kube, first.id, None) if isinstance(first, ast.Name) else None
        if isinstance(resource, kube.Resource) and hasattr(kube.Api, call.func.attr):
            subs = [word.value.value for word in call.keywords if word.arg == "sub"]  # type: ignore[attr-defined]
            found.add((verb, "/".join([resource.plural, *subs])))
    return found


def watched() -> set[Right]:
    """Return the rights that kopf needs to list and watch."""
    registry: Any = register(None, Settings())  # type: ignore[arg-type]
    kinds = {
        selector.plural or selector.any_name for selector in registry._watching.get_all_selectors()
    }
    return {(verb, str(kind)) for kind in kinds for verb in ("list", "watch")}


def test_every_right_is_used_and_every_request_is_granted() -> None:
    """No right is missing, and none is unused."""
    asked = requests(*OPERATOR) | watched()

    assert asked - GIVEN_BY_USERS - OF_NAMESPACES == granted(RULES) - WITHOUT_REQUEST
    assert granted(LEADER_RULES) == {(verb, "leases") for verb in ("get", "create", "update")}


def test_the_gateway_has_the_rights_that_it_uses() -> None:
    """The test reads all modules of the gateway."""
    assert requests("gateway") == granted(GATEWAY_RULES)


def test_the_gateway_cannot_create_jobs_or_read_other_leases() -> None:
    """The gateway has no right on Jobs and Pods, and of the Leases only on that for sweeps.

    Whoever creates a Job or a Pod can mount every Secret of the namespace.
    """
    changes = {
        right for right in granted(GATEWAY_RULES) if right[0] not in ("get", "list", "watch")
    }
    models = {(verb, names.PLURAL) for verb in ("create", "patch", "delete")}
    assert changes == models | {("update", "leases")}
    assert not {"jobs", "pods", "secrets"} & {name for _, name in granted(GATEWAY_RULES)}
    kinds = {resource for rule in GATEWAY_RULES for resource in rule["resources"]}
    assert kinds == {"stablediffusionmodels", "events", "leases", "persistentvolumeclaims"}
    (leases,) = [rule for rule in GATEWAY_RULES if "leases" in rule["resources"]]
    assert leases["resourceNames"] == [names.SWEEP_LEASE]


def test_the_operator_reads_and_changes_only_its_own_leases() -> None:
    """Each right on Leases is for named Leases, except `create`, which RBAC cannot restrict."""
    for rule in RULES + LEADER_RULES:
        if "leases" in rule["resources"]:
            own = [names.FIELD_MANAGER], [names.SWEEP_LEASE]
            assert rule["verbs"] == ["create"] or rule["resourceNames"] in own
    selectors = kopf_settings().watching.field_selectors
    assert selectors["coordination.k8s.io", "v1", "leases"] == f"metadata.name={names.SWEEP_LEASE}"


def test_the_cluster_tests_run_under_the_charts_rights() -> None:
    """The cluster tests use the same rights as the chart, so they find the chart's faults."""
    assert granted(rights.RULES) == granted(RULES) | granted(LEADER_RULES)


@pytest.mark.parametrize("cluster_wide", [False, True], ids=["per namespace", "cluster-wide"])
def test_no_role_can_read_secrets_or_enter_pods(cluster_wide: bool) -> None:
    """No role can read Secrets or exec into Pods, and none has a wildcard."""
    objects = render({"models": {"clusterWide": cluster_wide}, "gateway": {"enabled": True}})
    for role in of_kind(objects, "Role") + of_kind(objects, "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert not {"secrets", "pods/exec", "pods/attach"} & set(rule["resources"])


SUBJECTS = [{"kind": "ServiceAccount", "name": "sd-operator", "namespace": NAMESPACE}]


def test_each_served_namespace_has_a_role() -> None:
    """Only the role for the Lease is in the release's namespace."""
    objects = render({"models": {"namespaces": ["art", "ads"]}, "rbac": {"aggregate": False}})
    roles = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item["rules"]
        for item in of_kind(objects, "Role")
    }
    bindings = of_kind(objects, "RoleBinding")

    assert roles == {
        ("art", "sd-operator"): RULES,
        ("ads", "sd-operator"): RULES,
        (NAMESPACE, "sd-operator-leader"): LEADER_RULES,
    }
    assert {
        (item["metadata"]["namespace"], item["roleRef"]["kind"], item["roleRef"]["name"])
        for item in bindings
    } == {(namespace, "Role", name) for namespace, name in roles}
    assert all(item["subjects"] == SUBJECTS for item in bindings)


def test_the_rights_to_release_models_outlive_the_roles() -> None:
    """A ClusterRole has the rights to release models: a namespace's Roles are deleted earlier."""
    listed = {"models": {"namespaces": ["art", "ads"]}, "rbac": {"aggregate": False}}
    objects = render(listed)
    role, binding = one(objects, "ClusterRole"), one(objects, "ClusterRoleBinding")
    namespaces, models = role["rules"]

    assert namespaces == {
        "apiGroups": [""],
        "resources": ["namespaces"],
        "resourceNames": ["art", "ads"],
        "verbs": ["get"],
    }
    assert (models["resources"], models["verbs"]) == (
        ["stablediffusionmodels"],
        ["get", "list", "watch", "patch"],
    )
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == SUBJECTS


def test_no_cluster_role_is_needed_without_namespace_deletion() -> None:
    """The operator then has no right outside the listed namespaces."""
    objects = render(
        {
            "models": {"namespaces": ["art", "ads"]},
            "rbac": {"aggregate": False, "namespaceDeletion": False},
        }
    )
    assert not of_kind(objects, "ClusterRole") + of_kind(objects, "ClusterRoleBinding")


def test_cluster_wide_there_is_one_role_for_all() -> None:
    """The role's name contains the release's namespace, so that two releases do not share it."""
    objects = render({"models": {"clusterWide": True}, "rbac": {"aggregate": False}})
    binding = one(objects, "ClusterRoleBinding")

    assert one(objects, "ClusterRole")["rules"] == RULES
    assert binding["roleRef"]["name"] == "sd-system-sd-operator"
    assert binding["subjects"] == SUBJECTS
    assert [item["metadata"]["name"] for item in of_kind(objects, "Role")] == ["sd-operator-leader"]


def test_an_administrator_may_supply_roles_and_an_account() -> None:
    """If the values say so, the chart creates no RBAC objects and uses the given account."""
    objects = render(
        {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}}
    )
    kinds = {item["kind"] for item in objects}

    assert not kinds & {
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "ServiceAccount",
    }
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_editors_of_a_namespace_may_edit_its_models() -> None:
    """The chart's ClusterRole lets editors of a namespace edit models, but not their status."""
    objects = render()
    view = one(objects, "ClusterRole", "sd-system-sd-operator-view")
    edit = one(objects, "ClusterRole", "sd-system-sd-operator-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"

    assert {
        key.removeprefix(prefix) for key in view["metadata"]["labels"] if key.startswith(prefix)
    } == {"view"}
    assert {
        key.removeprefix(prefix) for key in edit["metadata"]["labels"] if key.startswith(prefix)
    } == {"edit", "admin"}
    for role in (view, edit):
        assert [rule["resources"] for rule in role["rules"]] == [["stablediffusionmodels"]]
