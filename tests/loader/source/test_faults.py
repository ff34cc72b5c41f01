"""Faults of a file server, for streamed loads and for downloads.

After each fault, either the model is published unchanged or the load fails with its reason and
publishes nothing. The number of requests and the waiting time are limited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sd_api.reasons import Reason
from sd_api.wire import LoadResult
from sd_loader import stages, streaming
from sd_loader.errors import LoaderError
from sd_loader.failures import is_permanent
from sd_loader.net import patience, ranges, transport
from sd_loader.settings import Settings
from tests.support.loader.loadercli import load_request
from tests.support.servers.sourcefaults import (
    Fault,
    Files,
    Server,
    always,
    begins,
    chain,
    close_delimited,
    closed_by,
    cut,
    cut_body,
    drip,
    empty_range,
    endless,
    flip,
    from_the_first,
    interim,
    length,
    many_headers,
    new_tag,
    no_range,
    once,
    other_version,
    page,
    redirect,
    replaced,
    reset,
    resumed,
    silence,
    ten_bytes,
    total,
    zipped,
)
from tests.support.tally import Tally

MAX_REQUESTS = 14
"""The most requests that one Pod may send."""
MAX_BYTES = 1 << 20
MAX_WAITED = 60.0
"""The most seconds that one Pod may wait between its requests, in total."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The model files. They are made once, because the tests only read them."""
    return Files(tmp_path_factory.mktemp("models"))


@dataclass
class Pod:
    """A loader with an empty volume. Waits are recorded, not slept."""

    store: Path
    waited: list[float]

    def load(self, server: Server, **fields: Any) -> LoadResult:
        """Fetch, convert and publish."""
        settings = Settings(allowed_hosts=frozenset({"127.0.0.1"}), max_bytes=MAX_BYTES)
        fields = {"model_type": "lora", **fields}
        request = load_request(f"{server.wire.url}/model", **fields)
        return stages.load(request, self.store, settings, lambda _: None)

    def refusal(self, server: Server, **fields: Any) -> LoaderError:
        """Return the error of a load that must fail and leaves the volume unchanged."""
        before = self.seen()
        with pytest.raises(LoaderError) as caught:
            self.load(server, **fields)
        assert self.seen() == before
        return caught.value

    def seen(self) -> set[str]:
        """The models and versions on the volume, complete or not."""
        found = {*self.store.glob("*"), *self.store.glob(".store/*/*/")}
        return {path.name for path in found if not path.name.startswith(".")}


@pytest.fixture(params=["streamed", "downloaded"])
def way(request: pytest.FixtureRequest) -> str:
    """Return how the pod gets the file: streamed or downloaded."""
    return str(request.param)


