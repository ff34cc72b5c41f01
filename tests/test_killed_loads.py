"""Loads and removals killed at any step."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from madeup import Parts, loaded, removed, request
from volumes import FILES, MODEL_ID, NAMESAKE, NEW_HASH, STRANGER, tree

from sd_loader.store import blobs

Action = Callable[[Path, str], None]
KILLABLE = ("mkdir", "open", "rename", "symlink", "link", "unlink", "rmdir", "fsync", "fchmod")
WEIGHTS = b"w" * 100


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The stages work with made-up parts, one of which models can share."""
    parts = Parts.installed(monkeypatch)
    # Reading and copying megabytes at every step would be slow.
    monkeypatch.setattr(blobs, "SHARED_FROM", len(WEIGHTS))
    parts.files = {**FILES, "vae/weights": WEIGHTS}
    return parts


def run_until_killed(action: Action, root: Path, calls: int) -> bool:
    """Run in a child that dies by SIGKILL before its n-th system call; whether it did."""
    child = os.fork()
    if child == 0:
        left = calls

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*args, **kwargs)

            return call

        try:
            for name in KILLABLE:
                setattr(os, name, counted(getattr(os, name)))
            action(root, "pod-1")
        except BaseException:  # noqa: BLE001 - the child must never return into pytest
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def end_state(root: Path) -> dict[str, str | bytes]:
    """Everything on the volume but the time of day, and how many names each file has."""
    return {
        path: b"%d %s" % (os.lstat(root / path).st_nlink, _timeless(content))
        if isinstance(content, bytes)
        else content
        for path, content in tree(root).items()
    }


def _timeless(content: bytes) -> bytes:
    return re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"TIME", content)


def copy(volume: Path, to: Path) -> None:
    """A copy of the volume on which files that are the same are the same."""
    subprocess.run(["cp", "-a", volume, to], check=True)


def first(root: Path, pod: str) -> None:
    """A load onto an empty volume."""
    loaded(root, request(), pod)


def neighbour(root: Path, pod: str) -> None:
    """A load of another namespace's model that has the same files."""
    owner = STRANGER.model_copy(update={"uid": "uid-9"})
    loaded(root, request(owner).model_copy(update={"model_id": "neighbour"}), pod)


def reload(root: Path, pod: str) -> None:
    """A load of the changed spec."""
    loaded(root, request(load_hash=NEW_HASH), pod)


def adoption(root: Path, pod: str) -> None:
    """The same load for a namesake."""
    loaded(root, request(NAMESAKE), pod)


def takeover(root: Path, pod: str) -> None:
    """Another load for a namesake."""
    loaded(root, request(NAMESAKE, NEW_HASH), pod)


def removal(root: Path, _: str) -> None:
    """The clean-up."""
    removed(root)


def release(root: Path, _: str) -> None:
    """The clean-up that keeps what is published."""
    removed(root, retain=True)


# The child of the fork only runs the stages, whatever threads other tests have left.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("before", "act", "serves"),
    [
        ([], first, False),
        pytest.param([first], reload, True, marks=pytest.mark.slow),
        pytest.param([first, release], adoption, True, marks=pytest.mark.slow),
        pytest.param([first], takeover, True, marks=pytest.mark.slow),
        ([first, reload], removal, False),
        ([first], release, True),
        pytest.param([neighbour], first, False, marks=pytest.mark.slow),
        pytest.param([neighbour, first, release], adoption, True, marks=pytest.mark.slow),
        pytest.param([neighbour, first, reload], removal, False, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_killed_at_any_step_is_made_good_by_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[Action],
    act: Action,
    serves: bool,
) -> None:
    """After SIGKILL and another Pod's run the volume is as after an undisturbed run.

    In between no version is there in part, and what was served before is served.
    """
    # A killed process loses nothing that a disk would have to keep; waiting for it is slow.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for action in before:
        action(prepared, "pod-0")
    undisturbed = tmp_path / "undisturbed"
    copy(prepared, undisturbed)
    act(undisturbed, "pod-1")
    expected = end_state(undisturbed)

    steps, killed = 0, True
    while killed:
        root = tmp_path / str(steps)
        copy(prepared, root)
        killed = run_until_killed(act, root, steps)
        for version in root.glob(".store/[!.]*/????????????????"):
            assert FILES.items() <= tree(version).items(), steps
        if serves:
            assert FILES.items() <= tree(root / MODEL_ID).items(), steps
        act(root, "pod-2")
        assert end_state(root) == expected, steps
        shutil.rmtree(root)
        steps += 1
    assert steps > 5
