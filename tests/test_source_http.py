"""Links: what is downloaded, what is refused, and that nothing is lost or leaked on the way."""

import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakefiles import FileServer

from sd_api.load import LoadRequest, Progress
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source import Fetched, fetch, part
from sd_loader.source.answers import Retries
from sd_loader.source.http import fetch_link
from sd_loader.source.transport import Pace

QUICK = Retries(delays=(0, 0), longest_wait=0.5, sleep=lambda _seconds: None)


def safetensors(size: int = 300_000) -> bytes:
    """The bytes of a small, well-formed safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    header = header.encode() + b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(i % 251 for i in range(size))


BODY = safetensors()
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of files on loopback."""
    with FileServer() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that allow loopback, and no other private address."""
    return Settings(
        allowed_hosts=frozenset({"127.0.0.1"}),
        hub_endpoint="https://hub.invalid",
        credentials_dir=tmp_path / "secret",
    )


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty source folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def request(url: str, **fields: object) -> LoadRequest:
    """A request for a checkpoint."""
    return LoadRequest.model_validate(
        {
            "owner": {"uid": "u", "namespace": "ns", "name": "n"},
            "modelId": "m",
            "modelType": "custom_ckpt",
            "loadHash": "0" * 16,
            "url": url,
            **fields,
        }
    )


def secret(settings: Settings, token: str = "s3cret-token", host: str | None = None) -> None:
    """Mount a credentials Secret."""
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(token)
    if host is not None:
        (settings.credentials_dir / "host").write_text(host + "\n")


def load(url: str, settings: Settings, into: Path, **fields: object) -> Fetched:
    """Fetch, with retries that do not wait."""
    return fetch_link(request(url, **fields), settings, into, lambda _progress: None, retries=QUICK)


def refusal(url: str, settings: Settings, into: Path, **fields: object) -> LoaderError:
    """The error of a fetch that must fail."""
    with pytest.raises(LoaderError) as caught:
        load(url, settings, into, **fields)
    return caught.value


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
        fetch_link(request(url), settings, into, lambda _progress: None, retries=give_up)
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.bytes_served == len(BODY)
    server.forget()
    assert load(url, settings, into).source.sha256 == SHA256
    assert server.requests == []


def test_a_file_that_changed_meanwhile_is_downloaded_anew(server, settings, into):
    """The If-Range condition keeps halves of two versions apart."""
    url = server.serve_file("/model", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        fetch_link(request(url), settings, into, lambda _: None, retries=Retries(delays=()))
    other = safetensors(310_000)
    server.serve_file("/model", other)
    assert load(url, settings, into).source.sha256 == hashlib.sha256(other).hexdigest()


def test_another_url_does_not_continue_this_ones_part(server, settings, into):
    """The staging folder may hold the part of a former spec."""
    first = server.serve_file("/one", BODY, cut_at=200_000)
    with pytest.raises(LoaderError):
        fetch_link(request(first), settings, into, lambda _: None, retries=Retries(delays=()))
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


@pytest.mark.parametrize(
    ("faults", "reason", "words"),
    [
        pytest.param({"status": 401}, Reason.AUTHENTICATION_REQUIRED, "asks for a token", id="401"),
        pytest.param({"status": 403}, Reason.ACCESS_DENIED, "403", id="403"),
        pytest.param({"status": 404}, Reason.SOURCE_NOT_FOUND, "404", id="404"),
        pytest.param({"status": 410}, Reason.SOURCE_NOT_FOUND, "410", id="410"),
        pytest.param({"status": 500}, Reason.SOURCE_UNREACHABLE, "500", id="500"),
        pytest.param({"status": 429}, Reason.RATE_LIMITED, "429", id="429"),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "3600"}},
            Reason.RATE_LIMITED,
            "429",
            id="429 for an hour",
        ),
        pytest.param(
            {
                "status": 429,
                "headers": {"Retry-After": "Mon, 01 Jan 99999999999999999999 0:0:0 GMT"},
            },
            Reason.RATE_LIMITED,
            "429",
            id="429 until a day that never comes",
        ),
        pytest.param(
            {"cut_at": 5_000, "range_limit": 10},
            Reason.SOURCE_UNREACHABLE,
            f"of {len(BODY)} bytes",
            id="never the whole range",
        ),
        pytest.param({"status": 204}, Reason.SOURCE_UNREACHABLE, "204", id="no content"),
        pytest.param(
            {"cut_at": 5_000, "cuts": 99, "ignore_range": True},
            Reason.SOURCE_UNREACHABLE,
            "closed",
            id="cut for ever",
        ),
        pytest.param(
            {"length": len(BODY) + 100, "ignore_range": True},
            Reason.SOURCE_UNREACHABLE,
            "closed",
            id="lying length",
        ),
        pytest.param(
            {"headers": {"Content-Encoding": "gzip"}},
            Reason.SOURCE_UNREACHABLE,
            "compressed",
            id="compressed unasked",
        ),
        pytest.param(
            {"redirect": "http://127.0.0.1:1/x"}, Reason.SOURCE_UNREACHABLE, "", id="dead redirect"
        ),
        pytest.param(
            {"redirect": "/model"}, Reason.SOURCE_UNREACHABLE, "more than 5 times", id="loop"
        ),
        pytest.param(
            {"redirect": "http://169.254.169.254/latest"},
            Reason.ADDRESS_REFUSED,
            "https only",
            id="redirect to metadata",
        ),
        pytest.param(
            {"redirect": "https://10.0.0.1/x"},
            Reason.ADDRESS_REFUSED,
            "10.0.0.1",
            id="redirect to a private address",
        ),
        pytest.param(
            {"redirect": "file:///etc/passwd"}, Reason.ADDRESS_REFUSED, "http(s)", id="to a file"
        ),
    ],
)
def test_failures_have_their_reasons(server, settings, into, faults, reason, words):
    """What the server does decides the reason; the message names the link."""
    url = server.serve_file("/model", BODY, **faults)
    error = refusal(url, settings, into)
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert not (into / "download").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(
            b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 9,
            "HTML page titled",
            id="login page",
        ),
        pytest.param(b'{"error": "Unauthorized", "x": "' + b"y" * 99 + b'"}', "JSON", id="JSON"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
            "LFS pointer",
            id="LFS pointer",
        ),
    ],
)
def test_what_is_no_model_is_named(server, settings, into, body, words):
    """A 200 with a login page is the usual failure; nothing of it stays on the volume."""
    url = server.serve_file("/model", body)
    error = refusal(url + "?token=hunter2", settings, into)
    assert (error.reason, words in error.message) == (Reason.NOT_A_MODEL, True), error.message
    assert "hunter2" not in error.message
    assert list(into.iterdir()) == []


def test_a_page_is_refused_before_it_is_downloaded(server, settings, into):
    """An endless page ends at its first bytes."""
    url = server.serve_file("/model", b"<html><body>" + b"x" * 10_000, endless=True)
    assert refusal(url, settings, into).reason is Reason.NOT_A_MODEL
    assert server.bytes_served < 20_000_000  # what the sockets' buffers take


def test_a_pickle_is_refused_at_its_first_bytes_where_safetensors_are_asked_for(
    server, settings, into
):
    """Not after gigabytes of it."""
    url = server.serve_file("/model", b"PK\x03\x04" + bytes(1000), endless=True)
    error = refusal(url, settings, into, from_safetensors=True)
    assert error.reason is Reason.UNSAFE_MODEL
    assert "spec.fromSafetensors is true" in error.message


def test_the_expected_digest_is_enforced(server, settings, into):
    """A wrong one frees the space; the right one passes."""
    url = server.serve_file("/model", BODY)
    error = refusal(url, settings, into, sha256="0" * 64)
    assert error.reason is Reason.DIGEST_MISMATCH
    assert SHA256 in error.message
    assert list(into.iterdir()) == []
    assert load(url, settings, into, sha256=SHA256).source.sha256 == SHA256


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({}, id="announced"),
        pytest.param({"chunked": True}, id="not announced"),
        pytest.param({"endless": True}, id="endless"),
    ],
)
def test_the_size_limit_is_enforced(server, settings, into, faults):
    """Announced or not, and nothing stays on the volume."""
    url = server.serve_file("/model", BODY, **faults)
    error = refusal(url, replace(settings, max_bytes=len(BODY) - 1), into)
    assert error.reason is Reason.TOO_LARGE
    assert str(len(BODY) - 1) in error.message
    assert list(into.iterdir()) == []


def test_a_drip_is_given_up(server, settings, into):
    """A read timeout alone would wait for ever."""
    url = server.serve_file("/model", BODY, rate=400)
    with pytest.raises(LoaderError, match="too slow") as caught:
        fetch_link(
            request(url),
            settings,
            into,
            lambda _progress: None,
            retries=QUICK,
            pace=Pace(bytes_per_second=10_000, window_seconds=0.5),
        )
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE


def test_what_will_not_fit_is_refused_before_the_first_byte(server, settings, into, monkeypatch):
    """The free space is asked for before anything is written."""
    url = server.serve_file("/model", BODY)
    real = os.statvfs(into)
    free = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(part.os, "statvfs", lambda _folder: free)
    error = refusal(url, settings, into)
    assert error.reason is Reason.INSUFFICIENT_STORAGE
    assert (into / "download.part").stat().st_size == 0


def test_a_full_volume_is_named(server, settings, into):
    """A limit on file size stands in for the full disk; the part is kept for the next Pod."""
    url = server.serve_file("/model", BODY, chunked=True)
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from pathlib import Path\n"
        "import test_source_http as t\n"
        "settings = t.Settings(allowed_hosts=frozenset({'127.0.0.1'}))\n"
        "try:\n"
        "    t.load(sys.argv[1], settings, Path(sys.argv[2]))\n"
        "except t.LoaderError as error:\n"
        "    print(error.reason, error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(into)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("InsufficientStorage the volume is full"), done.stderr
    assert load(url, settings, into).source.sha256 == SHA256


def test_the_token_goes_to_its_host_and_no_further(server, settings, into):
    """Sent with each request to the Secret's host; dropped by a redirect to another origin."""
    other = server.add_origin()
    server._servers[-1].start()
    server.serve_file("/file", BODY)
    url = server.serve_file("/model", BODY, token="s3cret-token", redirect=f"http://{other}/file")
    secret(settings, host=server.host)
    load(url, settings, into, credentials=True)
    sent = [(item.path, item.headers.get("authorization")) for item in server.requests]
    assert sent == [("/model", "Bearer s3cret-token"), ("/file", None)]


