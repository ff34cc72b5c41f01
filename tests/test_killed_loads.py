"""Runs of the loader that are killed at any step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pods import (
    RUNS,
    Pod,
    Setup,
    check_versions,
    copy,
    end_state,
    name_of,
    prepared,
    served,
    tagged_parts,
)
from steps import KILLED, killed_at, steps_of
from tally import Tally

__all__ = ["tagged_parts"]


# The child of the fork only runs the loader, whatever threads other tests have left.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize(
    "share",
    [
        pytest.param(12, id="some steps"),
        pytest.param(1, id="every step", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("before", "pod"), RUNS, ids=[name_of(*run) for run in RUNS])
def test_a_run_killed_at_any_step_is_made_good_by_the_next(
    tmp_path: Path,
    tally: Tally,
    before: Setup,
    pod: Pod,
    share: int,
) -> None:
    """After SIGKILL and another Pod's run the volume is as after an undisturbed run.

    In between no version is there in part, and what was served before is served.
    """
    start = prepared(tmp_path / "prepared", before)
    undisturbed = copy(start, tmp_path / "undisturbed")
    names = steps_of(lambda: pod.main(undisturbed, "pod-1"), undisturbed)
    expected = end_state(undisturbed)
    points = range(min(share, len(names)) // 2, len(names), share)
    for step in points:
        root = copy(start, tmp_path / str(step))
        assert pod.run(root, "pod-1", killed_at(step)) == KILLED
        where = f"step {step}: {names[step]}"
        check_versions(root)
        if pod.keeps:
            assert served(start).keys() <= served(root).keys(), where
        assert pod.run(root, "pod-2") == 0, where
        assert end_state(root) == expected, where
        shutil.rmtree(root)
    tally("kill points survived", len(points))