@pytest.fixture
def pod(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    """A Pod that streams or downloads its file."""
    waited: list[float] = []
    monkeypatch.setattr(streaming, "LEAST_BYTES", 0 if way == "streamed" else 1 << 40)
    monkeypatch.setattr(ranges, "HEAD_BYTES", 4096)
    monkeypatch.setitem(vars(patience.RETRIES), "sleep", waited.append)
    store = tmp_path / "store"
    store.mkdir()
    yield Pod(store, waited)
    assert sum(waited) <= MAX_WAITED


DAY = 24 * 3600
CUTS = (0, 1, 8, 9, 15, 17, 40, 80, 120, 160, 200)
"""Numbers of bytes after which a response is cut, in its status line or headers."""
LATE = {"Last-Modified": formatdate(0, usegmt=True)}
NOW = {"Last-Modified": formatdate(100 * 365 * DAY, usegmt=True)}
ABSURD = ("86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT")
HARMLESS = ("0", "-1", "1.5", "soon", "Fri, 31 Dec 1999 23:59:59 GMT", "31 Dec 99999999 0:0 GMT")


@dataclass(frozen=True)
class Row:
    """A fault, and the reason of the refusal when streamed and when downloaded.

    A reason of None means that the load publishes the same model as without the fault.
    """

    name: str
    fault: Fault
    streamed: Reason | None = None
    downloaded: Reason | None = None
    words: str = ""
    stopped: str = ""
    """Words of a streamed load's message, if they differ from `words`."""
    version: dict[str, str] | None = None
    changed: bool = False
    usual: bool = False

    def __str__(self) -> str:
        return self.name


def refused(
    name: str,
    fault: Fault,
    words: str = "",
    reason: Reason = Reason.SOURCE_UNREACHABLE,
    **more: Any,
) -> Row:
    """A fault that fails the load both streamed and downloaded."""
    return Row(name, fault, reason, reason, words, **more)


FAULTS = [
    Row("none", once(partial(cut, 0), times=0)),
    *(Row(f"cut at byte {n} of the answer", once(partial(cut, n)), usual=n == 40) for n in CUTS),
    *(Row(f"cut at byte {n} of the first", once(partial(cut, n), after=0)) for n in CUTS[1::3]),
    *(Row(f"cut at byte {n} of the body", once(partial(cut_body, n))) for n in (0, 1, 63, 9999)),
    Row("cut before the last byte", once(partial(cut, -1), after=0, times=3)),
    Row("cut three times", once(partial(cut_body, 50_000), times=3), usual=True),
    refused("cut for ever", from_the_first(partial(cut_body, 100)), "closed"),
    refused("no answer for ever", from_the_first(partial(cut, 0)), "without sending"),
    Row("reset in the head", once(partial(reset, 40))),
    Row("reset in the body", once(partial(reset, 5000), after=0, times=2)),
    Row("Range ignored once", resumed(partial(close_delimited, None), times=1)),
    Row("Range ignored later", resumed(partial(close_delimited, None))),
    Row("Range ignored always", from_the_first(partial(close_delimited, None))),
    refused(
        "no length, and cut",
        from_the_first(partial(close_delimited, 50_000)),
        "truncated",
        Reason.DAMAGED_FILE,
    ),
    Row("a later range, once", resumed(begins(1000), times=1), usual=True),
    Row("an earlier range, once", resumed(begins(-1000), times=1)),
    refused("a later range, always", resumed(begins(1000)), "another range"),
    Row("another total, once", resumed(total(1), times=1)),
    Row("no Content-Range, once", resumed(no_range, times=1)),
    Row("an empty range, once", resumed(empty_range, times=1)),
    refused("an empty range, always", resumed(empty_range), "sent", stopped="stopped at byte"),
    refused("ten bytes at a time", resumed(ten_bytes), "sent", stopped="stopped at byte"),
    Row("another version's range", resumed(other_version({"ETag": '"2"'}), times=1), usual=True),
    Row("its range by date", resumed(other_version({"ETag": "", **LATE}), times=1)),
    Row("replaced meanwhile", resumed(replaced, times=1), changed=True, usual=True),
    Row("another ETag in each answer", from_the_first(new_tag)),
    Row("Last-Modified only", once(partial(cut_body, 50_000)), version=LATE),
    Row("modified a moment ago", once(partial(cut_body, 50_000)), version=NOW),
    Row("no validator", once(partial(cut_body, 50_000)), version={}),
    Row("endless once", resumed(endless, times=1), usual=True),
    Row("endless", from_the_first(endless), downloaded=Reason.TOO_LARGE, words="limit"),
    Row("endless later", resumed(endless), downloaded=Reason.TOO_LARGE, words="limit"),
    Row("too long a length, once", once(length(1.5))),
    Row("too long a length, always", from_the_first(length(1.5))),
    Row("too short a length", always(length(0.5)), Reason.SOURCE_UNREACHABLE, Reason.DAMAGED_FILE),
    refused("compressed", from_the_first(zipped("Content_Encoding")), "compressed"),
    refused("compressed to be sent", from_the_first(zipped("Transfer_Encoding"))),
    Row("five redirects", chain(5)),
    refused("six redirects", chain(6), "more than 5 times"),
    refused("a redirect to itself", from_the_first(lambda *_: redirect("/model").whole()), "5"),
    refused(
        "a redirect to nothing", from_the_first(lambda *_: redirect("http://x:y/").whole()), "302"
    ),
    *(
        Row(f"{status} once", resumed(closed_by(status), times=1))
        for status in ("408 X", "425 X", "429 X", "500 X", "502 X", "503 X", "504 X", "599 X")
    ),
    refused("404 later", resumed(closed_by("404 X")), "404", Reason.SOURCE_NOT_FOUND),
    refused("503 always", resumed(closed_by("503 X")), "503"),
    refused("304 always", from_the_first(closed_by("304 X")), "304"),
    *(
        refused(
            f"429 with Retry-After {value[:24]}",
            from_the_first(closed_by("429 X", Retry_After=value)),
            "too many requests",
            Reason.RATE_LIMITED,
        )
        for value in ABSURD
    ),
    *(
        Row(
            f"429 once with Retry-After {value}",
            resumed(closed_by("429", Retry_After=value), times=1),
        )
        for value in HARMLESS
    ),
    refused("interim answers without end", from_the_first(interim), "no end of them"),
    refused("headers without end", from_the_first(many_headers)),
    refused("no HTTP", from_the_first(lambda *_: b"\0\xff" * 100)),
    refused("a login page later", resumed(page), "is an HTML page", Reason.NOT_A_MODEL),
]


def rows(these: Iterable[Row]) -> list[Any]:
    """The table as parameters. Rows that are not `usual` are marked slow."""
    return [
        pytest.param(row, id=str(row), marks=() if row.usual else pytest.mark.slow) for row in these
    ]


@pytest.mark.parametrize("row", rows(FAULTS))
def test_fault_is_survived_or_refused(
    pod: Pod, way: str, files: Files, row: Row, tally: Tally
) -> None:
    """After a temporary failure, a healthy server gives the same model."""
    reason = row.streamed if way == "streamed" else row.downloaded
    with Server(files, row.fault, files.content, row.version) as server:
        if reason is None:
            result = pod.load(server)
        else:
            error = pod.refusal(server)
            words = row.stopped if way == "streamed" and row.stopped else row.words
            assert (error.reason, words in error.message) == (reason, True), error.message
        assert len(server.wire.requests) <= MAX_REQUESTS
        if reason is not None and not is_permanent(error):
            server.fault = once(partial(cut, 0), times=0)
            result = pod.load(server)
        if reason is None or not is_permanent(error):
            assert result.artifact is not None
            content = files.other if row.changed else files.content
            assert result.artifact.digest == files.digest(content)
    tally("source faults survived")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(partial(drip, True), "too slow", id="head"),
        pytest.param(partial(drip, False), "too slow", id="body"),
        pytest.param(silence, "timed out", id="silence", marks=pytest.mark.slow),
    ],
)
def test_slow_server_is_given_up(
    pod: Pod, files: Files, fault: Fault, words: str, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """A load fails if the server keeps the connection open, but sends too slowly or nothing."""
    monkeypatch.setattr(transport, "TIMEOUT", httpx2.Timeout(0.5))
    monkeypatch.setitem(vars(patience.PACE), "window_seconds", 0.5)
    with Server(files, resumed(fault), files.content) as server:
        error = pod.refusal(server)
        assert (error.reason, words in error.message) == (Reason.SOURCE_UNREACHABLE, True), error
        assert len(server.wire.requests) <= MAX_REQUESTS
    tally("source faults survived")


@pytest.mark.parametrize(
    ("container", "at", "reason"),
    [
        pytest.param("content", 4, Reason.DAMAGED_FILE, id="the header's length"),
        pytest.param("content", -10, None, id="a weight of a safetensors file"),
        pytest.param("archive", 100_000, Reason.DIGEST_MISMATCH, id="a weight of an archive"),
    ],
)
def test_flipped_bits_are_found_by_checksums(
    pod: Pod, files: Files, container: str, at: int, reason: Reason | None, tally: Tally
) -> None:
    """An archive has checksums.

    A safetensors file has none, so only spec.sha256 reveals the fault.
    """
    content = getattr(files, container)
    sha256 = hashlib.sha256(content).hexdigest()
    with Server(files, from_the_first(partial(flip, at % len(content))), content) as server:
        if reason is None:
            result = pod.load(server)
            assert result.artifact is not None
            assert result.artifact.digest != files.digest(content)
        else:
            assert pod.refusal(server).reason is reason
        expected = (Reason.DIGEST_MISMATCH, Reason.DAMAGED_FILE)
        assert pod.refusal(server, sha256=sha256, reload="1").reason in expected
    tally("source faults survived", 2)


def test_recent_modification_date_does_not_resume_a_download(pod: Pod, files: Files) -> None:
    """A file may change twice within one second and keep its date."""
    conditions = {}
    for name, version in (("late", LATE), ("now", NOW)):
        with Server(files, once(partial(cut_body, 50_000)), files.content, version) as server:
            pod.load(server, reload=name)
            conditions[name] = {request.headers.get("if-range") for request in server.wire.requests}
    assert conditions["late"] >= {LATE["Last-Modified"]}
    assert conditions["now"] == {None}