@pytest.mark.parametrize(
    ("token", "host", "reason"),
    [
        pytest.param(None, None, Reason.SECRET_NOT_FOUND, id="no Secret"),
        pytest.param("", "{host}", Reason.SECRET_NOT_FOUND, id="empty token"),
        pytest.param("two\nlines", "{host}", Reason.SECRET_NOT_FOUND, id="token of two lines"),
        pytest.param("t", None, Reason.CREDENTIALS_HOST_MISMATCH, id="no host"),
        pytest.param("t", "example.com", Reason.CREDENTIALS_HOST_MISMATCH, id="another host"),
        pytest.param("t", "127.0.0.1", Reason.CREDENTIALS_HOST_MISMATCH, id="another port"),
        pytest.param("t", "x{host}", Reason.CREDENTIALS_HOST_MISMATCH, id="a longer host"),
    ],
)
def test_credentials_that_do_not_fit_stop_the_load(server, settings, into, token, host, reason):
    """Before a single request is made, and without showing the Secret."""
    url = server.serve_file("/model", BODY)
    if token is not None:
        secret(settings, token, host and host.format(host=server.host))
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is reason
    assert server.requests == []
    assert "two" not in error.message


def test_a_refused_token_is_named_as_such(server, settings, into):
    """401 means something else once a token was sent."""
    url = server.serve_file("/model", BODY, token="right")
    secret(settings, "wrong", server.host)
    error = refusal(url, settings, into, credentials=True)
    assert error.reason is Reason.AUTHENTICATION_REQUIRED
    assert "token is not valid" in error.message


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://user:hunter2@{host}/model?token=hunter2", id="userinfo and query"),
        pytest.param("http://{host}/model?api_key=hunter2#hunter2", id="query and fragment"),
    ],
)
def test_secrets_in_the_url_are_sent_but_never_shown(server, settings, into, url):
    """The vendor's users put tokens there."""
    server.serve_file("/model", BODY, status=404)
    error = refusal(url.format(host=server.host), settings, into)
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "hunter2" not in error.message
    sent = server.requests[0]
    assert "hunter2" in sent.query
    assert sent.headers.get("authorization", "Basic").startswith("Basic")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param("http://example.com/x", Reason.ADDRESS_REFUSED, id="plain http"),
        pytest.param("https://localhost/x", Reason.ADDRESS_REFUSED, id="localhost"),
        pytest.param("https://[::1]/x", Reason.ADDRESS_REFUSED, id="loopback"),
        pytest.param("https://169.254.169.254/x", Reason.ADDRESS_REFUSED, id="metadata"),
        pytest.param("ftp://example.com/x", Reason.ADDRESS_REFUSED, id="ftp"),
        pytest.param("file:///etc/passwd", Reason.ADDRESS_REFUSED, id="file"),
        pytest.param("/etc/passwd", Reason.INVALID_SPEC, id="a path"),
        pytest.param("stabilityai/sdxl", Reason.INVALID_SPEC, id="a repo id"),
        pytest.param("https://exa\x00mple.com/x", Reason.INVALID_SPEC, id="NUL"),
        pytest.param("https://name.invalid/x", Reason.SOURCE_UNREACHABLE, id="unknown name"),
    ],
)
def test_what_may_not_be_called_is_refused(settings, into, url, reason):
    """And a path is never read for an operator's request."""
    with pytest.raises(LoaderError) as caught:
        fetch_link(request(url), settings, into, lambda _: None, retries=Retries(delays=()))
    assert caught.value.reason is reason
    assert list(into.glob("download")) == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://user:hunter2/x@example.com/model", id="slash in the password"),
        pytest.param("https://user:pass:hunter2@example.com:hunter2/model", id="as the port"),
        pytest.param("https://[hunter2]/model", id="as an address"),
    ],
)
def test_a_link_that_cannot_be_read_is_not_quoted(settings, into, url):
    """What went wrong with it may be a secret in the wrong place."""
    error = refusal(url, settings, into)
    assert error.reason is Reason.INVALID_SPEC
    assert "hunter2" not in "".join(traceback.format_exception(error))


