"""The Ready condition says what was not checked, unless the loader rendered an image."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sd_api.card import NO_CARD
from sd_api.choices import ModelType
from sd_api.wire import Source
from sd_loader import stages
from sd_loader.handover import Converted, Fetched
from tests.support.loader.loadercli import load_request

REQUEST = load_request("org/model", model_type="huggingface", verify={"render": True})
CONVERTED = Converted(files={}, checked="names", warnings=("a warning",))
TYPE = ModelType.HUGGINGFACE
FETCHED = Fetched(kind="repo", path="repo", source=Source())
NOTE = "checked: names (shapes were not compared with the architecture)"


@dataclass
class Folder:
    """A folder that remembers what was written to it."""

    path: Path = Path()
    written: dict[str, bytes] = field(default_factory=dict)

    def write(self, name: str, content: bytes) -> None:
        """Add a file to `written`."""
        self.written[name] = content


def rendered(monkeypatch: pytest.MonkeyPatch, preview: bytes | None) -> Converted:
    """Return the loader's result after a rendering with this preview; None: no image was made."""
    result = SimpleNamespace(preview=preview, warning=None)
    render = SimpleNamespace(render=lambda *_arguments: result)
    monkeypatch.setitem(sys.modules, "sd_loader.render", cast("Any", render))
    folder = cast("Any", Folder())
    return stages._rendered(REQUEST, folder, CONVERTED, lambda _progress: None)[0]


def test_the_message_says_that_only_names_were_checked(monkeypatch):
    """The message ends with NOTE and `checked` is `names` if no image was rendered."""
    converted = rendered(monkeypatch, None)
    receipt = stages._receipt(REQUEST, TYPE, FETCHED, converted, NO_CARD, {})
    assert receipt.message == f"a warning; {NOTE}"
    assert receipt.artifact.checked == "names"


def test_a_rendered_model_needs_no_such_note(monkeypatch):
    """The message has no NOTE and `checked` is empty if an image was rendered."""
    converted = rendered(monkeypatch, b"image")
    receipt = stages._receipt(REQUEST, TYPE, FETCHED, converted, NO_CARD, {})
    assert receipt.message == "a warning"
    assert receipt.artifact.checked is None
