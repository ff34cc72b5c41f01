"""Measure full-size loads beside `cp` or the plain download, and beside diffusers, in one run.

    python -m tools.bench [--dir FOLDER] [--rounds N] [--only WORD]

Each row makes a random model of a real one's size; then the three take turns on the same file
system, with the source in the page cache, earlier writes on disk, and nobody calling fsync. Before
each, free memory is touched: a virtual machine may have lent it to its host, and whoever comes
first would pay for getting it back, seconds a gigabyte. Each is timed as a process, from start to
exit. The table shows medians. It ends with status 1 when a target is missed.

Beside them stands what one core takes for the SHA-256 of the largest file that ours publishes: it
cannot be split, so nothing that publishes digests is faster (docs/adr/0019).
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
"""MB; the second where the bytes come from the network."""
TIMEOUT = 600
MEGABYTE = 10**6


@dataclass(frozen=True)
class Row:
    """A source, and how ours should compare.

    kind: what `bench_runs` makes. of_plain: at most so many times the plain copy or download takes;
    None where it is only shown. faster: at least so many times as fast as diffusers. rate: the
    server's limit in MB/s where the source is downloaded: 0 for none, None for a file at hand.
    """

    name: str
    kind: str
    suffix: str
    of_plain: float | None
    faster: float | None
    revision: str | None = None
    rate: int | None = None


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
    """One run of one of them.

    peak: VmHWM in MB; 0 for what is no Python. largest: bytes of the largest file that it left.
    """

    seconds: float
    peak: float = 0
    largest: int = 0


def main() -> int:
    """Measure the rows that are asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to put 30 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    args = parser.parse_args()
    rows = [row for row in ROWS if args.only in row.name]
    if not rows:
        parser.error(f"no row has {args.only!r} in its name")
    print(
        f"{'':36}{'cp/curl':>9}{'digest':>8}{'ours':>8}{'diffusers':>11}"
        f"{'of plain':>16}{'speed-up':>15}  peak"
    )
    met = []
    for row in rows:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
            met.append(measure(row, Path(folder), args.rounds))
    return 0 if all(met) else 1


def measure(row: Row, folder: Path, rounds: int) -> bool:
    """Measure one row and print its line; whether all targets are met."""
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
    """The three on a file, or a folder, that is there."""
    return (
        lambda out: command("cp", "-r", source, out),
        lambda out: timed("ours", row.kind, source, out, row.revision or ""),
        lambda out: timed("diffusers", row.kind, source, out, configs),
    )


def downloaded(row: Row, url: str, configs: Path) -> tuple[Run, Run, Run]:
    """The three on a link; diffusers converts what curl has downloaded."""

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
    """Print the row's line; whether all targets are met."""
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
    """Run with an empty output folder, all earlier writes on disk, and memory at hand."""
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
    """A program that must be there: a missing peer is an error."""
    start = time.perf_counter()
    subprocess.run(list(map(str, arguments)), check=True, timeout=TIMEOUT)
    return Measured(time.perf_counter() - start)


def timed(*arguments: object) -> Measured:
    """One of the runs of `bench_runs`."""
    start = time.perf_counter()
    peak = child(*arguments)
    return Measured(time.perf_counter() - start, peak)


def child(*arguments: object) -> float:
    """Run it in a process of its own; its peak memory in MB."""
    line = [sys.executable, "-m", RUNS, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")
    return int(done.stdout.splitlines()[-1]) * 1024 / MEGABYTE


if __name__ == "__main__":
    sys.exit(main())
