"""Tests of docs/argocd-health.lua, which Argo CD runs with the object as `obj`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.charts.helmcharts import ROOT

Json = dict[str, Any]

SCRIPT = (ROOT / "docs" / "argocd-health.lua").read_text()
PUBLISHED = {"type": "Ready", "status": "True", "reason": "Loaded", "message": "Loaded"}
LOADING = {"type": "Ready", "status": "False", "reason": "Downloading", "message": "from the Hub"}
RECONCILING = {"type": "Reconciling", "status": "True", "reason": "Downloading"}
STALLED = {"type": "Stalled", "status": "True", "reason": "NotAModel", "message": "a page"}
FAILED = {"type": "Ready", "status": "False", "reason": "NotAModel", "message": "a page"}


def health(obj: Json) -> tuple[str, str]:
    """Return the health that the script returns."""
    lupa = pytest.importorskip("lupa", reason="lupa is not installed: pip install -e .[dev]")
    lua = lupa.LuaRuntime()
    lua.globals().obj = lua.table_from(obj, recursive=True)
    answer = lua.execute(SCRIPT)
    assert isinstance(answer.message, str)
    return answer.status, answer.message


def model(*conditions: Json, observed: int | None = 2, **parts: Any) -> Json:
    """Return a model of generation 2 with these conditions."""
    status: Json = {"conditions": list(conditions)}
    if observed is not None:
        status["observedGeneration"] = observed
    made = {"metadata": {"generation": 2}, "spec": {"url": "org/name"}, "status": status}
    return {**made, **parts}


@pytest.mark.parametrize(
    ("obj", "status", "message"),
    [
        pytest.param(model(PUBLISHED), "Healthy", "Loaded", id="ready"),
        pytest.param(model(LOADING, RECONCILING), "Progressing", "from the Hub", id="loading"),
        pytest.param(
            model(
                status={
                    "observedGeneration": 2,
                    "conditions": [PUBLISHED, RECONCILING],
                    "progress": {"text": "54% of 2.1 GB"},
                }
            ),
            "Progressing",
            "54% of 2.1 GB",
            id="reloading, with progress",
        ),
        pytest.param(model(FAILED, STALLED), "Degraded", "NotAModel: a page", id="failed"),
        pytest.param(model(PUBLISHED, STALLED), "Degraded", "NotAModel: a page", id="failed again"),
        pytest.param(
            model(FAILED, STALLED, RECONCILING), "Degraded", "NotAModel: a page", id="tried again"
        ),
        pytest.param(
            model(PUBLISHED, observed=1), "Progressing", "Waiting for the operator", id="edited"
        ),
        pytest.param(
            {"metadata": {"generation": 1}, "spec": {}},
            "Progressing",
            "Waiting for the operator",
            id="just applied",
        ),
        pytest.param(
            model({**LOADING, "reason": "Suspended", "message": ""}, spec={"suspend": True}),
            "Suspended",
            "Suspended",
            id="suspended",
        ),
        pytest.param(
            model(
                {**LOADING, "reason": "Deleting", "message": "clean-up Job x is running"},
                metadata={"generation": 3, "deletionTimestamp": "2026-01-01T00:00:00Z"},
            ),
            "Progressing",
            "clean-up Job x is running",
            id="deleted",
        ),
    ],
)
def test_argo_cd_health_follows_the_conditions(obj: Json, status: str, message: str) -> None:
    """After a failed reload the model is not healthy, although its previous version is served."""
    assert health(obj) == (status, message)
