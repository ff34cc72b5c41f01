"""Findings about an installation: what keeps models from loading, and what to do about it.

Pure, except `gather`, which reads the cluster. A check whose objects could not be read yields a
finding of level UNKNOWN, which is not a failure.
"""

from __future__ import annotations

from sd_operator.cli.doctor.egress import check_egress
from sd_operator.cli.doctor.findings import ClusterView, Finding, unreadable
from sd_operator.cli.doctor.installation import (
    check_crd,
    check_gpus,
    check_listed,
    check_operators,
    gpu_resource,
)
from sd_operator.cli.doctor.namespace import check_claims, check_keys, check_models, check_rights


def examine(cluster: ClusterView) -> list[Finding]:
    """Run all checks; a check comes after those that it depends on."""
    findings = [check_crd(cluster.crd), check_operators(cluster.operators)]
    if cluster.nodes is None:
        findings.append(unreadable("GPU", "nodes"))
    else:
        findings.append(check_gpus(cluster.nodes, gpu_resource(cluster.operators or ())))
    findings += check_listed(cluster.listed)
    for namespace in cluster.namespaces:
        findings += [check_rights(namespace), *check_claims(namespace)]
        findings += [*check_keys(namespace), check_egress(namespace), *check_models(namespace)]
    return findings