def test_a_local_file_needs_the_command_lines_leave(settings, into, tmp_path):
    """The same url is refused when it comes in a request, and taken from a person."""
    origin = tmp_path / "model.safetensors"
    origin.write_bytes(BODY)
    with pytest.raises(LoaderError) as caught:
        fetch(request(str(origin)), settings, into, lambda _: None)
    assert caught.value.reason is Reason.INVALID_SPEC
    fetched = fetch(request(str(origin)), settings, into, lambda _: None, allow_local=True)
    assert (into / fetched.path).read_bytes() == BODY
    assert fetched.source.format == "safetensors"
    wrong = request(str(origin), sha256="0" * 64)
    with pytest.raises(LoaderError) as caught:
        fetch(wrong, settings, into, lambda _: None, allow_local=True)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_git_revision_for_a_link_is_refused(server, settings, into):
    """Rather than ignored: a link is pinned by its digest."""
    url = server.serve_file("/model", BODY)
    error = refusal(url, settings, into, gitRevision="main")
    assert (error.reason, "sha256" in error.message) == (Reason.INVALID_SPEC, True)
    assert server.requests == []


@pytest.mark.parametrize("model_type", ["api_trained", "lora", "embeddings", "controlnet", "vae"])
def test_every_model_type_may_be_a_link(server, settings, into, model_type):
    """What the file is, and whether it fits, is told by what it holds."""
    url = server.serve_file("/model", BODY)
    fetched = fetch(request(url, modelType=model_type), settings, into, lambda _: None)
    assert (fetched.kind, (into / fetched.path).read_bytes()) == ("file", BODY)
