"""Compare loads of full-size models with `cp`, with the floor of the machine, and with diffusers.

    python -m tools.bench [--dir FOLDER] [--rounds N] [--only WORD] [--tiny] [--no-diffusers]

Each row makes a random model of a real model's size. Then its contenders take turns on the same
file system; the source is in the page cache, and earlier writes are on disk. There are three kinds
of rows:

- convert: the loader's conversion beside `cp`, the floor and diffusers. No run calls fsync.
- load: the command, beside a copy by `cp` and `sync -f`. Both end when the bytes are on disk.
- link: the loader's download and conversion beside `curl`.

The floor is a process that writes as many bytes as the loader publishes, with the same casts, and
digests them meanwhile, without any of the loader's checks. No load that publishes digests can be
much faster.

Before each run the script touches the free memory. A virtual machine may have lent that memory to
its host, and getting it back takes seconds per gigabyte, which the first run would pay.

The table shows the medians of wall time and of user and system time, and the peak memory, which is
at least that of this script. A line below a row names each target that the loader misses: those
that bind, and those that are wished. The exit status is 1 if a binding target is missed.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.range_server import RangeServer

RUNS = "tools.bench_runs"
WEIGHTS = "*.safetensors"
TIMEOUT = 1200
MEGABYTE = 10**6
OF_FLOOR, MORE_THAN_FLOOR = 1.15, 0.3
"""A conversion may take this many times the floor, and this many seconds more."""
FASTER_THAN_DIFFUSERS = 4
"""How many times as fast as diffusers a conversion is wished to be."""
MEMORY, MEMORY_OF_LINKS = 100, 150
"""The most memory that a load may need, in MB."""
MORE_THAN_PYDANTIC = 0.15
"""How many more seconds of processor time a tiny load may take than the import of pydantic."""


@dataclass(frozen=True)
class Row:
    """A source to load, and the loader's targets for it."""

    name: str
    kind: str
    """A key of KINDS in `bench_models`, or `repo-` with such a key and the kind of weights."""
    suffix: str
    of_plain: float | None = None
    """The most time that is wished, as a multiple of the plain copy or download."""
    binds: bool = False
    """Whether the targets beside the floor bind."""
    revision: str | None = None
    cast: str = ""
    """The types of the source's weights and of those that are published, if they differ."""
    rate: int | None = None
    """The server's limit in MB/s; 0 for no limit; None if the source is a local file."""
    what: str = "convert"
    """convert, load, link, adopt, remove or start."""
    faster: float | None = None
    """How many times as fast as diffusers the loader must be. None if this only is wished."""
    equal: bool = False
    """True if the files with weights must equal those of diffusers, byte for byte.

    For SD 1.5 and SDXL, the names of CLIP's tensors depend on the version of transformers.
    """


ROWS = (
    Row("SD 1.5 fp16", "sd15", ".safetensors", 1.4, binds=True, faster=4),
    Row("SDXL fp16", "sdxl", ".safetensors", 1.25, binds=True, faster=4),
    Row("SD 3.5 medium fp16", "sd35", ".safetensors", faster=3, equal=True),
    Row("SD 1.5 fp32 .ckpt to fp16", "sd15", ".ckpt", 0.8, True, "fp16", "F32-F16"),
    Row("SD 1.5 fp32 .ckpt with EMA to fp16", "sd15-ema", ".ckpt", 0.45, False, "fp16", "F32-F16"),
    Row("SDXL fp32 .ckpt to fp16", "sdxl", ".ckpt", 0.8, False, "fp16", "F32-F16"),
    Row("SDXL fp8 to bf16", "sdxl-fp8", ".safetensors", None, False, "bf16", "F8_E4M3-BF16"),
    Row("SD 2.1 fp16", "sd21", ".safetensors"),
    Row("SDXL LoRA", "lora", ".safetensors"),
    Row("ControlNet fp32 .pth to fp16", "controlnet", ".pth", None, False, "fp16", "F32-F16"),
    Row("SD 1.5 repo of fp32 .bin", "repo-sd15-bin", ""),
    Row("SDXL repo of shards", "repo-sdxl-shards", ""),
    Row("load SD 1.5 fp16", "sd15", ".safetensors", what="load"),
    Row("load SDXL fp16", "sdxl", ".safetensors", what="load"),
    Row("adopt SD 1.5 fp16", "sd15", ".safetensors", what="adopt"),
    Row("remove SD 1.5 fp16", "sd15", ".safetensors", what="remove"),
    Row("link SD 1.5 fp16 at 300 MB/s", "sd15", ".safetensors", 1.05, rate=300, what="link"),
    Row("link SD 1.5 fp16", "sd15", ".safetensors", rate=0, what="link"),
    Row("link with EMA at 300 MB/s", "sd15-ema", ".ckpt", 0.55, False, "fp16", "", 300, "link"),
    Row("start: a tiny load", "sd15", ".safetensors", what="start"),
)


