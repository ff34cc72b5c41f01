"""Tests of the sentences about a model: headline, conditions, Events, and the steps of its load."""

from __future__ import annotations

import pytest

from sd_api.reasons import EventReason, Reason
from sd_api.status import Phase
from sd_operator.gateway.gallery import steps, words
from sd_operator.resources.model import Model
from tests.support.gateway.gallerymodels import JOB, condition, failed, loading, ready
from tests.support.rules.observed import NOW, UID, body

STALLED = condition("Stalled", "True", "SourceNotFound", "No such file.")
SUSPENDED = {
    "phase": "Pending",
    "reason": "Suspended",
    "conditions": [condition("Ready", "False", "Suspended", "spec.suspend is true")],
}
KUBECTL = "kubectl --namespace art"


def headline(status: dict, **options: object) -> words.Headline:
    """Return the headline of a model."""
    return words.headline(Model.from_body(body(status, **options)), NOW)


@pytest.mark.parametrize(
    ("status", "options", "text"),
    [
        pytest.param({}, {}, "The operator has not processed this model yet.", id="new"),
        pytest.param(ready(UID, "sketch"), {}, "Loaded 0 s ago.", id="ready"),
        pytest.param(loading(42), {}, "The loader downloads the source.", id="loading"),
        pytest.param(
            loading(42, "Converting"), {}, "The loader converts the source", id="converting"
        ),
        pytest.param(SUSPENDED, {"suspend": True}, "Loading is suspended.", id="suspended"),
        pytest.param(failed(Reason.NOT_A_MODEL, "A web page"), {}, "A web page.", id="failed"),
        pytest.param(
            {**ready(UID, "sketch"), "conditions": [STALLED]},
            {},
            "The last load failed: No such file. The version that was loaded before can still be",
            id="reload-failed",
        ),
        pytest.param(
            {**loading(1), "conditions": [STALLED, condition("Reconciling", "True", "x")]},
            {},
            "The last attempt failed: No such file. The load is tried again.",
            id="tried-again",
        ),
        pytest.param(
            {**ready(UID, "sketch"), "phase": "Deleting"},
            {"deleted_ago": 5},
            "The model is being deleted",
            id="deleting",
        ),
        pytest.param(
            {
                "phase": "Deleting",
                "conditions": [condition("Stalled", "True", "CleanupFailed", "It is stuck.")],
            },
            {"deleted_ago": 5},
            "It is stuck.",
            id="deletion-is-stuck",
        ),
    ],
)
def test_headline_states_a_model_in_one_sentence(status, options, text):
    """A sentence says what the phase means, or what went wrong."""
    assert headline(status, **options).text.startswith(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("the file is a LoRA", "The file is a LoRA"),
        ("no such model", "No such model"),
        ("note.ckpt is a web page", "note.ckpt is a web page"),
        ("https://example.com is down", "https://example.com is down"),
        ("theatre is a name", "theatre is a name"),
    ],
)
def test_sentence_begins_with_a_capital_letter(message, text):
    """The first letter becomes a capital, unless the message begins with a name or a link."""
    model = Model.from_body(body(failed(Reason.NOT_A_MODEL, message)))
    assert words.headline(model, NOW).text == f"{text}."
    assert words.conditions(model, NOW)[0].message == f"{text}."


@pytest.mark.parametrize("reason", list(Reason))
def test_remedy_of_every_reason_is_shown_once(reason):
    """The headline has the remedy. Ready is shown without its message, which Stalled also has."""
    model = Model.from_body(body(failed(reason, "It is so")))
    head = words.headline(model, NOW)
    first, second = words.conditions(model, NOW)
    assert (head.text, head.tone) == ("It is so.", "bad")
    assert head.remedy == words.in_words(reason.remedy_for(JOB))
    assert (first.message, first.remedy, first.tone) == ("It is so.", head.remedy, "bad")
    assert first.words == "The last load failed or is stuck"
    assert (second.words, second.message) == ("The model cannot be opened", "")
    assert second.text == f"Ready is False: {reason.value}"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Set spec.url to a link", "Set “Source” to a link"),
        ("set the spec.modelType: lora", "set the “Type” lora"),
        ("Raise spec.job.resources", "Raise spec.job.resources"),
        (Reason.DAMAGED_FILE.remedy, "upload the original again; then press “Load again”. If"),
    ],
)
def test_messages_name_the_forms_labels_and_the_buttons(message, text):
    """Messages have the form's labels for fields, except for fields that the form lacks."""
    assert text in words.in_words(message)


def test_events_are_in_words():
    """The operator's Events have our words; Events of other programs show their reason."""
    items = [
        {"reason": reason, "message": "Set spec.url", "type": "Warning", "lastTimestamp": None}
        for reason in (*EventReason, "Odd", None)
    ]
    shown = words.events(items, NOW)
    ours = {event.reason for event in shown if event.words}
    assert ours == set(EventReason) - {EventReason.STORE_MISSING}, "that one is about a PVC"
    assert shown[0].words == "A load started"
    assert (shown[0].message, shown[0].warning, shown[0].ago) == ("Set “Source”", True, "")


def run(status: dict, **options: object) -> steps.Run | None:
    """Return the running load of a model."""
    return steps.run(Model.from_body(body(status, **options)), NOW)


@pytest.mark.parametrize(
    ("phase", "stage", "current"),
    [
        (Phase.QUEUED, None, "Queue"),
        (Phase.PENDING, None, "Start"),
        (Phase.DOWNLOADING, "Downloading", "Download"),
        (Phase.CONVERTING, "Converting", "Convert"),
        (Phase.VERIFYING, "Verifying", "Verify"),
        (Phase.VERIFYING, "Publishing", "Publish"),
    ],
)
def test_running_load_has_a_current_step(phase, stage, current):
    """The steps before the current one are done; the steps after it come next."""
    progress = {"progress": {"stage": stage, "text": "x"}} if stage else {}
    shown = run({"phase": phase.value, **progress})
    assert shown is not None
    states = [step.state for step in shown.steps]
    position = [step.title for step in shown.steps].index(current)
    assert states == ["done"] * position + ["current"] + ["next"] * (5 - position)


def test_running_load_shows_its_attempt_and_why_an_earlier_pod_failed():
    """The commands follow the model and the log of its Job."""
    failure = {"reason": "SourceUnreachable", "message": "no answer"}
    status = loading(42) | {"startTime": "2026-01-02T03:03:05Z", "lastFailure": failure}
    status["job"] = {"name": JOB, "attempt": 1}
    shown = run(status)
    assert shown is not None
    assert (shown.attempt, shown.since, shown.failure) == (2, "60 s ago", "no answer")
    assert shown.commands.splitlines() == [
        f"{KUBECTL} get stablediffusionmodel sketch --watch",
        f"{KUBECTL} logs job/{JOB} --all-containers --follow",
    ]
    waiting = run({"phase": "Queued", "startTime": "2026-01-02T03:03:05Z"})
    assert waiting is not None
    assert (waiting.since, waiting.commands.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (ready(UID, "sketch"), {}),
        (failed(Reason.NOT_A_MODEL, "x"), {}),
        (SUSPENDED, {"suspend": True}),
        (loading(1), {"deleted_ago": 1}),
    ],
    ids=["ready", "failed", "suspended", "deleting"],
)
def test_model_that_does_not_load_has_no_steps(status, options):
    """`run` returns None for a finished, failed or suspended load, and during a deletion."""
    assert run(status, **options) is None
