"""Tests of the tables and panels of `kubectl sdm`, without a cluster."""

from __future__ import annotations

import io
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from rich.console import Console, RenderableType

from sd_api.reasons import Reason
from sd_operator.base import times
from sd_operator.cli import views
from sd_operator.cli.__main__ import Session, list_models, options_first
from sd_operator.cli.kubectl import Kubectl
from tests.support.rules.bodies import condition, resource
from tests.support.rules.observed import CLAIM_UID, NOW, WANTED, body

PROGRESS = {"stage": "Downloading", "percent": 42, "text": "42% of 2.1 GB, 120 MB/s, 10 s left"}
ARTIFACT = {
    "path": "sketch",
    "immutablePath": f".store/uid/{WANTED}",
    "claimName": "models",
    "claimUID": CLAIM_UID,
    "digest": "blake3:" + "0" * 64,
    "sizeBytes": 2_100_000_000,
    "size": "2.1 GB",
    "sharedBytes": 500_000_000,
    "files": 12,
    "baseModel": "sd-1",
    "lastUpdateTime": times.stamp(NOW),
}


def printed(content: RenderableType) -> str:
    """Return what a terminal without colours prints."""
    console = Console(file=io.StringIO(), width=160)
    console.print(content)
    return console.file.getvalue()


READY = resource(condition("Ready"), phase="Ready", modelType="custom_ckpt", artifact=ARTIFACT)
STALLED = resource(
    condition("Ready", "False", "SourceNotFound"),
    condition("Stalled", "True", "SourceNotFound", "HTTP 404"),
    phase="Failed",
    reason="SourceNotFound",
)


def test_list_shows_the_progress_the_reason_or_the_size() -> None:
    """A loading model shows progress, a stalled one its reason, a loaded one its size."""
    loading = resource(phase="Downloading", progress=PROGRESS)
    lines = printed(views.model_table([READY, loading, STALLED], NOW)).splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "TYPE", "PHASE", "PROGRESS", "BASE", "SIZE", "AGE"],
        ["sketch", "custom_ckpt", "Ready", "sd-1", "2.1", "GB", "3", "min"],
        ["sketch", "Downloading", *str(PROGRESS["text"]).split(), "3", "min"],
        ["sketch", "Failed", "SourceNotFound", "3", "min"],
    ]


def test_list_of_all_namespaces_has_a_namespace_column() -> None:
    """The namespace is the first column."""
    lines = printed(views.model_table([READY], NOW, everywhere=True)).splitlines()
    assert lines[0].startswith("NAMESPACE")
    assert lines[1].split()[:2] == ["art", "sketch"]


def test_list_does_not_cut_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A narrow terminal wraps a long line, so grep finds the whole line, as with kubectl."""
    metadata = {**STALLED["metadata"], "name": "n" * 63, "namespace": "s" * 63}
    kubectl = SimpleNamespace(list=lambda *_, **__: [{**STALLED, "metadata": metadata}])
    context = SimpleNamespace(obj=Session(cast("Kubectl", kubectl), Console(width=40)))
    list_models(cast("typer.Context", context), everywhere=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["s" * 63, "n" * 63, "Failed", "SourceNotFound"]


def test_panel_of_a_loaded_model_shows_its_path_and_size() -> None:
    """The panel has the phase, the path in the PVC, the size and the shared bytes."""
    text = printed(views.model_panel(READY, [], NOW))
    for line in ("sketch in art: Ready", "sketch in PVC models", "2.1 GB in 12 files, 500 MB"):
        assert line in text
    single = {**READY["status"], "artifact": {**ARTIFACT, "files": 1, "sharedBytes": 0}}
    assert "2.1 GB in 1 file " in printed(views.model_panel({**READY, "status": single}, [], NOW))


def test_panel_shows_the_model_card() -> None:
    """The panel has the card's texts, without control characters."""
    card = {"title": "Fish\x1b[31m", "triggerWords": ["fishy", "scales"], "license": "MIT"}
    status = {**READY["status"], "artifact": {**READY["status"]["artifact"], "card": card}}
    text = printed(views.model_panel({**READY, "status": status}, [], NOW))
    assert "trigger words" in text
    assert "fishy, scales" in text
    assert "\x1b[31m" not in text


def test_panel_of_a_stalled_model_shows_the_remedy() -> None:
    """The panel has the Stalled condition and the full remedy of its reason."""
    text = printed(views.model_panel(STALLED, [], NOW))
    assert "✗ Stalled=True SourceNotFound: HTTP 404" in text
    assert Reason.SOURCE_NOT_FOUND.remedy in text


