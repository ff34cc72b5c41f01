"""Links: what is downloaded, and that it goes on where it stopped."""

from __future__ import annotations

import hashlib

import pytest

from sd_api.wire import Progress
from sd_loader.errors import LoaderError
from sd_loader.net.http_errors import Retries
from tests.support.loader.fetches import fetch
from tests.support.loader.linkfetches import (
    BODY,
    SHA256,
    load,
    request,
    safetensors,
)


def test_a_link_is_downloaded_with_its_digest(server, settings, into):
    """The file, its digest, size and format; and progress up to the last byte."""
    url = server.serve_file("/model", BODY)
    seen: list[Progress] = []
    fetched = fetch(request(url), settings, into, seen.append)
    assert (into / fetched.path).read_bytes() == BODY
    assert fetched.kind == "file"
    assert fetched.source.sha256 == SHA256
    assert fetched.source.size_bytes == len(BODY)
    assert fetched.source.format == "safetensors"
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (len(BODY), len(BODY))
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["user-agent"].startswith("sd-loader/")
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"cut_at": 100_000}, id="connection closed"),
        pytest.param({"cut_at": 100_000, "reset": True}, id="connection reset"),
        pytest.param({"cut_at": 20}, id="cut before anything can be told"),
        pytest.param({"cut_at": 0, "cuts": 1}, id="cut before the first byte"),
        pytest.param({"cut_at": 100_000, "chunked": True}, id="cut without a length"),
        pytest.param({"cut_at": 100_000, "cuts": 2}, id="cut twice"),
        pytest.param({"cut_at": 100_000, "ignore_range": True}, id="Range ignored"),
        pytest.param({"cut_at": 100_000, "range_limit": 150_000}, id="less than the range"),
        pytest.param({"cut_at": 100_000, "validators": False}, id="nothing to resume by"),
        pytest.param({"cut_at": 100_000, "etag": 'W/"weak"'}, id="weak ETag"),
        pytest.param({"chunked": True}, id="no length"),
        pytest.param({"status": 503, "fails": 2}, id="503 twice"),
        pytest.param({"status": 429, "fails": 1}, id="429 once"),
        pytest.param(
            {"status": 429, "fails": 1, "headers": {"Retry-After": "0"}}, id="429 with Retry-After"
        ),
    ],
)
def test_transient_faults_are_survived(server, settings, into, faults):
    """The file is whole in the end, whatever happened on the way."""
    url = server.serve_file("/model", BODY, **faults)
    assert load(url, settings, into).source.sha256 == SHA256
    assert (into / "download").read_bytes() == BODY


def test_a_cut_download_goes_on_where_it_stopped(server, settings, into):
    """Only the missing bytes are asked for."""
    url = server.serve_file("/model", BODY, cut_at=120_000, cuts=2)
    load(url, settings, into)
    assert server.bytes_served == len(BODY)
    ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, "bytes=120000-", "bytes=240000-"]


def test_a_later_pod_resumes_and_a_finished_download_is_not_repeated(server, settings, into):
    """What the folder holds already is not asked for again."""
    url = server.serve_file("/model", BODY, cut_at=200_000)
    give_up = Retries(delays=())
    with pytest.raises(LoaderError):
        load(url, settings, into, give_up)
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.bytes_served == len(BODY)
    server.forget()
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.requests == []


def test_a_file_that_changed_meanwhile_is_downloaded_anew(server, settings, into):
    """The If-Range condition keeps halves of two versions apart."""
    url = server.serve_file("/model", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        load(url, settings, into, Retries(delays=()))
    other = safetensors(310_000)
    server.serve_file("/model", other)
    assert load(url, settings, into).source.sha256 == hashlib.sha256(other).hexdigest()


def test_another_url_does_not_continue_this_ones_part(server, settings, into):
    """The staging folder may hold the part of a former spec."""
    first = server.serve_file("/one", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        load(first, settings, into, Retries(delays=()))
    other = safetensors(310_000)
    second = server.serve_file("/two", other)
    assert load(second, settings, into).source.sha256 == hashlib.sha256(other).hexdigest()
    assert server.requests[-1].headers.get("range") is None


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"url": 1}', b"\xff"])
def test_a_damaged_note_costs_the_part_and_nothing_else(server, settings, into, note):
    """A crash may leave anything behind."""
    url = server.serve_file("/model", BODY)
    (into / "download.part").write_bytes(b"x" * 1000)
    (into / "download.note").write_bytes(note)
    assert load(url, settings, into).source.sha256 == SHA256


def test_a_link_planted_in_place_of_the_part_is_not_followed(server, settings, into, tmp_path):
    """The volume may be written by others."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (into / "download.part").symlink_to(target)
    url = server.serve_file("/model", BODY)
    with pytest.raises((LoaderError, OSError)):
        load(url, settings, into)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("model_type", ["api_trained", "lora", "embeddings", "controlnet", "vae"])
def test_every_model_type_may_be_a_link(server, settings, into, model_type):
    """What the file is, and whether it fits, is told by what it holds."""
    url = server.serve_file("/model", BODY)
    fetched = fetch(request(url, modelType=model_type), settings, into, lambda _: None)
    assert (fetched.kind, (into / fetched.path).read_bytes()) == ("file", BODY)
