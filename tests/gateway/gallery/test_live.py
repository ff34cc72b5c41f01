"""The gallery's server-sent events: what they say, and how streams begin, last and end."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from sd_api.reasons import Reason
from sd_operator.clients import kube
from sd_operator.gateway.feed import Change
from sd_operator.gateway.gallery import live, routes
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerymodels import failed, loading, ready
from tests.support.gateway.gallerysite import Site, serve
from tests.support.rules.observed import UID, body

LINK = "https://example.com/model.safetensors"
DONE = ready(UID, "sketch")


def at(status: dict, version: int = 8, uid: str = UID, name: str = "sketch") -> dict:
    """A model at a later version."""
    made = body(status, name=name)
    made["metadata"] |= {"resourceVersion": str(version), "uid": uid}
    return made


@pytest.mark.parametrize(
    ("after", "events", "stale"),
    [
        pytest.param(Change(body(loading(10))), [], False, id="the-page-has-it"),
        pytest.param(Change(at(loading(11))), ["card-sketch"], False, id="progress"),
        pytest.param(Change(at(loading(26))), ["card-sketch", "news"], False, id="a-quarter"),
        pytest.param(Change(at(DONE)), ["card-sketch", "news"], True, id="another-phase"),
        pytest.param(Change(at(loading(10))), [], False, id="nothing-that-shows"),
        pytest.param(Change(at({}, name="new", uid="new")), ["news"], True, id="new"),
        pytest.param(Change(at(loading(10)), gone=True), [], True, id="gone"),
    ],
)
def test_the_list_is_told_what_changes_on_it(after, events, stale):
    """Cards one by one; the whole list where its members or their phases change."""
    teller = live.ListTeller([body(loading(10))])
    assert [name for name, _ in teller.tell(after)] == events
    assert teller.stale is stale
    assert list(teller.tell(after)) == [], "and only once"


@pytest.mark.parametrize(
    ("after", "events", "stale"),
    [
        pytest.param(Change(body(loading(10))), [], False, id="the-page-has-it"),
        pytest.param(Change(at(loading(11))), ["state"], False, id="progress"),
        pytest.param(Change(at(loading(50))), ["state", "news"], False, id="a-quarter"),
        pytest.param(Change(at(DONE)), ["news"], True, id="done"),
        pytest.param(Change(at(failed(Reason.NOT_A_MODEL, "x"))), ["news"], True, id="failed"),
        pytest.param(Change(at(DONE, name="other")), [], False, id="another-model"),
        pytest.param(Change(at(DONE), gone=True), ["state", "news"], False, id="gone"),
    ],
)
def test_a_models_page_is_told_what_changes_on_it(after, events, stale):
    """Its progress; or that all of it is to be asked for anew."""
    teller = live.ModelTeller(body(loading(10)))
    assert [name for name, _ in teller.tell(after)] == events
    assert teller.stale is stale


def test_what_a_page_has_seen_depends_on_versions_only():
    """Not on the order; any change shows."""
    one, two = at({}, 1), at({}, 2, uid="two")
    assert live.seen([one, two]) == live.seen([two, one])
    assert live.seen([one]) != live.seen([at({}, 3)])
    assert live.seen([one]) != live.seen([one, two])


# Over HTTP


def address(site: Site, page: str = "/gallery/") -> str:
    """The stream that a page listens to."""
    found = re.findall(r'sse-connect="([^"]+)"', site.get(page).text)
    return str(found[0].replace("&amp;", "&"))


def until(events: Iterator[tuple[str, str]], name: str) -> str:
    """What the next event of a name carries."""
    return next(data for kind, data in events if kind == name)


@pytest.mark.cluster
def test_a_listener_is_told_of_changes_as_they_happen(shared_cluster, site):
    """Of new models, their progress and their end."""
    gallerymodels.make(shared_cluster, "before", url=LINK)
    with site.stream(address(site)) as events:
        assert next(events) == ("", "live")
        gallerymodels.make(shared_cluster, "sketch", loading(10), url=LINK)
        assert until(events, "listing")
        gallerymodels.set_status(shared_cluster, "sketch", loading(40))
        card = until(events, "card-sketch")
        assert 'value="40"' in card
        assert "42 s left" in card
        assert until(events, "news") == f"sketch: {loading(40)['progress']['text']}"
        shared_cluster.kubectl("delete", "sdm", "sketch")
        assert until(events, "listing")


@pytest.mark.cluster
def test_a_models_page_listens_to_its_model(shared_cluster, site):
    """And hears when it is gone."""
    gallerymodels.make(shared_cluster, "one", loading(10), url=LINK)
    with site.stream(address(site, "/gallery/models/one")) as events:
        gallerymodels.set_status(shared_cluster, "one", loading(11))
        assert 'value="11"' in until(events, "state")
        uid = shared_cluster.get("sdm", "one")["metadata"]["uid"]
        gallerymodels.set_status(shared_cluster, "one", {**ready(uid, "one"), "progress": None})
        assert until(events, "changed")
        shared_cluster.kubectl("delete", "sdm", "one")
        assert "one is deleted" in until(events, "state")


@pytest.mark.cluster
def test_who_comes_back_learns_that_something_was_missed(shared_cluster, site):
    """Between page and stream, or while the connection was away."""
    missed = address(site)
    gallerymodels.make(shared_cluster, "meanwhile", url=LINK)
    with site.stream(missed) as events:
        assert next(events) == ("", "live")
        assert next(events) == ("listing", "new")


@pytest.mark.cluster
def test_one_watch_serves_all(shared_cluster, site, monkeypatch):
    """However many browsers there are; it ends with the last, and begins again with the next."""
    running: Counter[str] = Counter()
    watch = kube.Api.watch

    async def counted(self, resource, namespace, since):
        running["begun"] += 1
        running["now"] += 1
        try:
            async for event in watch(self, resource, namespace, since):
                yield event
        finally:
            running["now"] -= 1

    monkeypatch.setattr(kube.Api, "watch", counted)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    path = address(site)
    with site.stream(path) as first, site.stream(path) as second, site.stream(path) as third:
        gallerymodels.make(shared_cluster, "seen-by-all", url=LINK)
        for events in (first, second, third):
            assert until(events, "news").startswith("seen-by-all")
        assert running == {"begun": 1, "now": 1}
    eventually(lambda: running["now"] == 0)
    with site.stream(address(site)) as again:
        gallerymodels.make(shared_cluster, "seen-again", url=LINK)
        assert until(again, "news").startswith("seen-again")
        assert running == {"begun": 2, "now": 1}


@pytest.mark.cluster
def test_a_quiet_stream_has_heartbeats(site, monkeypatch):
    """So that proxies leave it open, and it is noticed when nobody listens any more."""
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    with site.stream(address(site)) as events:
        assert [next(events) for _ in range(3)] == [("", "live"), ("", "ping"), ("", "ping")]


@pytest.mark.cluster
def test_a_key_has_so_many_streams(site, monkeypatch):
    """One more is refused until another is left."""
    monkeypatch.setattr(routes, "STREAMS_PER_KEY", 2)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    path = address(site)
    with site.stream(path) as first, site.stream(path) as second:
        next(first), next(second)
        answer = site.get(path)
        assert (answer.code, answer.headers["Retry-After"]) == (429, "60")
    eventually(lambda: _is_open(site, path))


@pytest.mark.cluster
def test_a_stream_ends_with_its_session(shared_cluster, tmp_path, monkeypatch):
    """When the key is taken out of the file."""
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    with serve(shared_cluster, tmp_path) as own:
        own.login()
        with own.stream(address(own)) as events:
            next(events)
            own.keys_file.write_text("# nobody\n")
            assert until(events, "ended")
            assert list(events) == []


def _is_open(site: Site, path: str) -> bool:
    try:
        with site.stream(path):
            return True
    except AssertionError:
        return False


def eventually(holds) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
