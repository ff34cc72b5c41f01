"""Downloading a link, and continuing a partial download."""

from __future__ import annotations

import hashlib

import pytest

from sd_api.wire import Progress
from sd_loader.errors import LoaderError
from sd_loader.net.patience import Retries
from tests.support.loader.arrivals import arrived_in, bytes_read
from tests.support.loader.fetches import fetch
from tests.support.loader.linkfetches import (
    BODY,
    SHA256,
    load,
    request,
    safetensors,
)


def test_link_is_downloaded_with_its_digest(server, settings, into):
    """The result holds digest, size and format, and progress reaches the last byte."""
    url = server.serve_file("/model", BODY)
    seen: list[Progress] = []
    fetched = fetch(request(url), settings, into, seen.append)
    assert (into / fetched.path).read_bytes() == BODY
    assert fetched.files == arrived_in(into, into, [fetched.path])
    assert fetched.kind == "file"
    assert fetched.source.sha256 == SHA256
    assert fetched.source.size_bytes == len(BODY)
    assert fetched.source.format == "safetensors"
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (len(BODY), len(BODY))
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["user-agent"].startswith("sd-loader/")
    assert "authorization" not in server.requests[0].headers


def test_download_is_digested_without_reading_the_file_again(server, settings, into):
    """Both digests are computed as the bytes arrive. From disk, only certificates are read."""
    body = safetensors(3_000_000)
    url = server.serve_file("/model", body)
    before = bytes_read()
    load(url, settings, into)
    assert bytes_read() - before < len(body) / 2


@pytest.mark.parametrize("streamed", [False, True])
def test_blanks_around_a_link_are_ignored(server, settings, into, tmp_path, streamed):
    """YAML and the clipboard leave them there."""
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" if streamed else None
    url = f" {server.serve_file('/model', BODY)}\n"
    assert fetch(request(url), settings, into, out=out).source.sha256 == SHA256
    assert {item.path for item in server.requests} == {"/model"}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"cut_at": 100_000}, id="connection closed"),
        pytest.param({"cut_at": 100_000, "reset": True}, id="connection reset"),
        pytest.param({"cut_at": 20}, id="cut in the file's header"),
        pytest.param({"cut_at": 0, "cuts": 1}, id="cut before the first byte"),
        pytest.param({"cut_at": 100_000, "chunked": True}, id="cut without a length"),
        pytest.param({"cut_at": 100_000, "cuts": 2}, id="cut twice"),
        pytest.param({"cut_at": 100_000, "ignore_range": True}, id="Range ignored"),
        pytest.param(
            {"cut_at": 100_000, "range_limit": 150_000}, id="less than the requested range"
        ),
        pytest.param({"cut_at": 100_000, "validators": False}, id="no validator"),
        pytest.param({"cut_at": 100_000, "etag": 'W/"weak"'}, id="weak ETag"),
        pytest.param({"chunked": True}, id="no length"),
        pytest.param({"status": 503, "fails": 2}, id="503 twice"),
        pytest.param({"status": 429, "fails": 1}, id="429 once"),
        pytest.param(
            {"status": 429, "fails": 1, "headers": {"Retry-After": "0"}}, id="429 with Retry-After"
        ),
    ],
)
def test_transient_faults_do_not_fail_the_download(server, settings, into, faults):
    """The downloaded file is complete."""
    url = server.serve_file("/model", BODY, **faults)
    assert load(url, settings, into).source.sha256 == SHA256
    assert (into / "download").read_bytes() == BODY


def test_cut_download_continues_where_it_stopped(server, settings, into):
    """The loader requests only the missing bytes."""
    url = server.serve_file("/model", BODY, cut_at=120_000, cuts=2)
    load(url, settings, into)
    assert server.bytes_served == len(BODY)
    ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, "bytes=120000-", "bytes=240000-"]


def test_later_pod_resumes_and_keeps_a_finished_download(server, settings, into):
    """The loader does not request bytes that the folder holds."""
    url = server.serve_file("/model", BODY, cut_at=200_000)
    give_up = Retries(delays=())
    with pytest.raises(LoaderError):
        load(url, settings, into, give_up)
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.bytes_served == len(BODY)
    server.forget()
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.requests == []


def test_changed_file_is_downloaded_again(server, settings, into):
    """The If-Range condition prevents a mix of two versions."""
    url = server.serve_file("/model", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        load(url, settings, into, Retries(delays=()))
    other = safetensors(310_000)
    server.serve_file("/model", other)
    assert load(url, settings, into).source.sha256 == hashlib.sha256(other).hexdigest()


def test_partial_download_of_another_url_is_not_continued(server, settings, into):
    """The staging folder may hold the partial download of an earlier spec."""
    first = server.serve_file("/one", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        load(first, settings, into, Retries(delays=()))
    other = safetensors(310_000)
    second = server.serve_file("/two", other)
    assert load(second, settings, into).source.sha256 == hashlib.sha256(other).hexdigest()
    assert server.requests[-1].headers.get("range") is None


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"url": 1}', b"\xff"])
def test_damaged_note_restarts_the_download(server, settings, into, note):
    """A crash may leave any bytes in the note."""
    url = server.serve_file("/model", BODY)
    (into / "download.part").write_bytes(b"x" * 1000)
    (into / "download.note").write_bytes(note)
    assert load(url, settings, into).source.sha256 == SHA256


def test_symbolic_link_in_place_of_the_partial_download_is_not_followed(
    server, settings, into, tmp_path
):
    """Others may write to the volume."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (into / "download.part").symlink_to(target)
    url = server.serve_file("/model", BODY)
    with pytest.raises((LoaderError, OSError)):
        load(url, settings, into)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("model_type", ["api_trained", "lora", "embeddings", "controlnet", "vae"])
def test_every_model_type_may_be_a_link(server, settings, into, model_type):
    """The file's content shows later whether it fits the model type."""
    url = server.serve_file("/model", BODY)
    fetched = fetch(request(url, modelType=model_type), settings, into, lambda _: None)
    assert (fetched.kind, (into / fetched.path).read_bytes()) == ("file", BODY)
