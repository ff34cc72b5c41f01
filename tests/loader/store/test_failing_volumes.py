"""Runs of the loader on a volume where one step fails."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from tests.support.store.pods import (
    RUNS,
    Pod,
    Setup,
    answer,
    check_versions,
    contents,
    copy,
    end_state,
    name_of,
    points,
    prepared,
    sampled,
    served,
)
from tests.support.store.steps import refused_from, refused_once, steps_of
from tests.support.tally import Tally

FULL = frozenset({Reason.INSUFFICIENT_STORAGE})
NOT_WRITABLE = frozenset({Reason.VOLUME_NOT_WRITABLE})
FAULTS = {
    "full": (refused_from, errno.ENOSPC, FULL, "No space left"),
    "over its quota": (refused_from, errno.EDQUOT, FULL, "quota exceeded"),
    "read-only": (refused_from, errno.EROFS, NOT_WRITABLE, "ead-only"),
    "damaged": (refused_once, errno.EIO, NOT_WRITABLE | {Reason.LOADER_CRASHED}, "Input/output"),
}
"""How a volume fails (from a step on, or once), its error, and the run's reasons and message."""


# The forked child only runs the loader, so it does not need the threads of other tests.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("before", "pod", "apart"), sampled(RUNS, name_of, 58, 3, quick={1}))
def test_a_volume_that_fails_at_any_step_is_reported_and_loses_no_data(
    tmp_path: Path, tally: Tally, before: Setup, pod: Pod, apart: int, fault: str
) -> None:
    """The run reports the volume's reason or succeeds, and the next run completes the work.

    In between, no version is incomplete, and the published models stay published.
    """
    failing, code, reasons, words = FAULTS[fault]
    start = prepared(tmp_path / "prepared", before)
    undisturbed = copy(start, tmp_path / "undisturbed")
    names = steps_of(lambda: pod.main(undisturbed, "pod-1"), undisturbed)
    expected = end_state(undisturbed)
    tried = points(names, apart)
    for step in tried:
        where = f"step {step}: {names[step]}"
        root = copy(start, tmp_path / str(step))
        ended = pod.run(root, "pod-1", failing(step, code))
        if pod.answers and ended:
            result = answer(root, "pod-1")
            assert result.reason in reasons, (where, result)
            assert result.reason.exit_code == ended, (where, result)
            assert words in result.message, (where, result)
        assert ended in {0, 1, 3}, where
        check_versions(root)
        if pod.keeps:
            assert served(start).keys() <= served(root).keys(), where
        assert pod.run(root, "pod-2") == 0, where
        # A file that could not be shared has a copy of its own.
        is_copy = ended == 0 and names[step] in {"os.link", "os.rename"}
        compared = contents if is_copy else dict
        assert compared(end_state(root)) == compared(expected), where
        shutil.rmtree(root)
    tally("failing volumes survived", len(tried))