def test_panel_of_a_running_load_shows_a_progress_bar() -> None:
    """The bar stands below the text of the progress."""
    text = printed(views.model_panel(resource(phase="Downloading", progress=PROGRESS), [], NOW))
    assert f"Downloading: {PROGRESS['text']}" in text
    [bar] = [line for line in text.splitlines() if "━" in line]
    assert set(bar.strip()) <= {"━", "╸", "╺"}


def test_panel_of_a_load_that_is_tried_again_shows_its_last_failure() -> None:
    """The panel shows status.lastFailure: the conditions describe the running load."""
    last = {"reason": "RateLimited", "message": "Pod sketch-1 failed (RateLimited: 429)"}
    text = printed(views.model_panel(resource(phase="Downloading", lastFailure=last), [], NOW))
    assert "last failure" in text
    assert "RateLimited: Pod sketch-1 failed (RateLimited: 429)" in text


def test_panel_of_a_running_load_has_no_cross() -> None:
    """While a load runs, no condition has a cross, although Ready is not true."""
    loading = resource(
        condition("Ready", "False", "Downloading"),
        condition("Reconciling", "True", "Downloading"),
        condition("Stalled", "False", "Downloading"),
        condition("WebhookDelivered", "False", "DeliveryPending"),
        phase="Downloading",
        progress=PROGRESS,
    )
    text = printed(views.model_panel(loading, [], NOW))
    assert "✗" not in text
    assert "… Ready=False Downloading" in text
    assert "✓ Stalled=False" in text


def test_panel_marks_each_problem_with_a_cross() -> None:
    """The conditions of a failed load and of an undelivered webhook call have a cross."""
    text = printed(
        views.model_panel(
            resource(
                condition("Ready", "False", "SourceNotFound"),
                condition("WebhookDelivered", "False", "DeliveryFailed"),
            ),
            [],
            NOW,
        )
    )
    assert "✗ Ready=False" in text
    assert "✗ WebhookDelivered=False" in text


def test_panel_of_a_model_that_never_loaded_shows_the_source_of_its_spec() -> None:
    """The panel shows the url of the spec, without its secrets."""
    model = resource(condition("Stalled", "True", "SourceNotFound"), phase="Failed")
    model["spec"]["url"] = "https://user:word@example.com/model.ckpt?token=secret"
    text = printed(views.model_panel(model, [], NOW))
    assert "example.com/model.ckpt" in text
    assert "word" not in text
    assert "secret" not in text


def test_panel_shows_events_without_control_characters() -> None:
    """An event has its age, and an escape sequence in its message is made harmless."""
    event = {
        "lastTimestamp": times.stamp(NOW - timedelta(seconds=50)),
        "reason": "LoadStarted",
        "message": "\x1b[2Jgone [bold]",
    }
    text = printed(views.model_panel(READY, [event], NOW))
    assert "50 s ago  LoadStarted: �[2Jgone [bold]" in text


@pytest.mark.parametrize(
    ("model", "settled"),
    [
        pytest.param(READY, True, id="loaded"),
        pytest.param(STALLED, True, id="stalled"),
        pytest.param(body(), False, id="not observed yet"),
        pytest.param(
            resource(condition("Ready"), observed=0, artifact=ARTIFACT),
            False,
            id="edit not observed yet",
        ),
        pytest.param(
            resource(condition("Ready"), condition("Reconciling"), artifact=ARTIFACT),
            False,
            id="loading a new version",
        ),
        pytest.param(
            resource(
                condition("Ready"), artifact={**ARTIFACT, "immutablePath": f".store/uid/{'0' * 16}"}
            ),
            False,
            id="reload not observed yet",
        ),
    ],
)
def test_model_is_settled_when_it_is_loaded_or_stalled(
    model: dict[str, Any], settled: bool
) -> None:
    """A model is not settled while the operator has yet to act on an edit or a reload."""
    assert views.is_settled(model) is settled


@pytest.mark.parametrize(
    ("typed", "reordered"),
    [
        pytest.param("list -A", "list -A", id="no kubectl option"),
        pytest.param("status a -n art", "-n art status a", id="short option"),
        pytest.param("logs a --namespace=art -f", "--namespace=art logs a -f", id="with ="),
        pytest.param("--context x doctor", "--context x doctor", id="already first"),
        pytest.param("list -n", "-n list", id="without its value"),
    ],
)
def test_kubectl_options_may_stand_after_the_command(typed: str, reordered: str) -> None:
    """The options move before the command, where the parser expects them."""
    assert options_first(typed.split()) == reordered.split()
