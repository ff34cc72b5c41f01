"""The API client against a local server whose responses the test scripts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_operator.base.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from sd_operator.clients import kube
from sd_operator.clients.kube import JOBS, MODELS, PODS, Api, Listing
from tests.support.kube.kubeconfig import write_kubeconfig
from tests.support.kube.scriptedserver import Server, ask, serving, status


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on loopback; the client retries without waiting."""
    monkeypatch.setattr(kube, "RETRY_SECONDS", 0.01)
    with serving(tmp_path) as state:
        yield state


def test_objects_are_read_by_path_and_token(server: Server) -> None:
    """A GET returns the object as the server sent it."""
    server.answer(200, {"metadata": {"name": "a"}, "unknown": 1})
    assert ask(server, lambda api: api.get(MODELS, "art", "a"))["unknown"] == 1
    (request,) = server.requests
    assert request.path == "/apis/sd-operator.dev/v1alpha1/namespaces/art/stablediffusionmodels/a"
    assert request.headers["authorization"] == "Bearer first"


def test_lists_are_read_to_their_end(server: Server) -> None:
    """A list in several pages is returned as one; every page is requested with the selector."""
    server.answer(200, {"items": [1, 2], "metadata": {"continue": "next"}})
    server.answer(200, {"items": [3], "metadata": {}})
    assert ask(server, lambda api: api.list(JOBS, labels="a=b")).items == [1, 2, 3]
    first, second = server.requests
    assert (first.path, first.query["labelSelector"]) == ("/apis/batch/v1/jobs", ["a=b"])
    assert (second.query["continue"], second.query["labelSelector"]) == (["next"], ["a=b"])


def test_check_of_a_kind_lists_one_object(server: Server) -> None:
    """The request has limit=1. It only shows whether the kind is served and may be listed."""
    server.answer(200, {"items": [1], "metadata": {"continue": "next"}})
    ask(server, lambda api: api.check(MODELS, "art"))
    (request,) = server.requests
    assert request.query["limit"] == ["1"]


def test_changes_are_merge_patches_by_our_field_manager(server: Server) -> None:
    """A patch goes to the subresource if one is named."""
    server.answer(200)
    body = {"metadata": {"uid": "u"}, "status": {"phase": "Ready"}}
    ask(server, lambda api: api.patch(MODELS, "art", "a", body, sub="status"))
    (request,) = server.requests
    assert (request.method, request.body) == ("PATCH", body)
    assert request.path.endswith("/stablediffusionmodels/a/status")
    assert request.headers["content-type"] == "application/merge-patch+json"
    assert request.query["fieldManager"] == ["sd-operator"]


def test_only_the_object_that_was_meant_is_deleted(server: Server) -> None:
    """The request has the uid as a precondition, and Pods are deleted in the background."""
    server.answer(200)
    ask(server, lambda api: api.delete(JOBS, "art", "a", "u"))
    assert server.requests[0].body["preconditions"] == {"uid": "u"}
    assert server.requests[0].body["propagationPolicy"] == "Background"


def test_log_request_asks_for_one_line_of_bounded_size(server: Server) -> None:
    """The query has tailLines and limitBytes."""
    server.answer(200, b"\xff{}\n")
    assert ask(server, lambda api: api.last_log_line("art", "p", "fetch")) == "\ufffd{}\n"
    query = server.requests[0].query
    assert (query["tailLines"], query["container"]) == (["1"], ["fetch"])
    assert int(query["limitBytes"][0]) <= 4096


@pytest.mark.parametrize(
    ("code", "answer", "kind", "message"),
    [
        pytest.param(404, status(404, "NotFound"), NotFoundError, "it is NotFound", id="404"),
        pytest.param(409, status(409, "AlreadyExists"), AlreadyExistsError, "it is", id="exists"),
        pytest.param(409, status(409, "Conflict"), ConflictError, "it is Conflict", id="conflict"),
        pytest.param(403, status(403, "Forbidden"), ForbiddenError, "it is", id="forbidden"),
        pytest.param(422, status(422, "Invalid"), InvalidError, "it is Invalid", id="invalid"),
        pytest.param(400, b"<html>", InvalidError, "HTTP 400", id="no Status object"),
    ],
)
def test_rejections_raise_their_own_error_and_are_not_retried(
    server: Server, code: int, answer: Any, kind: type[ApiError], message: str
) -> None:
    """Each kind of rejection has its own error class, and the error has the server's message."""
    server.answer(code, answer)
    with pytest.raises(kind, match=message) as error:
        ask(server, lambda api: api.create(JOBS, "art", {}))
    assert error.value.code == code
    assert len(server.requests) == 1


def test_a_rejection_that_quotes_a_job_shows_no_secret_of_its_link(server: Server) -> None:
    """The error's message, which may go into the status, has no secret of a quoted Job's link."""
    request = (
        r"[\"--request\", \"{\\\"url\\\":\\\"https://u:hunter2@example.com/x?token=hunter2\\\"}\"]"
    )
    server.answer(400, f'{{"message": "denied: args {request}"}}'.encode())
    with pytest.raises(InvalidError, match=r"https://example\.com/x\?…") as error:
        ask(server, lambda api: api.create(JOBS, "art", {}))
    assert "hunter2" not in str(error.value)


