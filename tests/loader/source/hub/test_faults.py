"""Wrong responses of a Hub or a mirror: its API, its file list and its commits."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devkit.fakefiles import Faults
from devkit.fakehub import FakeHub
from devkit.loopback import Loopback, Request
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.net.patience import Retries
from sd_loader.settings import Settings
from sd_loader.source import hub_api
from tests.support.loader.fetches import QUICK, fetch
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.models.conversions import load_request
from tests.support.tally import Tally

REPO = "org/model"
COMMIT = "c" * 40
BODY = safetensors_bytes({"layer.weight": (64, 64)})


def load(url: str, into: Path, retries: Retries = QUICK) -> Fetched:
    """Fetch a repo with one file from the Hub at this url."""
    host = url.removeprefix("http://")
    settings = Settings(hub_endpoint=url, allowed_hosts=frozenset({host}), max_bytes=1 << 20)
    into.mkdir(exist_ok=True)
    request = load_request(url=REPO)
    return fetch(request, settings, into, retries=retries)


def refusal(url: str, into: Path) -> LoaderError:
    """Return the error of a fetch that must fail. The fetch leaves no complete file."""
    with pytest.raises(LoaderError) as caught:
        load(url, into)
    assert not (into / "download").exists()
    return caught.value


def info(**changes: Any) -> dict[str, Any]:
    """The API's response for a repo with one file."""
    lfs = {"sha256": "0" * 64, "size": 8192, "pointerSize": 129}
    file = {"rfilename": "model.safetensors", "size": 8192, "blobId": "b" * 40, "lfs": lfs}
    return {"_id": "0", "id": REPO, "sha": COMMIT, "private": False, "siblings": [file], **changes}


def file(**changes: Any) -> dict[str, Any]:
    """The API's response with changed fields of its file."""
    answer = info()
    answer["siblings"] = [{**answer["siblings"][0], **changes}]
    return answer


def of_lfs(**changes: Any) -> dict[str, Any]:
    """The API's response with changed LFS fields of its file."""
    return file(lfs={**info()["siblings"][0]["lfs"], **changes})


def http(body: bytes, *headers: str) -> bytes:
    """An HTTP response."""
    lines = ("HTTP/1.1 200 OK", "Content-Type: application/json", *headers, "Connection: close")
    return "\r\n".join((*lines, "", "")).encode() + body


def sized(body: bytes, *headers: str) -> bytes:
    """An HTTP response with a Content-Length."""
    return http(body, f"Content-Length: {len(body)}", *headers)


def endless(_: Request) -> Iterable[bytes]:
    """A document that never ends."""
    yield http(b"", "Transfer-Encoding: chunked")
    piece = b" " * (1 << 16)
    while True:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def error_without_end(_: Request) -> Iterable[bytes]:
    """An error page that never ends."""
    yield b"HTTP/1.1 404 X\r\nX-Error-Code: RepoNotFound\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b" " * (1 << 16)
    while True:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


WHOLE = json.dumps(info()).encode()


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        pytest.param(endless, "sent a response of more than", id="endless"),
        pytest.param(
            lambda _: sized(gzip.compress(bytes(9 << 20)), "Content-Encoding: gzip"),
            "compressed",
            id="a compression bomb",
        ),
        pytest.param(
            lambda _: sized(b"[" * 100_000),
            "not in the Hub's format",
            id="nested deeper than is read",
        ),
        pytest.param(
            lambda _: sized(WHOLE[:-9]),
            "not in the Hub's format",
            id="half a document",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda _: sized(b"[]"), "not in the Hub's format", id="a list", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda _: sized(b"7"), "not in the Hub's format", id="a number", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda _: sized(b"\xff\xfe"),
            "not in the Hub's format",
            id="not text",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda _: sized(WHOLE)[:-9], "closed", id="cut", marks=pytest.mark.slow),
        pytest.param(lambda _: sized(WHOLE)[:20], "", id="cut in the head", marks=pytest.mark.slow),
        pytest.param(
            lambda _: sized(json.dumps(info(sha=None)).encode()),
            "no commit",
            id="no commit",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda _: sized(json.dumps(info(sha="main")).encode()),
            "no commit",
            id="a branch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_invalid_api_response_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    respond: Callable[[Request], bytes | Iterable[bytes]],
    words: str,
    tally: Tally,
) -> None:
    """The loader retries a few times and never holds a whole oversized response in memory."""
    monkeypatch.setattr(hub_api, "_MAX_RESPONSE", 1 << 20)
    with Loopback(respond) as wire:
        error = refusal(wire.url, tmp_path / "source")
        assert len(wire.requests) <= 3
    assert (error.reason, words in error.message) == (Reason.SOURCE_UNREACHABLE, True), error
    tally("source faults survived")


