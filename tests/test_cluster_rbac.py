"""A model's life under the chart's own Role: no right is missing, and none is left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster import OPERATOR_RULES, Cluster
from operated import SLOW, Operated
from rbacproxy import Asked, RbacProxy

pytestmark = pytest.mark.cluster

WITHOUT_REQUEST = {("update", "stablediffusionmodels/finalizers")}
"""Asked for by an admission plugin, in the name of a Job's creation."""


class Unlucky:
    """Suspends the first Job on its way, and loses the answer to it: a rare day in one test."""

    def __init__(self) -> None:
        self.first = True

    def alter(self, asked: Asked, body: dict[str, Any]) -> dict[str, Any]:
        """A suspended Job has no Pods, as one that a quota refuses."""
        if self.first and (asked.verb, asked.resource) == ("create", "jobs"):
            body["spec"]["suspend"] = True
        return body

    def lose(self, asked: Asked) -> bool:
        """The operator creates it again, and finds that it is there."""
        if not self.first or (asked.verb, asked.resource) != ("create", "jobs"):
            return False
        self.first = False
        return True


def granted() -> set[tuple[str, str]]:
    """All that the Role grants."""
    return {
        (verb, resource)
        for rule in OPERATOR_RULES
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def test_a_models_life_needs_every_right_and_no_other(operated: Operated, tmp_path: Path) -> None:
    """Load, resync, reload, suspend and clean-up, with a lost answer and a Job without Pods."""
    cluster: Cluster = operated.cluster
    rules = {cluster.namespace: OPERATOR_RULES}
    unlucky = Unlucky()
    with RbacProxy(
        cluster.backend.operator_kubeconfig, rules, unlucky.alter, unlucky.lose
    ) as proxy:
        operated.start(
            KUBECONFIG=str(proxy.write_kubeconfig(tmp_path / "proxy")),
            SD_OPERATOR_POLL_SECONDS="0.2",
        )
        cluster.model("sketch", url=operated.link(rate=SLOW), webhook=operated.receiver.url)
        operated.eventually(lambda: ("list", "events") in proxy.used)
        (job,) = operated.jobs("load")
        resume = '{"spec":{"suspend":false}}'
        cluster.kubectl("patch", "job", job["metadata"]["name"], "--type=merge", "-p", resume)
        operated.ready("sketch")
        operated.eventually(lambda: ("get", "persistentvolumeclaims") in proxy.used)

        operated.link(rate=SLOW)
        cluster.kubectl("annotate", "sdm", "sketch", "sd-operator.dev/reload=1")
        operated.eventually(lambda: len(operated.jobs("load")) == 2)
        suspend = '{"spec":{"suspend":true}}'
        cluster.kubectl("patch", "sdm", "sketch", "--type=merge", "-p", suspend)
        operated.eventually(lambda: ("delete", "jobs") in proxy.used)

        operated.delete()
        operated.gone()

    assert proxy.refused == []
    assert proxy.used == granted() - WITHOUT_REQUEST


def test_a_missing_right_is_seen(operated: Operated, tmp_path: Path) -> None:
    """The proxy refuses, and the operator says what it lacks."""
    cluster = operated.cluster
    rules = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "create"]}
        for rule in OPERATOR_RULES
    ]
    with RbacProxy(cluster.backend.operator_kubeconfig, {cluster.namespace: rules}) as proxy:
        operated.start(KUBECONFIG=str(proxy.write_kubeconfig(tmp_path / "proxy")))
        cluster.model("sketch", url=operated.link())
        operated.eventually(lambda: {"jobs", "events"} <= {one.resource for one in proxy.refused})

    assert {one.verb for one in proxy.refused} == {"create"}


JOB = ("jobs", "a", "b")


@pytest.mark.parametrize(
    ("method", "target", "asked"),
    [
        ("GET", "/apis/sd-operator.dev/v1alpha1", None),
        ("GET", "/version", None),
        ("GET", "/api/v1/pods?watch=true", Asked("watch", "", "pods")),
        ("GET", "/api/v1/pods?watch=false", Asked("list", "", "pods")),
        ("GET", "/api/v1/namespaces/a/pods/b/log", Asked("get", "", "pods/log", "a", "b")),
        ("POST", "/apis/batch/v1/namespaces/a/jobs", Asked("create", "batch", "jobs", "a")),
        (
            "DELETE",
            "/apis/batch/v1/namespaces/a/jobs/b",
            Asked("delete", "batch", "jobs", "a", "b"),
        ),
        ("GET", "/api/v1/namespaces/a", Asked("get", "", "namespaces", "", "a")),
    ],
)
def test_requests_are_read_in_the_words_of_rbac(
    method: str, target: str, asked: Asked | None
) -> None:
    """As an API server's authorizer reads them."""
    assert Asked.of(method, target) == asked