def test_a_terminating_namespace_is_distinguished_from_a_missing_right(server: Server) -> None:
    """The error has `namespace_terminating` if the status has this cause.

    The API server also answers 403 if a right is missing.
    """
    causes = {"details": {"causes": [{"reason": "NamespaceTerminating"}]}}
    server.answer(403, status(403, "Forbidden", **causes))
    with pytest.raises(ForbiddenError) as error:
        ask(server, lambda api: api.create(JOBS, "art", {}))
    assert error.value.namespace_terminating


@pytest.mark.parametrize(
    ("message", "quota"),
    [
        ('pods "a" is forbidden: exceeded quota: gpu, requested: pods=1', True),
        ('jobs.batch is forbidden: User "x" cannot create resource "jobs"', False),
    ],
)
def test_an_exceeded_quota_is_recognised_by_its_message(
    server: Server, message: str, quota: bool
) -> None:
    """`quota_exceeded` follows from the message, because the API server has no reason for it."""
    server.answer(403, {"kind": "Status", "code": 403, "reason": "Forbidden", "message": message})
    with pytest.raises(ForbiddenError) as error:
        ask(server, lambda api: api.get(MODELS, "art", "sketch"))
    assert error.value.quota_exceeded is quota


@pytest.mark.parametrize("code", [429, 500, 503])
def test_requests_are_retried_after_server_errors(server: Server, code: int) -> None:
    """A request is sent at most three times."""
    server.answer(code, status(code, "Trouble"), Retry_After="0")
    server.answer(200, {"ok": True})
    assert ask(server, lambda api: api.get(PODS, "art", "p")) == {"ok": True}
    server.answers[:] = [(code, status(code, "Trouble"), {})]
    server.requests.clear()
    with pytest.raises(UnavailableError, match="it is Trouble"):
        ask(server, lambda api: api.get(PODS, "art", "p"))
    assert len(server.requests) == 3


def test_an_unreachable_server_raises_unavailable(server: Server) -> None:
    """The message names the request and the cause."""
    write_kubeconfig(server.kubeconfig, "http://127.0.0.1:1", "first")
    with pytest.raises(UnavailableError, match="get /api/v1/namespaces/art/pods/p: "):
        ask(server, lambda api: api.get(PODS, "art", "p"))


def test_a_renewed_token_is_read_when_the_old_one_is_refused(server: Server) -> None:
    """After a 401, the client reads the token file again, and repeats the request.

    Kubernetes replaces a service account's token on disk.
    """
    server.answer(401, status(401, "Unauthorized"))
    server.answer(200, {"ok": True})

    async def renewed(api: Api) -> Any:
        url = yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        write_kubeconfig(server.kubeconfig, url, "second")
        return await api.get(PODS, "art", "p")

    assert ask(server, renewed) == {"ok": True}
    used = [request.headers["authorization"] for request in server.requests]
    assert used == ["Bearer first", "Bearer second"]


def test_a_renewed_token_is_read_under_many_requests(server: Server) -> None:
    """All requests are rejected at once, and reading the token again breaks none of them."""
    server.expired = "first"
    server.answer(200, {"ok": True})

    async def many(api: Api) -> Any:
        url = yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        write_kubeconfig(server.kubeconfig, url, "second")
        return await asyncio.gather(*(api.get(PODS, "art", f"p{n}") for n in range(20)))

    assert ask(server, many) == [{"ok": True}] * 20
    used = Counter(request.headers["authorization"] for request in server.requests)
    assert used == {"Bearer first": 20, "Bearer second": 20}


def test_refused_credentials_are_an_error(server: Server) -> None:
    """If the server rejects every token, UnavailableError is raised with the server's message."""
    server.answer(401, status(401, "Unauthorized"))
    with pytest.raises(UnavailableError, match="it is Unauthorized"):
        ask(server, lambda api: api.get(PODS, "art", "p"))


def test_every_request_is_counted(server: Server) -> None:
    """The callback gets verb, resource and status code of each attempt."""
    counted: list[tuple[str, str, str]] = []
    server.answer(503)
    server.answer(201)
    ask(server, lambda api: api.create(JOBS, "art", {}), lambda *one: counted.append(one))
    assert counted == [("create", "jobs", "503"), ("create", "jobs", "201")]


def test_names_are_quoted_in_the_path() -> None:
    """A slash in a name is percent-encoded. Names come from other people's objects."""
    assert JOBS.path("a/b", "../c?d") == "/apis/batch/v1/namespaces/a%2Fb/jobs/..%2Fc%3Fd"


