"""Hostile model files are refused, run no code and cost little."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hostile import naive
from tests.support.hostile.kinds import KINDS
from tests.support.hostile.pickles import CANARY_MODULE
from tests.support.hostile.samples import Sample, Samples
from tests.support.loader.loaderbatch import CPU_SECONDS, Line, Ran, run_lines

MEMORY = 300 << 20
CANARY_SOURCE = "open('canary', 'w').close()\n\nclass Thing:\n    pass\n\nanything = Thing()\n"


@dataclass(frozen=True)
class Laid:
    """A hostile file in its own folder. If its code runs, it creates a canary file there."""

    name: str
    sample: Sample
    folder: Path

    @property
    def has_sung(self) -> bool:
        """Return whether the canary file exists, which means that the file's code ran."""
        return os.path.lexists(self.folder / "canary")

    @property
    def is_seen_by_inspect(self) -> bool:
        """Return whether `inspect` recognises the kind of file."""
        return self.sample.model_type is None

    def inspect(self, *, anew: bool = False) -> Line:
        """Return the command line that inspects the file."""
        return Line(self.folder, ["inspect", naive.FILE], anew)

    def load(self, *, anew: bool = False) -> Line:
        """Return the command line that loads the file."""
        kind = self.sample.model_type
        arguments = ["load", "--url", naive.FILE, "--model-id", "m", "--store", "store"]
        return Line(self.folder, [*arguments, *(["--model-type", kind] if kind else [])], anew)


def lay(root: Path, samples: Samples) -> list[Laid]:
    """Write the samples to files."""
    laid = [
        Laid(name, sample, root / str(number))
        for number, (name, sample) in enumerate(samples.items())
    ]
    for one in laid:
        one.folder.mkdir()
        (one.folder / naive.FILE).write_bytes(one.sample.bytes())
        (one.folder / f"{CANARY_MODULE}.py").write_text(CANARY_SOURCE)
    return laid


def environment(root: Path) -> dict[str, str]:
    """Return the environment of the loader."""
    return {"PATH": os.environ["PATH"], "HOME": str(root)}


def refused(one: Laid, ended: Ran) -> list[str]:
    """Return how the run differs from the expected refusal of the file; empty if it does not."""
    wrong = []
    said = re.search(r"^error: (\w+): (.*)$", ended.output, re.MULTILINE)
    reason = one.sample.expected(said[2] if said else "")
    if said is None or (ended.code, said[1]) != (reason.exit_code, reason.value):
        wrong.append(f"ended with {ended.code}, not with {reason.value}")
    elif not re.search(one.sample.says, said[2]):
        wrong.append(f"does not say {one.sample.says!r}")
    if one.has_sung:
        wrong.append("ran its code")
    if ended.memory > MEMORY:
        wrong.append(f"took {ended.memory >> 20} MB")
    if ended.seconds > CPU_SECONDS:
        wrong.append(f"took {ended.seconds} s")
    if any((one.folder / "store").glob("*")):
        wrong.append("left something on the volume")
    return [f"{one.name}: {what}: {ended.output[-500:]}" for what in wrong]


def check(lines: Sequence[tuple[Laid, Line]], root: Path) -> None:
    """Run the command lines; fail unless each refuses its file as `refused` expects."""
    ended = run_lines([line for _, line in lines], environment(root))
    wrong = [what for (one, _), ran in zip(lines, ended, strict=True) for what in refused(one, ran)]
    assert not wrong, "\n".join(wrong)


COSTLY = "bombs"
SHARE, SHARE_OF_COSTLY, LOADED = 12, 48, 8
"""Of every SHARE files (SHARE_OF_COSTLY for COSTLY), the usual run inspects one.

Of every LOADED of these files, it loads one too.
"""


def test_hostile_files_are_refused_without_effect(tmp_path, tally):
    """`inspect` and `load` refuse each file for the right reason and publish nothing.

    They run none of its code and take little time and memory.
    """
    laid = lay(
        tmp_path,
        {
            f"{kind}: {name}": sample
            for kind, samples in KINDS.items()
            for name, sample in list(samples.items())[
                :: SHARE_OF_COSTLY if kind == COSTLY else SHARE
            ]
        },
    )
    lines = [(one, one.inspect()) for one in laid if one.is_seen_by_inspect]
    others = [one for one in laid if not one.is_seen_by_inspect]
    check([*lines, *((one, one.load()) for one in (*others, *laid[::LOADED]))], tmp_path)
    tally("hostile files refused", len(laid))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_every_hostile_file_is_refused_on_the_command_line(tmp_path, tally, kind):
    """`load` and, where possible, `inspect` refuse the file; one of them runs in a new process."""
    laid = lay(tmp_path, KINDS[kind])
    lines = []
    for number, one in enumerate(laid):
        anew = number % 2 == 0
        lines.append((one, one.load(anew=anew or not one.is_seen_by_inspect)))
        if one.is_seen_by_inspect:
            lines.append((one, one.inspect(anew=not anew)))
    check(lines, tmp_path)
    tally("hostile files refused on the command line", len(laid))


MALICIOUS = {
    f"{kind}: {name}": sample
    for kind, samples in KINDS.items()
    for name, sample in samples.items()
    if sample.control is not None
}


# Slow: the test checks only the samples, and starts a process that imports torch.
@pytest.mark.slow
def test_each_malicious_file_runs_code_in_a_careless_reader(tmp_path, tally):
    """A careless reader in a separate process creates the canary file."""
    laid = lay(tmp_path, MALICIOUS)
    jobs = "\n".join(json.dumps([str(one.folder), one.sample.control]) for one in laid)
    subprocess.run(
        [sys.executable, naive.__file__], input=jobs, capture_output=True, text=True, check=True
    )
    assert [one.name for one in laid if not one.has_sung] == []
    tally("hostile files that ran code elsewhere", len(laid))


def test_there_are_enough_hostile_files():
    """Besides COSTLY, there are 300 different files; at least 150 files would run code."""
    contents = {
        hashlib.sha256(sample.bytes()).digest()
        for kind, samples in KINDS.items()
        if kind != COSTLY
        for sample in samples.values()
    }
    assert len(contents) == sum(len(KINDS[kind]) for kind in KINDS if kind != COSTLY) >= 300
    assert len(MALICIOUS) >= 150
