"""Volumes that are really full, out of inodes or read-only, and their readers."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sd_api.reasons import ExitCode, Reason
from tests.support.store.pods import (
    ADOPTION,
    FIRST,
    NEIGHBOURS,
    NEIGHBOURS_REMOVAL,
    RELEASE,
    RELOAD,
    REMOVAL,
    SWEEP,
    Pod,
    answer,
    end_state,
    prepared,
    served,
    whole,
)
from tests.support.store.steps import OnStep
from tests.support.store.volumes import HASH, MODEL_ID, NEW_HASH, tree
from tests.support.tally import Tally

PAGE = 4096
MISSED = 77

# The forked child only runs the loader, so it does not need the threads of other tests.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("tagged_parts"),
]


def remount(root: Path, options: str) -> None:
    """Change the options of a mounted volume."""
    subprocess.run(["mount", "-o", f"remount,{options}", root], check=True)


def resize(root: Path, what: str, free: int) -> None:
    """Leave this number of pages or inodes free."""
    volume = os.statvfs(root)
    if what == "pages":
        used = (volume.f_blocks - volume.f_bfree) * volume.f_frsize // PAGE
        remount(root, f"size={(used + free) * PAGE}")
    else:
        remount(root, f"nr_inodes={volume.f_files - volume.f_ffree + free}")


def used(root: Path) -> tuple[int, int]:
    """Return the used blocks and inodes of the volume."""
    volume = os.statvfs(root)
    return volume.f_blocks - volume.f_bfree, volume.f_files - volume.f_ffree


@pytest.mark.parametrize("what", ["pages", "inodes"])
def test_a_reload_that_does_not_fit_leaves_the_model_as_it_was(
    tmpfs: Callable[..., Path], tally: Tally, what: str
) -> None:
    """The volume has too few free pages or inodes. The reload fails and frees its space.

    The previous version stays published until a reload fits.
    """
    root = tmpfs("size=4m")
    assert FIRST.run(root) == 0
    before, free = used(root), 0
    resize(root, what, free)
    while RELOAD.run(root):
        result = answer(root)
        assert result.reason is Reason.INSUFFICIENT_STORAGE, (free, result)
        assert served(root) == {MODEL_ID: HASH}, free
        assert used(root) == before, free
        free += 1
        resize(root, what, free)
    assert free > 5
    assert served(root) == {MODEL_ID: NEW_HASH}
    tally("failing volumes survived", free)


def test_a_full_volume_can_be_cleaned_up(tmpfs: Callable[..., Path]) -> None:
    """Removal and sweep do not need free space."""
    root = tmpfs("size=1m")
    for pod in (NEIGHBOURS, FIRST, RELOAD):
        assert pod.run(root) == 0
    (root / "foreign").write_bytes(bytes(os.statvfs(root).f_bavail * PAGE))
    with pytest.raises(OSError, match="space"):
        (root / "more").write_bytes(b"x")
    (root / "more").unlink()
    assert SWEEP.run(root) == 0
    assert [path.name for path in (root / ".store/uid-1").iterdir() if path.is_dir()] == [NEW_HASH]
    assert REMOVAL.run(root) == 0
    assert NEIGHBOURS_REMOVAL.run(root) == 0
    assert tree(root).keys() == {"foreign"}


def test_a_volume_that_becomes_read_only_is_reported_and_stays_readable(
    tmpfs: Callable[..., Path],
) -> None:
    """Each run fails with VolumeNotWritable or asks for another try, and changes nothing.

    When the volume is writable again, the started load can be finished.
    """
    root = tmpfs("size=1m")
    assert FIRST.run(root) == 0
    assert Pod(RELOAD.commands[:1], "fetch").run(root) == 0
    (root / ".store/.trash-uid-7").mkdir()  # for the sweep
    remount(root, "ro")
    before = end_state(root)
    convert = Pod(RELOAD.commands[1:], "convert")
    for pod in (RELOAD, convert, ADOPTION, REMOVAL, RELEASE):
        assert pod.run(root) == ExitCode.PERMANENT, pod
        result = answer(root)
        assert result.reason is Reason.VOLUME_NOT_WRITABLE, (pod, result)
        assert "ead-only" in result.message, (pod, result)
    assert SWEEP.run(root) == ExitCode.TRY_AGAIN
    assert end_state(root) == before
    remount(root, "rw")
    assert convert.run(root) == 0
    assert served(root) == {MODEL_ID: NEW_HASH}


def reading(root: Path) -> OnStep:
    """Return a hook that reads the whole version before each step.

    One reader uses an open folder, one a resolved path, and one follows the link each time.
    """
    real = (root / MODEL_ID).resolve()
    fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY)
    bound = Path(f"/proc/self/fd/{fd}")

    def on_step(number: int, name: str) -> None:
        try:
            assert whole(bound) == whole(real) == HASH
            assert whole(root / MODEL_ID) in {HASH, NEW_HASH}
        except AssertionError:
            logging.exception("before step %d, %s", number, name)
            os._exit(MISSED)  # The loader would report an exception as its own failure.

    return on_step


@pytest.mark.parametrize("pod", [RELOAD, NEIGHBOURS, NEIGHBOURS_REMOVAL, RELEASE], ids=str)
def test_readers_of_a_resolved_version_can_always_read_it(tmp_path: Path, pod: Pod) -> None:
    """The readers read before every step, through an open folder and through a resolved path."""
    root = prepared(tmp_path / "volume", [FIRST, NEIGHBOURS])
    bound = reading(root)
    assert pod.run(root, on_step=bound) == 0
    bound(-1, "the end")


def test_a_reader_sees_a_removal(tmp_path: Path) -> None:
    """The hook of the previous test reports a removed file, so that test is able to fail."""
    root = prepared(tmp_path / "volume", [FIRST])
    assert REMOVAL.run(root, on_step=reading(root)) == MISSED