@dataclass(frozen=True)
class Measured:
    """The measurements of one run, or their medians."""

    wall: float
    cpu: float
    """User and system time, in seconds."""
    peak: float
    """In MB."""

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak))


@dataclass(frozen=True)
class Contender:
    """A run that takes its turn in each round."""

    name: str
    run: Callable[[Path], Measured]
    """Takes the empty folder for the output."""
    prepare: Callable[[Path], None] = lambda _out: None
    """Done before the time is taken."""


def main() -> int:
    """Measure the selected rows and print the table. Return 1 if a binding target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dir", type=Path, default=Path.cwd(), help="folder for temporary files (about 30 GB)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender")
    parser.add_argument("--only", default="", help="measure only rows whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--no-diffusers", action="store_true", help="leave diffusers out")
    args = parser.parse_args()
    rows = [row for row in ROWS if args.only in row.name]
    if not rows:
        parser.error(f"no row's name contains {args.only!r}")
    print(f"{'':36}{'contender':12}{'wall':>9}{'user+sys':>10}{'peak':>9}", flush=True)
    missed = False
    for row in rows:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
            found = measure(row, Path(folder), args)
        show(row, found)
        for binds, target in misses(row, found):
            print(f"{'':4}{'MISSED' if binds else 'wished, missed'}: {target}", flush=True)
            missed = missed or binds
    return 1 if missed else 0


def measure(row: Row, folder: Path, args: argparse.Namespace) -> dict[str, Measured]:
    """Let the contenders of a row take turns. Return their medians."""
    source = folder / f"model{row.suffix}"
    tiny = ["tiny"] if args.tiny or row.what == "start" else []
    child("tools.bench_models", row.kind, source, *tiny)
    with ExitStack() as stack:
        stack.enter_context(in_page_cache(source))
        match row.what:
            case "convert":
                contenders = conversions(row, source, folder, with_diffusers=not args.no_diffusers)
            case "load":
                contenders = loads(source)
            case "adopt" | "remove":
                contenders = of_published(row, source)
            case "link":
                assert row.rate is not None
                url = stack.enter_context(RangeServer(source, row.rate * MEGABYTE)).url
                contenders = downloads(row, url)
            case _:
                contenders = starts(source)
        runs: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
        for number in range(args.rounds):
            turn = number % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                runs[contender.name].append(alone(folder, contender, is_tiny=bool(tiny)))
    return {name: median(found) for name, found in runs.items()}


@contextmanager
def in_page_cache(source: Path) -> Iterator[None]:
    """Keep the source in the page cache, which a system may empty of what was not read lately."""
    line = [sys.executable, "-m", RUNS, "hold", str(source)]
    # The process ends when its stdin is closed, at the end of this block.
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            sys.exit(f"{source} cannot be kept in the page cache")
        yield


def conversions(row: Row, source: Path, folder: Path, *, with_diffusers: bool) -> list[Contender]:
    """Return the contenders for a local file or repo, without fsync."""
    revision = row.revision or ""
    published = folder / "published"
    published.mkdir()
    child(RUNS, "convert", row.kind, source, published, revision)
    count = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    contenders = [
        Contender("cp", lambda out: command("cp", "-r", source, out)),
        Contender("floor", lambda out: timed("floor", source, out, count, row.cast)),
        Contender("loader", lambda out: timed("convert", row.kind, source, out, revision)),
    ]
    if with_diffusers:
        configs = folder / "configs"
        child(RUNS, "configs", row.kind, source, configs)
        contenders.append(
            Contender("diffusers", lambda out: timed("diffusers", row.kind, source, out, configs))
        )
        if row.equal:
            theirs = folder / "theirs"
            child(RUNS, "diffusers", row.kind, source, theirs, configs)
            compare(published, theirs)
            shutil.rmtree(theirs)
    shutil.rmtree(published)
    return contenders


def compare(ours: Path, theirs: Path) -> None:
    """Compare the bytes of all files with weights. Exit if any of them differ."""
    names = {
        str(path.relative_to(folder)) for folder in (ours, theirs) for path in folder.rglob(WEIGHTS)
    }
    equal, *_ = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if different := names.difference(equal):
        sys.exit(f"these files differ from those of diffusers: {', '.join(sorted(different))}")


def loads(source: Path) -> list[Contender]:
    """Return the contenders that end when the bytes are on disk."""

    def copy(out: Path) -> Measured:
        return command("cp", source, out / "copy") + command("sync", "-f", out / "copy")

    return [Contender("cp, sync -f", copy), Contender("loader", lambda out: load(source, out))]


def load(source: Path, store: Path) -> Measured:
    """Run the command that publishes a local file."""
    return loader("load", "--url", source, "--model-id", "bench", "--store", store)


def of_published(row: Row, source: Path) -> list[Contender]:
    """Return the contenders for a model that is published already."""
    requests: dict[str, object] = {}

    def prepare(out: Path) -> None:
        retain = ["retain"] if row.what == "adopt" else []
        requests.update(json.loads(child(RUNS, "publish", source, out, *retain)))

    def ours(out: Path) -> Measured:
        name = "fetch" if row.what == "adopt" else "remove"
        return loader(name, "--request", json.dumps(requests[name]), "--store", out)

    def plain(out: Path) -> Measured:
        if row.what == "remove":
            return command("rm", "-r", out)
        files = [path for path in out.rglob("*") if path.is_file()]
        return command("cat", *files)

    return [
        Contender("rm -r" if row.what == "remove" else "cat", plain, prepare),
        Contender("loader", ours, prepare),
    ]


def downloads(row: Row, url: str) -> list[Contender]:
    """Return the contenders for a link."""
    return [
        Contender("curl", lambda out: command("curl", "-sf", "-o", out / "copy", url)),
        Contender("loader", lambda out: timed("fetch", url, out, row.revision or "")),
    ]


def starts(source: Path) -> list[Contender]:
    """Return the contenders that show the fixed cost of a load."""
    return [
        Contender("pydantic", lambda _out: command(sys.executable, "-c", "import pydantic")),
        Contender("help", lambda _out: loader("--help")),
        Contender("loader", lambda out: load(source, out)),
    ]


def misses(row: Row, found: dict[str, Measured]) -> Iterator[tuple[bool, str]]:
    """Yield each missed target, with whether it binds."""
    ours = found["loader"]
    plain = next(iter(found.values()))
    if row.what == "start":
        most = plain.cpu + MORE_THAN_PYDANTIC
        if ours.cpu > most:
            yield False, f"{ours.cpu:.2f} s of processor time, not {most:.2f} s"
        return
    limit = MEMORY_OF_LINKS if row.what == "link" else MEMORY
    if ours.peak > limit:
        yield True, f"{ours.peak:.0f} MB of memory, not {limit} MB"
    if row.of_plain is not None and ours.wall > row.of_plain * plain.wall:
        yield False, f"{ours.wall / plain.wall:.2f} times the plain copy, not {row.of_plain}"
    floor = found.get("floor")
    if floor is not None:
        for what, time_taken, least in (
            ("wall time", ours.wall, floor.wall),
            ("user and system time", ours.cpu, floor.cpu),
        ):
            most = OF_FLOOR * least + MORE_THAN_FLOOR
            if time_taken > most:
                yield row.binds, f"{time_taken:.2f} s of {what}, not {most:.2f} s by the floor"
    theirs = found.get("diffusers")
    least_ratio = row.faster or FASTER_THAN_DIFFUSERS
    if theirs is not None and theirs.wall < least_ratio * ours.wall:
        ratio = theirs.wall / ours.wall
        yield row.faster is not None, f"{ratio:.1f} times as fast as diffusers, not {least_ratio}"


def show(row: Row, found: dict[str, Measured]) -> None:
    """Print the lines of a row."""
    name = row.name
    for contender, run in found.items():
        print(
            f"{name:36}{contender:12}{run.wall:8.2f}s{run.cpu:9.2f}s{run.peak:6.0f} MB", flush=True
        )
        name = ""


def median(runs: list[Measured]) -> Measured:
    """Return the medians of time, and the highest peak."""
    return Measured(
        statistics.median(run.wall for run in runs),
        statistics.median(run.cpu for run in runs),
        max(run.peak for run in runs),
    )


def alone(folder: Path, contender: Contender, *, is_tiny: bool) -> Measured:
    """Run with an empty output folder, earlier writes on disk and free memory filled."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    contender.prepare(out)
    subprocess.run(["sync"], check=True)
    if not is_tiny:
        child(RUNS, "fill", folder / "sparse")
    measured = contender.run(out)
    shutil.rmtree(out, ignore_errors=True)
    return measured


def command(*arguments: object) -> Measured:
    """Run a program, and measure it. Exit if it fails."""
    line = [str(argument) for argument in arguments]
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors)
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(line)}\n{errors.read().decode(errors='replace')}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MEGABYTE)


def timed(*arguments: object) -> Measured:
    """Measure a run of `bench_runs`."""
    return command(sys.executable, "-m", RUNS, *arguments)


def loader(*arguments: object) -> Measured:
    """Measure a command of the loader."""
    return command(sys.executable, "-m", "sd_loader", *arguments)


def child(module: str, *arguments: object) -> str:
    """Run a module that is not measured. Return its output; exit if it fails."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
