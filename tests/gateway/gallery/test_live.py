"""Tests of the gallery's server-sent events: their content, and how streams start and end."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from html import unescape

import pytest

from sd_api.reasons import Reason
from sd_operator.base.errors import UnavailableError
from sd_operator.clients import kube
from sd_operator.gateway.feed import Change
from sd_operator.gateway.gallery import live, routes
from sd_operator.gateway.models import Models
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerymodels import failed, loading, ready
from tests.support.gateway.gallerysite import Site, serve
from tests.support.rules.observed import UID, body

LINK = "https://example.com/model.safetensors"
DONE = ready(UID, "sketch")


def at(status: dict, version: int = 8, uid: str = UID, name: str = "sketch") -> dict:
    """Return a model at a later resourceVersion."""
    model = body(status, name=name)
    model["metadata"] |= {"resourceVersion": str(version), "uid": uid}
    return model


@pytest.mark.parametrize(
    ("change", "names", "stale"),
    [
        pytest.param(Change(body(loading(10))), "", "", id="same-version"),
        pytest.param(Change(at(loading(11))), "state-sketch", "", id="progress"),
        pytest.param(
            Change(at(loading(26))), "state-sketch news news-sketch", "", id="past-a-quarter"
        ),
        pytest.param(
            Change(at(loading(11, "Verifying"))),
            "state-sketch news news-sketch",
            "listing changed-sketch",
            id="another-stage",
        ),
        pytest.param(
            Change(at(DONE)),
            "state-sketch news news-sketch",
            "listing changed-sketch",
            id="another-phase",
        ),
        pytest.param(
            Change(at(failed(Reason.NOT_A_MODEL, "x"))),
            "state-sketch news news-sketch",
            "listing changed-sketch",
            id="failed",
        ),
        pytest.param(Change(at(loading(10))), "", "", id="no-visible-change"),
        pytest.param(
            Change(at({}, name="new", uid="new")), "news news-new", "listing changed-new", id="new"
        ),
        pytest.param(
            Change(at(loading(10)), gone=True), "gone-sketch news-sketch", "listing", id="gone"
        ),
    ],
)
def test_messages_update_the_pages_that_show_a_model(change, names, stale):
    """Progress replaces a part of a page. After other changes, pages fetch themselves again."""
    updates = live.Updates([body(loading(10))])
    assert [name for name, _ in updates.messages(change)] == names.split()
    assert list(updates.stale) == stale.split()
    assert list(updates.messages(change)) == [], "a change has messages only once"


def test_digest_depends_only_on_the_models_versions():
    """The order of the models does not matter; any changed or added model does."""
    one, two = at({}, 1), at({}, 2, uid="two")
    assert live.digest([one, two]) == live.digest([two, one])
    assert live.digest([one]) != live.digest([at({}, 3)])
    assert live.digest([one]) != live.digest([one, two])


# Over HTTP


STREAM = "/gallery/live"


def messages(events: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the HTML of each message; comments are left out."""
    for _, data in events:
        if data != "live":
            message = json.loads(data)
            yield message["name"], message.get("html", "")


def until(events: Iterator[tuple[str, str]], name: str, text: str = "") -> str:
    """Return the HTML of the next message that has this name and contains this text."""
    return next(html for kind, html in messages(events) if kind == name and text in html)


@pytest.mark.cluster
def test_list_gets_events_as_models_change(shared_cluster, site):
    """Events report a new model, its progress and its deletion."""
    gallerymodels.make(shared_cluster, "before", url=LINK)
    with site.stream(STREAM) as events:
        assert next(events) == ("", "live")
        gallerymodels.make(shared_cluster, "sketch", loading(10), url=LINK)
        until(events, "listing")
        gallerymodels.set_status(shared_cluster, "sketch", loading(40))
        # A slow cluster sets the first status so late that it has an event of its own.
        card = until(events, "state-sketch", 'value="40"')
        assert 'value="40"' in card
        assert "42 s left" in card
        assert until(events, "news", "40%") == f"sketch: {loading(40)['progress']['text']}"
        shared_cluster.kubectl("delete", "sdm", "sketch")
        until(events, "gone-sketch", "was deleted")
        until(events, "listing")


@pytest.mark.cluster
def test_model_page_gets_events_as_its_model_changes(shared_cluster, site):
    """Events report progress, the end of the load, and the deletion."""
    gallerymodels.make(shared_cluster, "one", loading(10), url=LINK)
    with site.stream(STREAM) as events:
        gallerymodels.set_status(shared_cluster, "one", loading(11))
        until(events, "state-one", 'value="11"')
        uid = shared_cluster.get("sdm", "one")["metadata"]["uid"]
        gallerymodels.set_status(shared_cluster, "one", {**ready(uid, "one"), "progress": None})
        until(events, "changed-one")
        shared_cluster.kubectl("delete", "sdm", "one")
        until(events, "gone-one", "one was deleted")


