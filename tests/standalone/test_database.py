"""Tests that standalone keeps its objects when it ends or is killed."""

from __future__ import annotations

import asyncio
import copy
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sd_api.crd import custom_resource_definition
from sd_operator.standalone import requests, storage
from sd_operator.standalone.database import FORMAT, Database
from sd_operator.standalone.errors import ApiError, Json, StandaloneError
from sd_operator.standalone.registry import Registry
from sd_operator.standalone.resources import BUILTIN, DEFINITIONS, NAMESPACES, Resource
from sd_operator.standalone.server import ApiServer
from sd_operator.standalone.storage import Storage
from tests.support.kube.cluster import model_manifest

SECRETS = next(resource for resource in BUILTIN if resource.kind == "Secret")
EVENTS = next(resource for resource in BUILTIN if resource.kind == "Event")
DEFAULT = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}


class Runs:
    """The runs of a standalone with one database, each an API server."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "objects.db"
        self.database: Database | None = None

    def start(self) -> ApiServer:
        """Start the next run with the files as they are now, as if the last run was killed."""
        if self.database is not None:
            contents = {path: path.read_bytes() for path in self.files()}
            self.database.close()
            for path, content in contents.items():
                path.write_bytes(content)
        self.database = Database.open(self.path)
        server = ApiServer("token", self.path.parent, Storage(self.database))
        server.provide(DEFAULT)
        server.provide(custom_resource_definition())
        return server

    def files(self) -> list[Path]:
        """Return the files of the database: itself and its log."""
        return sorted(self.path.parent.glob("objects.db*"))


@pytest.fixture
def runs(tmp_path):
    """The runs of a standalone whose database is new."""
    runs = Runs(tmp_path)
    yield runs
    if runs.database is not None:
        runs.database.close()


def models(server: ApiServer) -> Resource:
    """Return the resource of models."""
    resource = server.registry.resource("sd-operator.dev", "v1alpha1", "stablediffusionmodels")
    assert resource is not None
    return resource


def contents(registry: Registry) -> dict[str, list[Json]]:
    """Return all objects by kind."""
    return {r.kind: registry.storage.list(r.id) for r in registry.resources()}


def test_killed_server_loses_nothing_that_it_has_answered(runs):
    """Objects keep their uid and resourceVersion; what was removed stays removed."""
    server = runs.start()
    registry, resource = server.registry, models(server)
    for name in ("a", "b", "c"):
        registry.create(resource, "default", model_manifest(name, url="a/b"), "Strict")
    registry.create(SECRETS, "default", SECRET, "Strict")
    registry.update(resource, ("default", "a"), lambda old: old | {"spec": {"url": "c/d"}})
    registry.delete(resource, ("default", "b"), {})
    registry.update(resource, ("default", "c"), _with_finalizer)
    registry.delete(resource, ("default", "c"), {})

    again = runs.start().registry

    assert contents(again) == contents(registry)
    names = [item["metadata"]["name"] for item in again.storage.list(resource.id)]
    assert names == ["a", "c"]
    assert "deletionTimestamp" in again.get(resource, ("default", "c"))["metadata"]
    assert again.get(SECRETS, ("default", "s"))["data"] == {"a": "Yg=="}


def _with_finalizer(item: Json) -> Json:
    return item | {"metadata": item["metadata"] | {"finalizers": ["example.com/f"]}}


def test_events_end_with_the_run(runs):
    """The next run has no Events of the last run: they are many, and nobody relies on them."""
    registry = runs.start().registry
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "e-"}}
    event["involvedObject"] = {"namespace": "default"}
    name = registry.create(EVENTS, "default", event, "Strict").item["metadata"]["name"]
    assert registry.get(EVENTS, ("default", name))

    assert runs.start().registry.storage.list(EVENTS.id) == []


def test_revisions_of_a_run_are_above_those_of_all_earlier_runs(runs, monkeypatch):
    """Each run starts above all revisions, even if the clock went back or Events got the last."""
    monkeypatch.setattr(storage, "RESERVED", 3)
    seen = []
    for clock in (5_000, 4_000, 4_000):
        monkeypatch.setattr(storage.time, "time", lambda clock=clock: clock)
        registry = runs.start().registry
        first = registry.storage.first
        assert first > max(seen, default=0)
        for _ in range(5):
            registry.storage.put(EVENTS.id, ("default", "e"), {"metadata": {"uid": "u"}})
        seen.append(registry.storage.revision)


def test_watches_and_continue_tokens_of_an_earlier_run_get_status_410(runs):
    """The history of an earlier run is not kept, so the client must list again.

    etcd answers in the same way after it has compacted its history.
    """
    last = runs.start().registry.storage
    token = requests.continue_token(DEFAULT, last.revision)
    requests.continue_after(token, last.first)

    again = runs.start().registry.storage

    with pytest.raises(ApiError, match="too old") as failure:
        asyncio.run(anext(again.changes(NAMESPACES.id, last.revision)))
    assert failure.value.code == 410
    with pytest.raises(ApiError, match="too old") as failure:
        requests.continue_after(token, again.first)
    assert failure.value.code == 410


def test_manifests_of_server_side_apply_are_kept_as_long_as_their_object(runs):
    """After a restart, the next apply still knows which fields to remove."""
    server = runs.start()
    uid = server.registry.create(SECRETS, "default", SECRET, "Strict").item["metadata"]["uid"]
    server.registry.storage.set_applied(uid, "me", {"data": {"a": "Yg=="}})

    again = runs.start().registry
    assert again.storage.applied(uid, "me") == {"data": {"a": "Yg=="}}
    again.delete(SECRETS, ("default", "s"), {})

    assert runs.start().registry.storage.applied(uid, "me") is None


def test_objects_get_the_schema_of_the_program_that_runs_now(runs, monkeypatch):
    """The CRD is replaced; a new field has its default, and a field that is gone is dropped."""
    server = runs.start()
    uid = server.registry.get(DEFINITIONS, ("", _name()))["metadata"]["uid"]
    created = server.registry.create(
        models(server), "default", model_manifest("a", url="a/b", priority=3), "Strict"
    )
    newer = copy.deepcopy(custom_resource_definition())
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["priority"]
    spec["properties"]["colour"] = {"type": "string", "default": "red"}
    monkeypatch.setitem(globals(), "custom_resource_definition", lambda: newer)

    again = runs.start()

    assert again.registry.get(DEFINITIONS, ("", _name()))["metadata"]["uid"] == uid
    model = again.registry.get(models(again), ("default", "a"))
    assert model["metadata"] == created.item["metadata"]
    assert model["spec"]["colour"] == "red"
    assert "priority" not in model["spec"]


def _name() -> str:
    return str(custom_resource_definition()["metadata"]["name"])


def test_write_that_fails_changes_nothing(runs):
    """If the database fails, the client gets a 500 with the cause, and the object is unchanged.

    A repeated write succeeds.
    """
    registry = runs.start().registry
    before = contents(registry)
    runs.database._connection.execute("PRAGMA max_page_count = 1")
    big = SECRET | {"stringData": {"a": "x" * 1_000_000}}

    with pytest.raises(ApiError, match=r"cannot write to the database .* is full") as failure:
        registry.create(SECRETS, "default", copy.deepcopy(big), "Strict")

    assert failure.value.code == 500
    assert contents(registry) == before
    runs.database._connection.execute("PRAGMA max_page_count = 100000")
    registry.create(SECRETS, "default", copy.deepcopy(big), "Strict")
    assert contents(runs.start().registry) == contents(registry)


def test_database_is_private_and_has_one_user(runs):
    """A second process fails with a message. The database is free when the first one ends."""
    runs.start()
    assert [path.stat().st_mode & 0o777 for path in runs.files()] == [0o600, 0o600]
    with pytest.raises(StandaloneError, match=r"another standalone uses the database .*stop it"):
        Database.open(runs.path)

    runs.start()


def _sql(statement: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)

    return change


def _overwritten_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            _sql(f"PRAGMA user_version = {FORMAT + 1}"),
            "newer sd-operator wrote the database",
            id="newer",
        ),
        pytest.param(
            _sql("UPDATE objects SET body = '{'"), "is damaged .* move its folder away", id="json"
        ),
        pytest.param(_sql("DROP TABLE settings"), "is damaged .* move its folder away", id="table"),
        pytest.param(_overwritten_in_the_middle, "is damaged .* move its folder away", id="pages"),
        pytest.param(
            lambda path: path.write_bytes(b"x" * 5000),
            "is damaged .* move its folder away",
            id="other-file",
        ),
        pytest.param(
            lambda path: (path.unlink(), path.mkdir()), "cannot open the database", id="folder"
        ),
        pytest.param(
            lambda path: path.symlink_to(path.rename(path.parent / "elsewhere")),
            "cannot open the database",
            id="link",
        ),
    ],
)
def test_database_that_cannot_be_read_prevents_the_start(
    runs, change: Callable[[Path], object], message
):
    """The message names the file and says what to do; the file is not changed."""
    runs.start()
    runs.database.close()
    runs.database = None
    change(runs.path)
    before = runs.path.read_bytes() if runs.path.is_file() else b""

    with pytest.raises(StandaloneError, match=message) as failure:
        runs.start()

    assert str(runs.path) in str(failure.value)
    if runs.database is not None:
        runs.database.close()
        runs.database = None
    assert not runs.path.is_file() or runs.path.read_bytes() == before
    shutil.rmtree(runs.path, ignore_errors=True)
