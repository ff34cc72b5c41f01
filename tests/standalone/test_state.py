"""Tests of the folder with standalone's state, and of the token and port that clients know."""

from __future__ import annotations

import argparse
import socket
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from sd_operator import standalone
from sd_operator.standalone import identity, logs, main, pki
from sd_operator.standalone.containers import Container
from sd_operator.standalone.database import Database
from sd_operator.standalone.errors import StandaloneError
from sd_operator.standalone.kubelet import Kubelet
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.state import State, default_folder


@pytest.fixture
def database():
    """A database in memory."""
    with closing(Database.in_memory()) as database:
        yield database


def test_each_store_has_one_folder_whatever_path_leads_to_it(tmp_path):
    """The folder is in the user's state folder, and its name starts with the store's."""
    store = tmp_path / "my models"
    store.mkdir()
    (tmp_path / "link").symlink_to(store)
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}

    folder = default_folder(store, env)

    assert folder.parent == tmp_path / "state/sd-operator/standalone"
    assert folder.name.startswith("my_models-")
    assert default_folder(tmp_path / "link", env) == folder
    assert default_folder(tmp_path / "my models" / ".." / "my models", env) == folder
    assert default_folder(tmp_path / "other" / "my models", env) != folder


@pytest.mark.parametrize("value", [None, "", "relative/path"])
def test_default_is_in_the_home_folder(tmp_path, monkeypatch, value):
    """The state is in the home folder if XDG_STATE_HOME is not set or is not absolute."""
    monkeypatch.setenv("HOME", str(tmp_path))

    folder = default_folder(tmp_path / "store", {} if value is None else {"XDG_STATE_HOME": value})

    assert folder.parent == tmp_path / ".local/state/sd-operator/standalone"


def test_state_is_private_and_keeps_only_the_logs_of_pods(tmp_path):
    """Other files of Pods are removed at the end, or by the next run if a run was killed."""
    folder = tmp_path / "state" / "a"
    with State.open(folder, tmp_path / "store") as state:
        assert folder.stat().st_mode & 0o777 == 0o700
        (state.pods / "uid").mkdir(parents=True)
        (state.logs / "uid").mkdir(parents=True)
    assert not state.pods.exists()
    state.pods.mkdir()

    with State.open(folder, tmp_path / "store") as state:
        assert not state.pods.exists()
        assert state.logs.exists()


def test_state_in_a_relative_folder_has_absolute_paths(tmp_path, monkeypatch):
    """The paths are absolute: a container writes to them and runs in another folder."""
    monkeypatch.chdir(tmp_path)
    with State.open(Path("state"), tmp_path / "store") as state:
        assert state.pods == tmp_path / "state" / "pods"


def test_ephemeral_state_leaves_nothing():
    """The folder of an ephemeral state is empty at first, and is removed at the end."""
    with State.ephemeral() as state:
        assert state.folder.exists()
        assert list(state.folder.iterdir()) == []
    assert not state.folder.exists()