@pytest.mark.parametrize("name", [".", ".."])
def test_no_name_leads_to_another_path(server, name):
    """The names `.` and `..` are refused, because HTTP clients would shorten the path."""
    server.answer(200)
    for question in (
        lambda api: api.get(MODELS, "art", name),
        lambda api: api.get(MODELS, name, "sketch"),
        lambda api: api.delete(MODELS, "art", name, "uid"),
        lambda api: api.patch(MODELS, "art", name, {}),
    ):
        with pytest.raises(NotFoundError):
            ask(server, question)
    assert server.requests == []


def test_a_dry_run_is_requested_in_the_query(server):
    """The API server reads dryRun from the query only."""
    server.answer(201, {})
    ask(server, lambda api: api.create(MODELS, "art", {}, dry_run=True))
    ask(server, lambda api: api.create(MODELS, "art", {}))
    assert [request.query.get("dryRun") for request in server.requests] == [["All"], None]


def watch(server: Server) -> list[tuple[str, Any]]:
    """Return all events of a watch until it ends."""

    async def question(api: Api) -> list[tuple[str, Any]]:
        return [event async for event in api.watch(MODELS, "art", "7")]

    found: list[tuple[str, Any]] = ask(server, question)
    return found


def lines(*events: Any) -> bytes:
    """The body of a watch response."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_a_watch_continues_from_a_version_until_the_server_ends_it(server: Server) -> None:
    """The watch starts at the given resourceVersion, and yields events until the server ends it."""
    server.answer(200, {"items": [1], "metadata": {"resourceVersion": "7"}})
    server.answer(200, lines({"type": "ADDED", "object": 1}, {"type": "DELETED", "object": 2}))
    assert ask(server, lambda api: api.list(MODELS, "art")) == Listing([1], "7")
    assert watch(server) == [("ADDED", 1), ("DELETED", 2)]
    query = server.requests[-1].query
    assert (query["watch"], query["resourceVersion"]) == (["true"], ["7"])
    assert query["timeoutSeconds"] == [str(kube.WATCH_SECONDS)]


@pytest.mark.parametrize(
    ("code", "answer", "kind"),
    [
        pytest.param(
            200,
            lines({"type": "ERROR", "object": status(410, "Expired")}),
            InvalidError,
            id="too old a version",
        ),
        pytest.param(200, b'{"type":"ADDED","obj', UnavailableError, id="cut short"),
        pytest.param(403, status(403, "Forbidden"), ForbiddenError, id="forbidden"),
        pytest.param(500, status(500, "InternalError"), UnavailableError, id="broken"),
    ],
)
def test_a_failed_watch_raises_the_error_of_its_cause(
    server: Server, code: int, answer: Any, kind: type[ApiError]
) -> None:
    """A watch raises the same errors as other requests."""
    server.answer(code, answer)
    with pytest.raises(kind):
        watch(server)


def test_a_repeated_watch_uses_a_renewed_token(server: Server) -> None:
    """After a rejected watch, the client reads the credentials again."""
    server.expired = "first"
    server.answer(200, lines({"type": "ADDED", "object": 1}))

    async def question(api: Api) -> list[tuple[str, Any]]:
        with pytest.raises(UnavailableError):
            [event async for event in api.watch(MODELS, "art", "7")]
        text = server.kubeconfig.read_text().replace("first", "second")
        server.kubeconfig.write_text(text)
        with pytest.raises(UnavailableError):
            [event async for event in api.watch(MODELS, "art", "7")]
        return [event async for event in api.watch(MODELS, "art", "7")]

    assert ask(server, question) == [("ADDED", 1)]


def test_the_field_causes_of_a_rejection_are_kept(server: Server) -> None:
    """The error has field and message of each cause; callers make their own texts from them."""
    causes = [{"field": "spec.url", "message": "is wrong", "reason": "FieldValueInvalid"}]
    server.answer(422, status(422, "Invalid", details={"causes": causes}))
    with pytest.raises(InvalidError) as error:
        ask(server, lambda api: api.get(MODELS, "art", "a"))
    assert error.value.causes == (("spec.url", "is wrong"),)


def test_requests_name_their_client(server: Server) -> None:
    """Requests have a user agent, and changes have a field manager."""
    server.answer(200)

    async def run() -> None:
        async with Api(server.kubeconfig, manager="sd-gateway") as api:
            await api.create(MODELS, "art", {})

    asyncio.run(run())
    (request,) = server.requests
    assert request.headers["user-agent"] == "sd-gateway"
    assert request.query["fieldManager"] == ["sd-gateway"]


def test_waiting_for_a_connection_does_not_count_as_a_timeout(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow server answers each of many simultaneous requests exactly once."""
    monkeypatch.setattr(kube, "REQUESTS_AT_ONCE", 4)
    monkeypatch.setattr(kube, "REQUEST_TIMEOUT_SECONDS", 2.0)
    server.answer(200, {"kind": "Job"})
    server.delay = 0.02

    async def question(api: Api) -> None:
        await asyncio.gather(*(api.get(JOBS, "art", f"job-{n}") for n in range(200)))

    ask(server, question)

    assert len(server.requests) == 200
