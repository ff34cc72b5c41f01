"""Whatever Civitai's API answers, a load succeeds or ends with a reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.tiny import write_checkpoint
from sd_api.choices import Pictures
from sd_api.sites.civitai_card import card_of_civitai, picture_of
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.settings import Settings
from sd_loader.source.civitai import Found, look_up
from sd_loader.source.civitai_api import CivitaiApi
from sd_loader.source.locate import locate
from sd_loader.source.ref import Checks, SourceRef
from tests.support.loader import fetches
from tests.support.models.conversions import load_request
from tests.support.models.lorashapes import LORA

PAGE = "https://civitai.com/models/7"
MODEL, VERSION = "models/7", "model-versions/71"
Answers = dict[str, Any]
"""The answers of the API, by their paths."""

HOSTILE = st.one_of(
    st.sampled_from(
        [
            *(None, True, -1, 0, 10**30, 1.5, float("inf"), [], {}, [[[]]], {"id": {}}),
            *(
                "",
                "javascript:alert(1)",
                "data:text/html,x",
                "file:///etc/passwd",
                "//x",
                "http://",
            ),
            *("<script>alert(1)</script>", "\u202e\x1b[31m\x00\n", "../../etc/passwd", "\ud800"),
            "x" * 100_000,
            [{"id": 1}] * 5_000,
        ]
    ),
    st.integers(),
    st.text(max_size=30),
)


FEW = profile(max_examples=profile().max_examples // 4)
"""A quarter of the profile's examples: each is a whole answer, which is read and made a card."""


class Gone:
    """Stands for a key that is removed."""


def paths(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside an answer."""
    keys: Iterable[Any] = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield (*path, key)
        yield from paths(value[key], (*path, key))


def mutated(answers: Answers, changes: Mapping[tuple[Any, ...], object]) -> Answers:
    """Return the answers with other values at these paths."""
    changed = copy.deepcopy(answers)
    for path, value in changes.items():
        with suppress(KeyError, IndexError, TypeError):  # Another change has removed the path.
            *parents, key = path
            place = changed
            for parent in parents:
                place = place[parent]
            if value is Gone:
                del place[key]
            else:
                place[key] = value
    return changed


@pytest.fixture
def answers(civitai: FakeCivitai, tmp_path: Path) -> Answers:
    """The answers for a model with one version, two files and two images."""
    path = tmp_path / "lora"
    write_checkpoint(path, LORA)
    url = civitai.serve_file("/images/cat.png", b"\x89PNG")
    images = [{"url": url, "nsfwLevel": 1, "type": "image"}, {"url": url, "type": "video"}]
    files = [File(700, path), File(701, path, format="PickleTensor", size="full")]
    version = Version(71, files, trained_words=("cat",), images=images)
    civitai.add(Model(7, "LORA", [version]))
    found = {}
    for name in (MODEL, VERSION):
        with urlopen(f"{civitai.url}/api/v1/{name}") as response:
            found[name] = json.load(response)
    return found


def changes(answers: Answers) -> st.SearchStrategy[dict[tuple[Any, ...], object]]:
    """Return a strategy that puts other values at one to three paths of the answers."""
    places = st.sampled_from([path for path in paths(answers) if len(path) > 1])
    return st.dictionaries(places, HOSTILE | st.just(Gone), min_size=1, max_size=3)


def check_inert(found: Found, endpoint: str) -> None:
    """Assert that the found facts can be published.

    Download and page are links to Civitai; the picture is any http(s) link.
    """
    assert found.place.url.startswith(f"{endpoint}/api/download/models/")
    assert found.facts is not None
    found.facts.model_dump_json()
    card = card_of_civitai(found.facts, endpoint)
    card.encode()
    assert card.page is None or card.page.startswith(f"{endpoint}/models/")
    picture = picture_of(found.facts, Pictures.ALL)
    assert picture is None or picture.startswith(("http://", "https://"))


def test_any_value_at_any_key_is_read_or_refused(
    answers: Answers, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The look-up finds facts that can be published, or raises a LoaderError.

    The test replaces the HTTP call, because only the values differ.
    """
    client = HttpClient(settings, retries=fetches.QUICK)
    ref = SourceRef(PAGE, "spec.url", None)
    place = locate(ref, settings)
    served: Answers = {}
    monkeypatch.setattr(CivitaiApi, "_get", lambda _api, path, _subject: served.get(path, {}))

    @FEW
    @given(changes(answers))
    def look(changed: dict[tuple[Any, ...], object]) -> None:
        served.update(mutated(answers, changed))
        with suppress(LoaderError):
            check_inert(
                look_up(place, ref, Checks(), client, tmp_path), client.settings.civitai_endpoint
            )
        (tmp_path / "civitai.json").unlink(missing_ok=True)

    look()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_download_link_loads_whatever_the_api_answers(
    civitai: FakeCivitai, answers: Answers, settings: Settings
) -> None:
    """The link itself serves the file, so the load does not depend on the API."""

    @given(changes(answers))
    def load(changed: dict[tuple[Any, ...], object]) -> None:
        for name, answer in mutated(answers, changed).items():
            civitai.serve_file(f"/api/v1/{name}", json.dumps(answer).encode())
        request = load_request(url=f"{civitai.url}/api/download/models/71", model_type=None)
        with TemporaryDirectory() as folder:
            fetched = fetches.fetch(request, settings, Path(folder))
        assert fetched.source.sha256 is not None
        assert fetched.model_type is not None

    load()


@pytest.mark.parametrize(
    ("body", "is_read"),
    [
        pytest.param(b"<html>", False, id="a page"),
        pytest.param(b'{"a": ' + b"[" * 50_000, False, id="deep"),
        pytest.param(
            b'{"a": "' + b"x" * (10 << 20) + b'"}', False, id="10 MB", marks=pytest.mark.slow
        ),
        pytest.param(b"{}", False, id="empty", marks=pytest.mark.slow),
        pytest.param(b'"description": "\\ud83d", ', True, id="half a surrogate pair"),
        pytest.param(
            b'"description": ' + b"9" * 5_000 + b", ",
            True,
            id="many digits",
            marks=pytest.mark.slow,
        ),
        pytest.param(b'"description": ' + b"[" * 5_000 + b"]" * 5_000 + b", ", True, id="a list"),
        pytest.param(b'"description": "m\xe2\x82", ', True, id="not UTF-8", marks=pytest.mark.slow),
    ],
)
def test_an_odd_description_is_read_and_other_content_is_refused(
    civitai: FakeCivitai, answers: Answers, settings: Settings, body: bytes, is_read: bool
) -> None:
    """A creator writes the description, so it must not make the answer unreadable."""
    if is_read:
        body = b"{" + body + json.dumps(answers[VERSION]).encode()[1:]
    civitai.serve_file(f"/api/v1/{VERSION}", body)
    api = CivitaiApi(HttpClient(settings, retries=fetches.QUICK), civitai.url)
    if is_read:
        assert len(api.version(71).files) == 2
    else:
        with suppress(LoaderError):
            assert api.version(71).files == ()
