"""An attacker planted links on the volume, at every path that the loader opens."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from tests.support.store.pods import (
    ADOPTION,
    FIRST,
    NEIGHBOURS,
    RELOAD,
    REMOVAL,
    SWEEP,
    Pod,
    answer,
    copy,
    prepared,
    whole,
)
from tests.support.store.volumes import MODEL_ID, tree
from tests.support.tally import Tally

ACTS = [FIRST, RELOAD, ADOPTION, REMOVAL, SWEEP]
EXPLAINED = {Reason.VOLUME_NOT_WRITABLE, Reason.MODEL_ID_CONFLICT}
_ALL_EVENTS = 0xFFF


class Outside:
    """Files outside the volume. inotify reports every access to them."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for each in [path, *path.rglob("*")]:
            assert libc.inotify_add_watch(self.fd, os.fsencode(each), _ALL_EVENTS) > 0

    def was_touched(self) -> bool:
        """Return whether any of the files was opened, read, changed, linked or removed."""
        try:
            return bool(os.read(self.fd, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)


def in_use(root: Path) -> Path:
    """Return a volume with two models and an unfinished load of the next version of one."""
    prepared(root, [NEIGHBOURS, FIRST])
    assert Pod(RELOAD.commands[:1], "fetch").run(root, "pod-0") == 0
    # A load that converts during the download leaves such a file if it is killed.
    out = root / ".staging/uid-1/pod-0/out/unet"
    out.mkdir(parents=True)
    (out / "weights").write_bytes(b"half")
    return root


def plant(place: Path, outside: Path) -> None:
    """Replace an entry by a link to its copy outside the volume."""
    copy(place.resolve(), outside)
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    place.symlink_to(outside)


def test_every_access_outside_is_noticed(tmp_path: Path) -> None:
    """Reading, writing, listing and linking are accesses. Checking whether a name exists is not."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder/file"
    file.write_text("x")
    outside = Outside(tmp_path / "folder")
    for touch, seen in [
        (file.lstat, False),
        (file.read_text, True),
        (lambda: file.write_text("y"), True),
        (lambda: list(file.parent.iterdir()), True),
        (lambda: os.link(file, tmp_path / "link"), True),
        (file.unlink, True),
    ]:
        touch()
        assert outside.was_touched() is seen
    outside.close()


# The forked child only runs the loader, so it does not need the threads of other tests.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize(
    "share",
    [
        pytest.param(9, id="some paths"),
        pytest.param(1, id="every path", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("pod", ACTS, ids=str)
def test_a_planted_link_is_not_followed(tmp_path: Path, tally: Tally, pod: Pod, share: int) -> None:
    """Files outside the volume are not opened, changed or published.

    The run succeeds or reports the problem. After the link is removed, the next run succeeds.
    """
    start = in_use(tmp_path / "start")
    places = [*tree(start)][ACTS.index(pod) :: share]
    for place in places:
        root, path = copy(start, tmp_path / "volume"), tmp_path / "outside"
        plant(root / place, path)
        outside = Outside(path)
        code = pod.run(root)
        assert not outside.was_touched(), place
        outside.close()
        if code and pod.answers:
            assert answer(root).reason in EXPLAINED, (place, answer(root))
        if code == 0 and pod in {FIRST, RELOAD, ADOPTION}:
            whole(root / MODEL_ID)
            version = (root / MODEL_ID).resolve()
            assert version.is_relative_to(root / ".store"), place
            assert not any(found.is_symlink() for found in version.rglob("*")), place
        if (root / place).is_symlink():
            (root / place).unlink()
            copy(start / place, root / place)
        assert pod.run(root) == 0, place
        shutil.rmtree(root)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tally("planted links survived", len(places))
