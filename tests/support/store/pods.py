"""Runs Pods of the loader's command line on a volume; tests can disturb them at every step.

A disturbed Pod is a fork, so that it can be killed, starts fast, and uses the test's made-up source
and conversion. Other Pods run in the tests' own process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sd_api.load import LoadRequest, Owner, RemoveRequest
from sd_api.wire import LoadResult
from sd_loader.digests import blake3_of
from sd_loader.handover import Converted, Fetched
from sd_loader.store import blobs
from tests.support.loader import inprocess
from tests.support.store.madeup import Parts, request
from tests.support.store.steps import OnStep, end, start, watch
from tests.support.store.volumes import FILES, MODEL_ID, NAMESAKE, NEW_HASH, OWNER, STRANGER, tree

WEIGHTS = b"w" * 100
NEIGHBOUR = "neighbour"
NOWHERE = "nowhere"
NEIGHBOURS_OWNER = STRANGER.model_copy(update={"uid": "uid-9"})
GIVEN_UP = STRANGER.model_copy(update={"uid": "uid-8", "name": "given-up"})


class TaggedParts(Parts):
    """A made-up source and conversion whose files name their load, to show if loads are mixed."""

    def fetch(self, request: LoadRequest, *rest: Any, **options: Any) -> Fetched:
        """Download a file that names the load."""
        self.content = request.load_hash.encode()
        return super().fetch(request, *rest, **options)

    def convert(self, fetched: Fetched, source_dir: Path, *rest: Any) -> Converted:
        """Write the files of the downloaded load, one of which models share."""
        self.content = (source_dir / fetched.path).read_bytes()
        self.files = files_of(self.content.decode())
        return super().convert(fetched, source_dir, *rest)


def files_of(load_hash: str) -> dict[str, bytes]:
    """Return the files that a load publishes."""
    return {**FILES, "unet/weights": load_hash.encode() * 7, "vae/weights": WEIGHTS}


def install_tagged_parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Make the loader use TaggedParts until the test ends; models can share one file."""
    # With the real threshold, each step would read and copy megabytes, which is slow.
    monkeypatch.setattr(blobs, "SHARED_FROM", len(WEIGHTS))
    # Killing a process does not lose data that the kernel has, so slow fsync calls are not needed.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return TaggedParts.installed(monkeypatch)


@dataclass(frozen=True)
class Pod:
    """A Pod, given as the commands that its containers run one after the other."""

    commands: tuple[tuple[str, ...], ...]
    name: str
    answers: bool = True
    """Whether it writes a termination message."""
    keeps: bool = True
    """Whether the models that were served before must still be served after it."""

    def __str__(self) -> str:
        return self.name

    def main(self, root: Path, name: str) -> int:
        """Run the commands in this process until one fails; return the exit code."""
        env = {
            **os.environ,
            "SD_LOADER_POD": name,
            "SD_LOADER_RETAIN_PREVIOUS_SECONDS": "0" if self.name == "sweep" else "86400",
            "SD_LOADER_TERMINATION_LOG": str(message_of(root, name)),
        }
        for command in self.commands:
            output = inprocess.run([*command, "--store", str(root)], env)
            sys.stderr.write(output.stderr)
            if output.code:
                return output.code
        return 0

    def start(
        self,
        root: Path,
        name: str = "pod",
        on_step: OnStep | None = None,
        *,
        reads: bool = False,
    ) -> int:
        """Start the Pod in its own process and return the process id."""

        def process() -> int:
            if on_step is not None:
                watch(root, on_step, reads=reads)
            return self.main(root, name)

        return start(process)

    def run(self, root: Path, name: str = "pod", on_step: OnStep | None = None) -> int:
        """Run the Pod; return the exit code, negative for a signal."""
        if on_step is None:
            return self.main(root, name)
        return end(self.start(root, name, on_step))


def message_of(root: Path, name: str) -> Path:
    """Return the path of a Pod's termination message."""
    return root.with_name(f"{root.name}-{name}-message")


def answer(root: Path, name: str = "pod") -> LoadResult:
    """Return the result that a Pod reports."""
    found = LoadResult.decode(message_of(root, name).read_text())
    assert found is not None
    return found


def _load(name: str, owner: Owner = OWNER, model_id: str = MODEL_ID, **fields: str) -> Pod:
    asked = request(owner, **fields).model_copy(update={"model_id": model_id})
    text = asked.to_argument()
    return Pod((("fetch", "--request", text), ("convert", "--request", text)), name)


def _remove(name: str, owner: Owner = OWNER, model_id: str = MODEL_ID, **fields: bool) -> Pod:
    asked = RemoveRequest(owner=owner, model_id=model_id, **fields)
    return Pod((("remove", "--request", asked.to_argument()),), name)


