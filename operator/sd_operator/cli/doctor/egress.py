"""Check that the NetworkPolicies of a namespace let the loader reach its sources."""

from __future__ import annotations

from collections.abc import Mapping

from sd_api import names
from sd_operator.cli.doctor.findings import Finding, Json, Level, NamespaceView, unreadable


def check_egress(namespace: NamespaceView) -> Finding:
    """Check that the NetworkPolicies, taken together, let the loader use DNS and https."""
    subject = f"{namespace.name}: egress"
    if namespace.policies is None:
        return unreadable(subject, "networkpolicies")
    selecting = [policy for policy in namespace.policies if _selects_loader(policy)]
    if not selecting:
        return Finding(Level.OK, subject, "no NetworkPolicy restricts the loader's egress")
    listed = ", ".join(policy["metadata"]["name"] for policy in selecting)
    rules = [rule for policy in selecting for rule in policy["spec"].get("egress") or ()]
    blocked = [
        name
        for name, port in (("DNS (53)", 53), ("https (443)", 443))
        if not any(_allows(rule, port) for rule in rules)
    ]
    if blocked:
        return Finding(
            Level.FAILED,
            subject,
            f"the loader has no egress for {' and '.join(blocked)}: NetworkPolicy {listed}",
            "Allow it in a NetworkPolicy. Ignore 443 if the loader uses a proxy on another port.",
        )
    return Finding(
        Level.OK, subject, f"the loader has egress for DNS and https: NetworkPolicy {listed}"
    )


def _selects_loader(policy: Json) -> bool:
    """Return whether a policy restricts the egress of loader Pods."""
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
    if "Egress" not in types:
        return False
    labels = {
        names.LABEL_NAME: names.LOADER_NAME,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_ROLE: names.ROLE_LOAD,
    }
    selector = spec.get("podSelector") or {}
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_matches(labels, item) for item in selector.get("matchExpressions") or ())


def _matches(labels: Mapping[str, str], expression: Json) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }.get(expression["operator"], True)


def _allows(rule: Json, port: int) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    return any(_includes(entry, port) for entry in ports)


def _includes(entry: Json, port: int) -> bool:
    first = entry.get("port")
    if not isinstance(first, int):
        # A named port is defined by the destination Pods, which are not read: assume it matches.
        return True
    return first <= port <= int(entry.get("endPort", first))
