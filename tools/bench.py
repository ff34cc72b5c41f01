"""Compare full-size loads with `cp` (or a plain download) and with diffusers.

    python -m tools.bench [--dir FOLDER] [--rounds N] [--only WORD]

Each row makes a random model of a real model's size. Then the copy, the loader and diffusers take
turns on the same file system: the source is in the page cache, earlier writes are on disk, and no
run calls fsync. Before each run the script touches the free memory. A virtual machine may have
lent that memory to its host, and getting it back takes seconds per gigabyte, which the first run
would pay. Each run is a process, timed from start to exit. The table shows medians. The exit
status is 1 if the loader misses a target.

The column `digest` shows how long one core needs for the SHA-256 of the largest file that the
loader publishes. One digest cannot be split over cores, so no load that publishes digests is
faster (docs/adr/0019).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tools.range_server import RangeServer

RUNS = "tools.bench_runs"
MEMORY_TARGET = 100
STREAMING_MEMORY_TARGET = 150
"""In MB, for loads from a link. MEMORY_TARGET, in MB, is for loads from a file."""
TIMEOUT = 600
MEGABYTE = 10**6


@dataclass(frozen=True)
class Row:
    """A source to load, and the loader's targets for it."""

    name: str
    kind: str
    """The kind of source, a key of SHAPES in `bench_runs` or `repo-bin`."""
    suffix: str
    of_plain: float | None
    """The most time the load may take, as a multiple of the plain copy or download.

    None if there is no target.
    """
    faster: float | None
    """How many times as fast as diffusers the load must be; None if there is no target."""
    revision: str | None = None
    rate: int | None = None
    """The server's limit in MB/s; 0 for no limit; None if the source is a local file."""


ROWS = (
    Row("SD 1.5 fp16 .safetensors", "sd15", ".safetensors", 3.0, 4.0),
    Row("SD 1.5 fp32 .ckpt to fp16", "sd15", ".ckpt", 1.0, 5.0, "fp16"),
    Row("SD 1.5 fp32 .ckpt with EMA to fp16", "sd15-ema", ".ckpt", 0.5, 5.0, "fp16"),
    Row("SDXL fp16 .safetensors", "sdxl", ".safetensors", 1.7, 2.0),
    Row("SD 2.1 fp16 .safetensors", "sd21", ".safetensors", None, None),
    Row("SDXL LoRA .safetensors", "lora", ".safetensors", None, None),
    Row("SD 1.5 ControlNet fp32 .pth to fp16", "controlnet", ".pth", None, None, "fp16"),
    Row("SD 1.5 repo of .bin weights", "repo-bin", "", None, None),
    Row("SD 1.5 fp16 link at 300 MB/s", "sd15", ".safetensors", 1.1, None, rate=300),
    Row("SD 1.5 fp16 link, no limit", "sd15", ".safetensors", None, None, rate=0),
    Row("SD 1.5 .ckpt with EMA at 300 MB/s", "sd15-ema", ".ckpt", 1.0, None, "fp16", 300),
)


@dataclass(frozen=True)
class Measured:
    """The measurements of one run."""

    seconds: float
    peak: float = 0
    """The peak memory (VmHWM) in MB; 0 if the run is not a Python process."""
    largest: int = 0
    """The size in bytes of the largest file that the run wrote."""


