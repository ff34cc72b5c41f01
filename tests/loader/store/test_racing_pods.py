"""Two Pods use one volume, and one of them is paused at any step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sd_api.reasons import ExitCode, Reason
from tests.support.store.pods import (
    ADOPTION,
    FIRST,
    LATE_REMOVAL,
    NEIGHBOURS,
    NEIGHBOURS_REMOVAL,
    RELEASE,
    RELOAD,
    REMOVAL,
    STRANGERS,
    SWEEP,
    TAKEOVER,
    Pod,
    Setup,
    answer,
    check_versions,
    copy,
    end_state,
    litter,
    name_of,
    points,
    prepared,
    sampled,
    served,
    without_sharing,
)
from tests.support.store.steps import end, held_at, steps_of
from tests.support.tally import Tally

RACES: list[tuple[Setup, Pod, Pod, tuple[Pod, ...]]] = [
    ([], FIRST, FIRST, (FIRST,)),
    ([FIRST], RELOAD, RELOAD, (RELOAD,)),
    ([FIRST], RELOAD, FIRST, (RELOAD,)),
    ([FIRST], FIRST, RELOAD, (RELOAD,)),
    ([FIRST, RELEASE], ADOPTION, ADOPTION, (ADOPTION,)),
    ([FIRST], FIRST, TAKEOVER, (TAKEOVER,)),
    ([FIRST], TAKEOVER, LATE_REMOVAL, (TAKEOVER,)),
    ([FIRST], LATE_REMOVAL, TAKEOVER, (TAKEOVER,)),
    ([], FIRST, REMOVAL, (REMOVAL,)),
    ([FIRST], RELOAD, REMOVAL, (REMOVAL,)),
    ([FIRST], REMOVAL, RELOAD, (REMOVAL,)),
    ([NEIGHBOURS], FIRST, NEIGHBOURS, (FIRST,)),
    ([NEIGHBOURS], FIRST, NEIGHBOURS_REMOVAL, (NEIGHBOURS_REMOVAL, FIRST)),
    ([NEIGHBOURS], NEIGHBOURS_REMOVAL, FIRST, (NEIGHBOURS_REMOVAL, FIRST)),
    ([FIRST, litter], RELOAD, SWEEP, (RELOAD, SWEEP, RELOAD)),
    ([FIRST, litter], SWEEP, RELOAD, (RELOAD, SWEEP, RELOAD)),
    ([FIRST, RELOAD, litter], SWEEP, REMOVAL, (REMOVAL, SWEEP)),
    ([FIRST, RELOAD, litter], REMOVAL, SWEEP, (REMOVAL, SWEEP)),
]
"""The preparation, the paused Pod, the Pod that runs meanwhile, and the final runs.

The final runs repeat what failed, as the operator would."""
NAMESPACES = [(FIRST, STRANGERS), (STRANGERS, FIRST)]


def name_of_race(before: Setup, held: Pod, other: Pod, _: object) -> str:
    """Return the test id of a race."""
    return f"{other} during {name_of(before, held)}"


def race(root: Path, held: Pod, step: int, other: Pod) -> tuple[int, int]:
    """Return the exit codes of a paused Pod, and of a Pod that runs in between.

    Published versions are complete before and after the first Pod continues.
    """
    at_step, reached = os.pipe()
    going_on, go_on = os.pipe()
    process = held.start(root, "pod-1", held_at(step, reached, going_on), reads=held is SWEEP)
    os.close(reached)
    os.read(at_step, 1)
    others = other.run(root, "pod-2")
    check_versions(root)
    served(root)
    os.write(go_on, b".")
    code = end(process)
    check_versions(root)
    for fd in (at_step, going_on, go_on):
        os.close(fd)
    return code, others


# The forked child only runs the loader, so it does not need the threads of other tests.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize(
    ("before", "held", "other", "last", "apart"),
    sampled(RACES, name_of_race, 31, 2, quick={3, 9}),
)
def test_two_pods_at_once_never_leave_a_mixture(
    tmp_path: Path,
    tally: Tally,
    before: Setup,
    held: Pod,
    other: Pod,
    last: tuple[Pod, ...],
    apart: int,
) -> None:
    """Each Pod succeeds or can be tried again.

    At the end, the volume is as if the Pods had run one after the other.
    """
    start = prepared(tmp_path / "prepared", before)
    undisturbed = copy(start, tmp_path / "undisturbed")
    for pod in last:
        assert pod.run(undisturbed) == 0
    expected = without_sharing(end_state(undisturbed))
    alone = copy(start, tmp_path / "alone")
    names = steps_of(lambda: held.main(alone, "pod-1"), alone, reads=held is SWEEP)
    tried = points(names, apart)
    for step in tried:
        where = f"step {step}: {names[step]}"
        root = copy(start, tmp_path / str(step))
        codes = dict(zip((held, other), race(root, held, step, other), strict=True))
        assert set(codes.values()) <= {ExitCode.DONE, ExitCode.TRY_AGAIN}, where
        assert codes.get(SWEEP, ExitCode.DONE) == ExitCode.DONE, where
        if held.keeps and other.keeps:
            assert served(start).keys() <= served(root).keys(), where
        for pod in last:
            assert pod.run(root, "pod-3") == 0, where
        assert without_sharing(end_state(root)) == expected, where
        shutil.rmtree(root)
    tally("interleavings survived", len(tried))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize(
    ("held", "other", "apart"),
    sampled(NAMESPACES, lambda held, other: f"{other} during {held}", 31, 2, quick={0}),
)
def test_only_one_of_two_namespaces_gets_an_id_that_both_load(
    tmp_path: Path, tally: Tally, held: Pod, other: Pod, apart: int
) -> None:
    """The other load fails with an error that names the owner, and leaves no files."""
    start = prepared(tmp_path / "prepared", [])
    alone = copy(start, tmp_path / "alone")
    names = steps_of(lambda: held.main(alone, "pod-1"), alone)
    others = copy(start, tmp_path / "others")
    assert other.run(others) == 0
    states = [end_state(alone), end_state(others)]
    tried = points(names, apart)
    for step in tried:
        where = f"step {step}: {names[step]}"
        root = copy(start, tmp_path / str(step))
        codes = race(root, held, step, other)
        assert sorted(codes) == [ExitCode.DONE, ExitCode.PERMANENT], where
        loser = answer(root, "pod-1" if codes[0] else "pod-2")
        assert loser.reason is Reason.MODEL_ID_CONFLICT, where
        assert "belongs to" in loser.message, where
        assert end_state(root) in states, where
        shutil.rmtree(root)
    tally("interleavings survived", len(tried))
