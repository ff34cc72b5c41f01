"""Tests of the examples that users copy."""

import pytest

from tests.support.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.cluster
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_api_server_accepts_every_example(shared_cluster, example):
    """The examples are sent as kubectl sends them, with strict validation."""
    assert "created" in shared_cluster.kubectl_apply(example.read_text())
