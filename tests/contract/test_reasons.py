"""The reasons of conditions and Events are defined in sd_api.reasons only."""

from __future__ import annotations

import ast

import pytest

from sd_api.reasons import EventReason, ReadyReason, Reason, WebhookReason
from sd_api.status import ConditionType, Phase
from sd_api.wire import Stage
from tests.support.paths import ROOT

ENUMS = (ReadyReason, WebhookReason, EventReason, Reason, ConditionType)
WORDS_OF_KUBERNETES = {"Ready", "Pending", "DeadlineExceeded", "BackoffLimitExceeded"}
"""Phases, conditions and reasons of Pods and Jobs have these names too."""
SOURCES = [
    path
    for folder in ("operator", "loader-image", "tools", "devkit")
    for path in sorted((ROOT / folder).rglob("*.py"))
    # Standalone stands in for Kubernetes, and writes Kubernetes' own conditions.
    if "standalone" not in path.relative_to(ROOT).parts
]


def literals(source: str) -> set[str]:
    """Return all string literals of a module."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


@pytest.mark.parametrize("folder", ["operator", "loader-image", "tools", "devkit"])
def test_no_reason_is_a_literal_elsewhere(folder: str) -> None:
    """Code names the enum member, so mypy finds a renamed or misspelt reason."""
    reasons = {member.value for enum in ENUMS for member in enum} - WORDS_OF_KUBERNETES
    written = {
        str(path.relative_to(ROOT)): literals(path.read_text()) & reasons
        for path in SOURCES
        if path.is_relative_to(ROOT / folder)
    }
    assert written
    assert {path: words for path, words in written.items() if words} == {}


def test_a_literal_would_be_found() -> None:
    """The search for literals of the previous test finds call arguments, but ignores comments."""
    assert "Loaded" in literals("f'{x}'; put(reason='Loaded')")
    assert "Loaded" not in literals("ReadyReason.LOADED  # Loaded")


@pytest.mark.parametrize("phase", [Phase.DOWNLOADING, Phase.CONVERTING, Phase.VERIFYING])
def test_a_running_load_has_its_phase_as_reason(phase: Phase) -> None:
    """Stages, phases and reasons of a running load have the same names."""
    assert ReadyReason(phase.value).name == phase.name
    assert Stage(phase.value).name == phase.name


def test_a_reason_is_read_from_a_condition() -> None:
    """A word that this version does not know as a Reason is read as None."""
    assert Reason.parse("TooLarge") is Reason.TOO_LARGE
    assert Reason.parse("Loaded") is None


def test_a_remedy_names_the_job() -> None:
    """In a remedy with the command that shows the log, the Job's name is filled in."""
    remedy = Reason.LOADER_CRASHED.remedy_for("sketch-0123456789")
    assert "kubectl logs job/sketch-0123456789 --all-containers" in remedy
    assert "<" not in remedy


@pytest.mark.parametrize("reason", list(Reason))
def test_a_remedy_leaves_room_for_the_cause(reason: Reason) -> None:
    """With each remedy, a condition's message has room for the cause and the next attempt."""
    assert len(reason.remedy_for("j" * 52)) <= 250