@pytest.mark.cluster
@pytest.mark.parametrize(("path", "name"), [("/", "listed"), ("/models/paged", "paged")])
def test_page_asks_whether_it_missed_a_change(shared_cluster, site, path, name):
    """The response is empty while the page shows the models as they are, otherwise a new page."""
    gallerymodels.make(shared_cluster, name, loading(10), url=LINK)
    text = site.get(f"/gallery{path}").text
    (again,) = re.findall(r'hx-get="([^"]+)" hx-trigger="refresh"', text)
    assert site.get(unescape(again)).code == 204
    gallerymodels.set_status(shared_cluster, name, loading(90))
    page = site.get(unescape(again))
    assert page.code == 200
    assert 'value="90"' in page.text


@pytest.mark.cluster
def test_all_streams_share_one_watch(shared_cluster, site, monkeypatch):
    """The watch ends with the last stream and starts again with the next one."""
    running: Counter[str] = Counter()
    watch = kube.Api.watch

    async def counted(self, resource, namespace, since):
        running["started"] += 1
        running["now"] += 1
        try:
            async for event in watch(self, resource, namespace, since):
                yield event
        finally:
            running["now"] -= 1

    monkeypatch.setattr(kube.Api, "watch", counted)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    path = STREAM
    with site.stream(path) as first, site.stream(path) as second, site.stream(path) as third:
        gallerymodels.make(shared_cluster, "seen-by-all", url=LINK)
        for events in (first, second, third):
            assert until(events, "news").startswith("seen-by-all")
        assert running == {"started": 1, "now": 1}
    eventually(lambda: running["now"] == 0)
    with site.stream(STREAM) as again:
        gallerymodels.make(shared_cluster, "seen-again", url=LINK)
        assert until(again, "news").startswith("seen-again")
        assert running == {"started": 2, "now": 1}


@pytest.mark.cluster
def test_quiet_stream_sends_heartbeats(site, monkeypatch):
    """A stream without changes sends heartbeats.

    So proxies keep it open, and the gateway notices a closed browser.
    """
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    with site.stream(STREAM) as events:
        assert [next(events) for _ in range(3)] == [
            ("", "live"),
            ("", '{"name": "ping"}'),
            ("", '{"name": "ping"}'),
        ]


@pytest.mark.cluster
def test_streams_of_a_key_are_limited(site, monkeypatch):
    """Another stream is rejected until one of the open streams is closed."""
    monkeypatch.setattr(routes, "STREAMS_PER_KEY", 2)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    path = STREAM
    with site.stream(path) as first, site.stream(path) as second:
        next(first), next(second)
        response = site.get(path)
        assert (response.code, response.headers["Retry-After"]) == (429, "60")
    eventually(lambda: _is_open(site, path))


@pytest.mark.cluster
def test_streams_that_open_at_once_are_limited(site, monkeypatch):
    """A stream counts as soon as it is requested, not when its first event is sent."""
    monkeypatch.setattr(routes, "STREAMS_PER_KEY", 2)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    path, all_models = STREAM, Models.all

    async def slowly(self, namespace):
        await asyncio.sleep(0.5)
        return await all_models(self, namespace)

    monkeypatch.setattr(Models, "all", slowly)
    with ThreadPoolExecutor(8) as pool, ExitStack() as open_streams:

        def is_open(_: int) -> bool:
            try:
                open_streams.enter_context(site.stream(path))
            except AssertionError:
                return False
            return True

        assert sum(pool.map(is_open, range(8))) == 2
    eventually(lambda: _is_open(site, path))


@pytest.mark.cluster
def test_stream_that_fails_does_not_count(site, monkeypatch):
    """A stream that cannot begin does not use up the streams of its key."""
    monkeypatch.setattr(routes, "STREAMS_PER_KEY", 1)

    async def failing(*_):
        raise UnavailableError("down")

    with monkeypatch.context() as patch:
        patch.setattr(Models, "all", failing)
        # The server may notice a little later that the stream of the previous test is closed.
        eventually(lambda: site.get(STREAM).code == 503)
        assert [site.get(STREAM).code for _ in range(3)] == [503] * 3
    assert _is_open(site, STREAM)


@pytest.mark.cluster
def test_a_stream_ends_with_its_session(shared_cluster, tmp_path, monkeypatch):
    """The stream ends when the key of its session is removed from the key file."""
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    with serve(shared_cluster, tmp_path) as site:
        site.login()
        with site.stream(STREAM) as events:
            next(events)
            site.keys_file.write_text("# no keys\n")
            until(events, "ended")
            assert list(events) == []


def _is_open(site: Site, path: str) -> bool:
    try:
        with site.stream(path):
            return True
    except AssertionError:
        return False


def eventually(condition) -> None:
    """Wait until the condition is true, for at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