def test_folder_that_is_open_to_others_is_refused(tmp_path):
    """A state folder that others can read is refused; its mode is not changed."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)

    with pytest.raises(StandaloneError, match=f"chmod 700 {folder}"):
        State.open(folder, tmp_path / "store").__enter__()

    assert folder.stat().st_mode & 0o777 == 0o755
    assert list(folder.iterdir()) == []


def test_state_is_never_in_the_store(tmp_path):
    """The store itself, a folder below it, and a link into it are refused."""
    store = tmp_path / "store"
    (store / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(store / "below")

    for folder in (store, store / "below" / "state", tmp_path / "link"):
        with pytest.raises(StandaloneError, match="is in the store"):
            State.open(folder, store).__enter__()


def test_folder_that_cannot_be_made_is_reported_with_an_alternative(tmp_path):
    """The message names the folder and the option --ephemeral."""
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "state"

    with pytest.raises(StandaloneError, match=f"cannot create the folder {folder}.*--ephemeral"):
        State.open(folder, tmp_path / "store").__enter__()


def test_store_that_cannot_be_made_is_reported_with_an_alternative(tmp_path, capsys):
    """The command fails; its message names the folder, and says how to choose another."""
    store = tmp_path / "file"
    store.touch()
    parser = argparse.ArgumentParser()
    standalone.add_arguments(parser)
    args = parser.parse_args(["--store", str(store), "--ephemeral"])
    assert main.main(args) == 1
    assert f"cannot create the folder {store} for the models: File exists. Name another with" in (
        capsys.readouterr().err
    )


def test_token_certificates_and_port_stay(database):
    """Token, certificates and port are the same after a restart, so a copied kubeconfig works."""
    token, certificates = identity.token(database), identity.certificates(database)
    with identity.listen(database, "--port", 0) as listener:
        port = listener.getsockname()[1]

    assert identity.token(database) == token
    assert identity.certificates(database) == certificates
    with identity.listen(database, "--port", 0) as listener:
        assert listener.getsockname()[1] == port


def test_certificates_are_renewed_before_they_end(database, monkeypatch):
    """Certificates that end soon are replaced at the start, since a run may last for weeks."""
    monkeypatch.setattr(pki, "LIFETIME", identity.RENEWED - timedelta(days=1))
    first = identity.certificates(database)
    monkeypatch.undo()

    second = identity.certificates(database)

    assert second != first
    assert identity.certificates(database) == second


def test_port_that_is_taken_is_reported_with_the_option_for_another_port(database):
    """If the last run's port is taken, the error names the option: clients know the old port."""
    with identity.listen(database, "--port", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        taken = f"cannot listen on port {port}, as in the last run: Address already in use"
        with pytest.raises(StandaloneError, match=f"{taken}.*--port"):
            identity.listen(database, "--port", 0)
        with pytest.raises(StandaloneError, match=f"cannot listen on port {port}: .*--other"):
            identity.listen(database, "--other", port)

    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    with identity.listen(database, "--port", free):
        assert database.setting("--port") == str(free)
    with pytest.raises(StandaloneError, match="--port is 70000, but a port is at most 65535"):
        identity.listen(database, "--port", 70000)


def test_logs_of_pods_that_are_gone_are_removed(tmp_path):
    """At the start, the logs of Pods that no longer exist are removed, as after a kill."""
    for uid in ("here", "gone"):
        log = logs.log_path(tmp_path / "logs", uid, "fetch")
        log.parent.mkdir(parents=True)
        log.write_text("x")

    logs.remove_others(tmp_path / "logs", {"here"})
    logs.remove_others(tmp_path / "no-logs", set())

    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["here"]


def test_log_of_a_pod_that_has_ended_goes_with_the_pod(tmp_path):
    """The deletion of the Pod removes its log, although no process of the Pod runs any more."""
    kubelet = Kubelet(None, Machine(tmp_path, tmp_path, tmp_path / "logs"))
    pod = {"metadata": {"uid": "u"}, "spec": {}, "status": {"phase": "Failed"}}
    log = logs.log_path(tmp_path / "logs", "u", "fetch")
    log.parent.mkdir(parents=True)
    kubelet.pods.objects["u"] = pod
    kubelet._changed(pod)
    assert log.parent.exists()

    del kubelet.pods.objects["u"]
    kubelet._changed(pod)

    assert not log.parent.exists()


@pytest.mark.parametrize(
    ("state", "code"),
    [
        pytest.param({"terminated": {"exitCode": 0, "reason": "Completed"}}, 0, id="ended"),
        pytest.param({"running": {"startedAt": "2026-01-01T00:00:00Z"}}, 137, id="running"),
        pytest.param({"waiting": {"reason": "PodInitializing"}}, None, id="waiting"),
    ],
)
def test_container_that_ran_when_the_node_stopped_has_failed(state, code):
    """A container that had ended keeps its exit code; one that had not begun has none."""
    container = Container({"name": "c", "image": "i"})

    container.end_lost({"containerStatuses": [{"name": "c", "state": state}]})

    assert container.exit_code == code
    if "running" in state:
        ended = container.state["terminated"]
        assert ended["reason"] == "ContainerStatusUnknown"
        assert ended["startedAt"] == state["running"]["startedAt"]
    else:
        assert container.state == state