def main() -> int:
    """Measure the selected rows and print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dir", type=Path, default=Path.cwd(), help="folder for temporary files (about 30 GB)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs per row")
    parser.add_argument("--only", default="", help="measure only rows whose name contains this")
    args = parser.parse_args()
    rows = [row for row in ROWS if args.only in row.name]
    if not rows:
        parser.error(f"no row's name contains {args.only!r}")
    print(
        f"{'':36}{'cp/curl':>9}{'digest':>8}{'loader':>8}{'diffusers':>11}"
        f"{'vs cp/curl':>16}{'vs diffusers':>15}  peak memory"
    )
    met = []
    for row in rows:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
            met.append(measure(row, Path(folder), args.rounds))
    return 0 if all(met) else 1


def measure(row: Row, folder: Path, rounds: int) -> bool:
    """Measure one row and print its line; return whether all targets are met."""
    source = folder / f"model{row.suffix}"
    child("make", row.kind, source)
    configs = folder / "configs"
    child("configs", row.kind, source, configs)
    with ExitStack() as stack:
        if row.rate is None:
            plain, ours, theirs = at_hand(row, source, configs)
        else:
            url = stack.enter_context(RangeServer(source, row.rate * MEGABYTE)).url
            plain, ours, theirs = downloaded(row, url, configs)
        runs: dict[str, list[Measured]] = {"plain": [], "ours": [], "digest": [], "diffusers": []}
        for _ in range(rounds):
            runs["plain"].append(alone(folder, plain))
            runs["ours"].append(alone(folder, ours))
            runs["digest"].append(timed("digest", runs["ours"][-1].largest))
            runs["diffusers"].append(alone(folder, theirs))
    return show(row, runs)


Run = Callable[[Path], Measured]


def at_hand(row: Row, source: Path, configs: Path) -> tuple[Run, Run, Run]:
    """Return the three runs on a local file or folder."""
    return (
        lambda out: command("cp", "-r", source, out),
        lambda out: timed("ours", row.kind, source, out, row.revision or ""),
        lambda out: timed("diffusers", row.kind, source, out, configs),
    )


def downloaded(row: Row, url: str, configs: Path) -> tuple[Run, Run, Run]:
    """Return the three runs on a link; diffusers converts the file that curl downloads."""

    def theirs(out: Path) -> Measured:
        copy = out / f"copy{row.suffix}"
        download = command("curl", "-sf", "-o", copy, url)
        converted = timed("diffusers", row.kind, copy, out / "folder", configs)
        return Measured(download.seconds + converted.seconds, converted.peak)

    return (
        lambda out: command("curl", "-sf", "-o", out / "copy", url),
        lambda out: timed("ours-link", url, out, row.revision or ""),
        theirs,
    )


def show(row: Row, runs: dict[str, list[Measured]]) -> bool:
    """Print the row's line; return whether all targets are met."""
    seconds = {
        name: statistics.median(run.seconds for run in found) for name, found in runs.items()
    }
    peaks = {name: max(run.peak for run in found) for name, found in runs.items()}
    of_plain = seconds["ours"] / seconds["plain"]
    faster = seconds["diffusers"] / seconds["ours"]
    memory = MEMORY_TARGET if row.rate is None else STREAMING_MEMORY_TARGET
    missed = [
        row.of_plain is not None and of_plain > row.of_plain,
        row.faster is not None and faster < row.faster,
        peaks["ours"] > memory,
    ]
    of_target = f" (≤{row.of_plain})" if row.of_plain else ""
    faster_target = f" (≥{row.faster})" if row.faster else ""
    print(
        f"{row.name:36}{seconds['plain']:8.2f}s{seconds['digest']:7.2f}s{seconds['ours']:7.2f}s"
        f"{seconds['diffusers']:10.2f}s"
        f"{of_plain:8.2f}{of_target:8}{faster:6.1f}x{faster_target:8}"
        f"{peaks['ours']:5.0f} MB (≤{memory}; diffusers {peaks['diffusers'] / 1000:.1f} GB)"
        f"{'  MISSED' if any(missed) else ''}",
        flush=True,
    )
    return not any(missed)


def alone(folder: Path, run: Run) -> Measured:
    """Run with an empty output folder, earlier writes on disk and free memory touched."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    subprocess.run(["sync"], check=True)
    child("touch")
    measured = run(out)
    largest = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return replace(measured, largest=largest)


def command(*arguments: object) -> Measured:
    """Time a program; raise if it is missing or fails."""
    start = time.perf_counter()
    subprocess.run(list(map(str, arguments)), check=True, timeout=TIMEOUT)
    return Measured(time.perf_counter() - start)


def timed(*arguments: object) -> Measured:
    """Time a run of `bench_runs` and measure its peak memory."""
    start = time.perf_counter()
    peak = child(*arguments)
    return Measured(time.perf_counter() - start, peak)


def child(*arguments: object) -> float:
    """Run `bench_runs` in its own process; return its peak memory in MB."""
    line = [sys.executable, "-m", RUNS, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")
    return int(done.stdout.splitlines()[-1]) * 1024 / MEGABYTE


if __name__ == "__main__":
    sys.exit(main())