FIRST = _load("load")
RELOAD = _load("reload", load_hash=NEW_HASH)
ADOPTION = _load("adoption", NAMESAKE)
TAKEOVER = _load("takeover", NAMESAKE, load_hash=NEW_HASH)
NEIGHBOURS = _load("neighbour's load", NEIGHBOURS_OWNER, NEIGHBOUR)
STRANGERS = _load("stranger's load of the same id", STRANGER)
REMOVAL = replace(_remove("removal"), keeps=False)
RELEASE = _remove("release", retain=True)
LATE_REMOVAL = _remove("removal of the previous version")
NEIGHBOURS_REMOVAL = replace(
    _remove("neighbour's removal", NEIGHBOURS_OWNER, NEIGHBOUR), keeps=False
)
SWEEP = Pod((("sweep", "--delete", "--older-than", "0"),), "sweep", answers=False)
INTERRUPTED = Pod(_load("", GIVEN_UP, "given-up").commands[:1], "fetch")

Setup = Sequence[Pod | Callable[[Path], None]]


def litter(root: Path) -> None:
    """Add everything that a sweep removes: staging, trash, blobs, versions, models and links."""
    assert NEIGHBOURS.run(root) == 0
    (root / NEIGHBOUR).unlink()
    assert INTERRUPTED.run(root) == 0
    (root / ".store/.trash-uid-7/unet").mkdir(parents=True)
    (root / ".store/.trash-uid-7/unet/config.json").write_text("{}")
    digest = blake3_of(b"nobody's")
    unused = root / f".blobs/blake3/{digest[:2]}/{digest}"
    unused.parent.mkdir(parents=True)
    unused.write_bytes(b"nobody's")
    (root / NOWHERE).symlink_to(f".store/uid-6/{NEW_HASH}")


RUNS: list[tuple[Setup, Pod]] = [
    ([], FIRST),
    ([FIRST], RELOAD),
    ([FIRST, RELEASE], ADOPTION),
    ([FIRST], TAKEOVER),
    ([FIRST, RELOAD], REMOVAL),
    ([FIRST], RELEASE),
    ([NEIGHBOURS], FIRST),
    ([NEIGHBOURS, FIRST, RELEASE], ADOPTION),
    ([NEIGHBOURS, FIRST, RELOAD], REMOVAL),
    ([FIRST, RELOAD, litter], SWEEP),
]
"""The actions on a volume, and the run after them that is disturbed."""


def name_of(before: Setup, pod: Pod) -> str:
    """Describe a run in words."""
    done = [str(act) if isinstance(act, Pod) else act.__name__ for act in before]
    return f"{pod} after {' and '.join(done) or 'nothing'}"


Row = tuple[Any, ...]


def sampled(
    rows: Sequence[Row], name: Callable[..., str], few: int, many: int, quick: Container[int]
) -> list[Any]:
    """Return parameters: each row with the distance between the steps to try.

    `make test-all` runs all rows with many steps; `make test` runs the quick rows with few
    steps.
    """
    return [
        *(
            pytest.param(*row, few, id=f"{name(*row)}, some steps")
            for number, row in enumerate(rows)
            if number in quick
        ),
        *(
            pytest.param(*row, many, id=f"{name(*row)}, step by step", marks=pytest.mark.slow)
            for row in rows
        ),
    ]


def points(names: Sequence[str], apart: int) -> range:
    """Return the numbers of the steps to try."""
    return range(min(apart, len(names)) // 2, len(names), apart)


def prepared(root: Path, before: Setup) -> Path:
    """Create a volume and do these actions on it."""
    root.mkdir()
    for act in before:
        if isinstance(act, Pod):
            assert act.run(root, "pod-0") == 0
        else:
            act(root)
    return root


def copy(volume: Path, to: Path) -> Path:
    """Copy a volume and keep its hard links."""
    subprocess.run(["cp", "-a", volume, to], check=True)
    return to


def end_state(root: Path) -> dict[str, str | bytes]:
    """Return the volume's content without times, with the number of hard links of each file."""
    return {
        path: b"%d %s" % (os.lstat(root / path).st_nlink, _timeless(content))
        if isinstance(content, bytes)
        else content
        for path, content in tree(root).items()
    }


def _timeless(content: bytes) -> bytes:
    return re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"TIME", content)


def without_sharing(state: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    """Return a state without the sizes of shared files, which depend on timing."""
    return {
        path: re.sub(rb'\n *"sharedBytes": \d+,', b"", content)
        if isinstance(content, bytes)
        else content
        for path, content in state.items()
    }


def contents(state: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    """Return a state without the numbers of hard links and the sizes of shared files."""
    return {
        path: content.partition(b" ")[2] if isinstance(content, bytes) else content
        for path, content in without_sharing(state).items()
    }


def whole(folder: Path) -> str:
    """Return the load hash of a folder; the folder must have all files of that load."""
    found = tree(folder)
    load_hash = folder.resolve().name
    assert files_of(load_hash).items() <= found.items(), folder
    return load_hash


def served(root: Path) -> dict[str, str]:
    """Return the load hash that readers get under each model id; its files must be complete."""
    names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    return {name: whole(root / name) for name in names if (root / name).exists()}


def check_versions(root: Path) -> None:
    """Check that every version is complete and that no load's link is broken."""
    for link in root.iterdir():
        assert link.exists() or link.name == NOWHERE, link
    for version in root.glob(".store/[!.]*/????????????????"):
        whole(version)
