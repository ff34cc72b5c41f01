"""Tests of lists as kubectl reads and applies them. They also hold for a real API server."""

from __future__ import annotations

import pytest
import yaml

from tests.support.kube.cluster import model_manifest
from tests.support.kube.rawapi import LINK, scratch

pytestmark = pytest.mark.cluster

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.fixture
def models(backend):
    """Raw access to the models of a new namespace."""
    with scratch(backend) as models:
        yield models


@pytest.mark.parametrize(
    ("query", "kind", "has_spec"),
    [
        pytest.param("", "PartialObjectMetadata", False, id="default"),
        pytest.param("?includeObject=Metadata", "PartialObjectMetadata", False, id="metadata"),
        pytest.param("?includeObject=Object", "StableDiffusionModel", True, id="object"),
        pytest.param("?includeObject=None", None, False, id="none"),
    ],
)
def test_rows_of_a_table_have_the_part_of_the_object_that_the_client_wants(
    models, query, kind, has_spec
):
    """Each row has the metadata, the whole object or nothing, as the query includeObject says.

    `kubectl get --sort-by` needs whole objects.
    """
    models.create("a")

    for path in (models.path, f"{models.path}/a"):
        (row,) = models.api.ask("GET", f"{path}{query}", Accept=TABLE).body["rows"]
        body = row["object"] or {}
        assert row["cells"][0] == "a"
        assert body.get("kind") == kind
        assert ("spec" in body) is has_spec


def test_unknown_part_of_the_object_is_rejected(models):
    """The message lists the possible values."""
    response = models.api.ask("GET", f"{models.path}?includeObject=All", Accept=TABLE)

    assert response.code == 400
    assert "must be 'Metadata', 'Object', 'None', or empty" in response.body["message"]


def test_kubectl_sorts_and_applies_lists(cluster):
    """A file of kind List is applied item by item, and unknown fields are errors of its items."""
    names = ("b", "c", "a")
    items = [model_manifest(name, url=LINK, priority=n) for n, name in enumerate(names)]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}

    applied = cluster.kubectl_apply(listed)

    assert applied.count("created") == 3
    by_priority = cluster.kubectl("get", "sdm", "--sort-by=.spec.priority", "--no-headers")
    assert [line.split()[0] for line in by_priority.splitlines()] == ["b", "c", "a"]
    items[0]["spec"]["colour"] = "red"
    assert 'unknown field "spec.colour"' in cluster.refused(
        "apply", "-f", "-", stdin=yaml.safe_dump(listed)
    )