def test_only_the_beginning_of_an_error_is_read(tmp_path: Path, tally: Tally) -> None:
    """The headers of an endless error say what is wrong."""
    with Loopback(error_without_end) as wire:
        error = refusal(wire.url, tmp_path / "source")
        assert len(wire.requests) == 1
    assert error.reason is Reason.SOURCE_NOT_FOUND, error
    tally("source faults survived")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(
            info(siblings=[{}]),
            Reason.SOURCE_UNREACHABLE,
            id="a file without a name",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            info(siblings=["x"]),
            Reason.SOURCE_UNREACHABLE,
            id="a file that is a word",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            info(siblings={"a": 1}), Reason.SOURCE_UNREACHABLE, id="no list", marks=pytest.mark.slow
        ),
        pytest.param(
            file(rfilename=7),
            Reason.SOURCE_UNREACHABLE,
            id="a name that is a number",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            file(rfilename=None), Reason.SOURCE_UNREACHABLE, id="no name", marks=pytest.mark.slow
        ),
        pytest.param(
            file(rfilename="a/../../b"), Reason.UNSAFE_MODEL, id="a path", marks=pytest.mark.slow
        ),
        pytest.param(file(size="9", lfs=None), Reason.SOURCE_UNREACHABLE, id="a size as text"),
        pytest.param(
            file(size=-9, lfs=None),
            Reason.SOURCE_UNREACHABLE,
            id="a size below zero",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            file(size=1.5, lfs=None),
            Reason.SOURCE_UNREACHABLE,
            id="a fraction of a byte",
            marks=pytest.mark.slow,
        ),
        pytest.param(of_lfs(size=-1), Reason.SOURCE_UNREACHABLE, id="an LFS size below zero"),
        pytest.param(
            of_lfs(size=None), Reason.SOURCE_UNREACHABLE, id="no LFS size", marks=pytest.mark.slow
        ),
        pytest.param(of_lfs(sha256="x"), Reason.SOURCE_UNREACHABLE, id="not a digest"),
        pytest.param(
            of_lfs(sha256=["0"]),
            Reason.SOURCE_UNREACHABLE,
            id="a list of digests",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            file(lfs="x"),
            Reason.SOURCE_UNREACHABLE,
            id="an LFS entry that is a word",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            file(blobId="x", lfs=None),
            Reason.SOURCE_UNREACHABLE,
            id="no blob id",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            of_lfs(), Reason.SOURCE_NOT_FOUND, id="a file that is not there", marks=pytest.mark.slow
        ),
        pytest.param(
            info(siblings=None), Reason.UNSUPPORTED_FORMAT, id="no files", marks=pytest.mark.slow
        ),
    ],
)
def test_invalid_file_list_is_refused(
    tmp_path: Path, answer: dict[str, Any], reason: Reason, tally: Tally
) -> None:
    """The load fails with a reason and does not crash."""

    def respond(received: Request) -> bytes:
        if received.path.startswith("/api/"):
            return sized(json.dumps(answer).encode())
        return b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    with Loopback(respond) as wire:
        error = refusal(wire.url, tmp_path / "source")
    assert error.reason is reason, error
    tally("source faults survived")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo of one model."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(BODY)
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    """A Hub with the repo."""
    with FakeHub() as hub:
        hub.add_repo(REPO, folder)
        yield hub


def test_branch_that_moves_during_the_load_is_not_followed(
    hub: FakeHub, folder: Path, tmp_path: Path, tally: Tally
) -> None:
    """All files come from the commit that the branch named at the start."""
    first = hub.repos[REPO].commit()
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes(bytes(len(BODY)))
    hub.faults[f"{REPO}/model.safetensors"] = Faults(cut_at=5000)

    def move(_: float) -> None:
        hub.repos[REPO] = replace(hub.repos[REPO], folder=moved, former={first: folder})

    fetched = load(hub.url, tmp_path / "source", Retries(delays=(0.0,), sleep=move))

    assert hub.repos[REPO].commit() != first
    assert fetched.source.commit == first
    assert (tmp_path / "source" / fetched.path).read_bytes() == BODY
    assert hub.served[f"{REPO}/model.safetensors"] == len(BODY)
    tally("source faults survived")


def test_commit_that_disappears_during_the_load_fails_it(
    hub: FakeHub, tmp_path: Path, tally: Tally
) -> None:
    """The next load uses the branch's new commit."""
    hub.faults[f"{REPO}/model.safetensors"] = Faults(cut_at=5000)
    moved = tmp_path / "moved"
    moved.mkdir()
    other = safetensors_bytes({"layer.weight": (32, 128)})
    (moved / "model.safetensors").write_bytes(other)

    def move(_: float) -> None:
        hub.repos[REPO] = replace(hub.repos[REPO], folder=moved)

    with pytest.raises(LoaderError) as caught:
        load(hub.url, tmp_path / "source", Retries(delays=(0.0,), sleep=move))
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND
    fetched = load(hub.url, tmp_path / "source")
    assert (tmp_path / "source" / fetched.path).read_bytes() == other
    tally("source faults survived")
