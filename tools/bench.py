"""Measure full-size conversions beside `cp` and diffusers, in one run.

    python tools/bench.py [--dir FOLDER] [--rounds N] [--only WORD]

Each row makes a random checkpoint of a real model's size, then the three take turns on the same
file system, with the file in the page cache, earlier writes on disk, and nobody calling fsync.
Each is timed as a process, from start to exit. The table shows medians. It ends with status 1 when
a target is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
MEMORY_TARGET = 100 * 10**6
TIMEOUT = 600


@dataclass(frozen=True)
class Row:
    """A checkpoint, and how ours should compare: times at most `cp`'s, and of diffusers'."""

    name: str
    kind: str
    container: str
    revision: str | None
    of_cp: float
    faster_than_diffusers: float


ROWS = (
    Row("SD 1.5 fp16 .safetensors", "sd15", "safetensors", None, 3.0, 4.0),
    Row("SD 1.5 fp32 .ckpt to fp16", "sd15", "ckpt", "fp16", 1.0, 5.0),
    Row("SD 1.5 fp32 .ckpt with EMA to fp16", "sd15-ema", "ckpt", "fp16", 0.5, 5.0),
    Row("SDXL fp16 .safetensors", "sdxl", "safetensors", None, 1.7, 2.0),
)


@dataclass(frozen=True)
class Measured:
    """One run of one of them. peak: VmHWM in bytes; None for cp."""

    seconds: float
    peak: int | None = None


def main() -> int:
    """Measure the rows that are asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to put 25 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        CHILDREN[args.child[0]](*args.child[1:])
        print(peak_memory())
        return 0
    met = []
    print(
        f"{'':36}{'cp':>8}{'ours':>8}{'diffusers':>11}{'ours/cp':>14}{'speed-up':>14}{'peak':>14}"
    )
    for row in ROWS:
        if args.only in row.name:
            with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir) as folder:
                met.append(measure(row, Path(folder), args.rounds))
    return 0 if met and all(met) else 1


def measure(row: Row, folder: Path, rounds: int) -> bool:
    """Measure one row and print its line; whether all targets are met."""
    source = folder / f"model.{row.container}"
    child("make", row.kind, str(source))
    # diffusers takes its configs and tokenizers from a folder: ours, without the weights.
    configs = folder / "configs"
    child("ours", str(source), str(configs), row.revision or "")
    for path in configs.rglob("*.safetensors"):
        path.unlink()
    runs: dict[str, list[Measured]] = {"cp": [], "ours": [], "diffusers": []}
    for _ in range(rounds):
        runs["cp"].append(alone(folder, lambda out: copy(source, out)))
        runs["ours"].append(
            alone(folder, lambda out: timed("ours", str(source), str(out), row.revision or ""))
        )
        runs["diffusers"].append(
            alone(
                folder,
                lambda out: timed("diffusers", row.kind, str(source), str(out), str(configs)),
            )
        )
    seconds = {
        name: statistics.median(run.seconds for run in found) for name, found in runs.items()
    }
    peaks = {name: max(run.peak or 0 for run in found) for name, found in runs.items()}
    of_cp = seconds["ours"] / seconds["cp"]
    faster = seconds["diffusers"] / seconds["ours"]
    print(
        f"{row.name:36}{seconds['cp']:7.2f}s{seconds['ours']:7.2f}s{seconds['diffusers']:10.2f}s"
        f"{of_cp:6.2f} (≤{row.of_cp:.1f}){faster:6.1f}x (≥{row.faster_than_diffusers:.0f})"
        f"{peaks['ours'] / 1e6:6.0f} MB (≤100; diffusers {peaks['diffusers'] / 1e9:.1f} GB)",
        flush=True,
    )
    return (
        of_cp <= row.of_cp
        and faster >= row.faster_than_diffusers
        and peaks["ours"] <= MEMORY_TARGET
    )


def alone(folder: Path, run) -> Measured:  # noqa: ANN001 - a lambda from above
    """Run with an empty output folder and all earlier writes on disk."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    measured = run(out)
    shutil.rmtree(out)
    return measured


def copy(source: Path, out: Path) -> Measured:
    """cp, of the whole source file."""
    out.mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", str(source), str(out)], check=True, timeout=TIMEOUT)
    return Measured(time.perf_counter() - start)


def timed(*arguments: str) -> Measured:
    """One of CHILDREN."""
    start = time.perf_counter()
    peak = child(*arguments)
    return Measured(time.perf_counter() - start, peak)


def child(*arguments: str) -> int:
    """Run one of CHILDREN in a process of its own; its peak memory in bytes."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def peak_memory() -> int:
    """The most memory that this process ever had, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def make_child(kind: str, path: str) -> None:
    """Write a checkpoint of random numbers: every storage its own, every number finite."""
    sys.path.insert(0, str(TESTS))
    import torch
    from ldm_layouts import SD15, SDXL, ema_shapes, sd15_shapes, sdxl_shapes
    from safetensors.torch import save_file

    shapes = {
        "sd15": lambda: sd15_shapes(SD15),
        "sd15-ema": lambda: sd15_shapes(SD15) | ema_shapes(SD15),
        "sdxl": lambda: sdxl_shapes(SDXL),
    }[kind]()
    is_ckpt = path.endswith(".ckpt")
    numbers = torch.randn(64 * 2**20) * 0.05
    numbers = numbers if is_ckpt else numbers.half()
    tensors = {name: numbers[: size(shape)].clone().view(shape) for name, shape in shapes.items()}
    if is_ckpt:
        torch.save({"state_dict": tensors, "global_step": 470000}, path)
    else:
        save_file(tensors, path)


def size(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    product = 1
    for length in shape:
        product *= length
    return product


def ours_child(source: str, out: str, revision: str) -> None:
    """Convert by the loader, as `sd-loader convert` does between staging and publishing."""
    from sd_api.load import LoadRequest, Source
    from sd_loader.convert import convert
    from sd_loader.source import Fetched

    path = Path(source)
    request = LoadRequest.model_validate(
        {
            "owner": {"uid": "bench", "namespace": "default", "name": "bench"},
            "modelId": "bench",
            "modelType": "custom_ckpt",
            "url": "https://models.example.com/model",
            "loadHash": "0" * 16,
            "revision": revision or None,
        }
    )
    Path(out).mkdir()
    fetched = Fetched(kind="file", path="model", source=Source())
    link = path.with_name("model")
    link.unlink(missing_ok=True)
    link.hardlink_to(path)
    convert(fetched, path.parent, request, Path(out), lambda _: None)


def diffusers_child(kind: str, source: str, out: str, configs: str) -> None:
    """Convert by diffusers, to the precision in which ours publishes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipeline.from_single_file(
        source, config=configs, local_files_only=True, torch_dtype=torch.float16
    ).save_pretrained(out)


CHILDREN = {"make": make_child, "ours": ours_child, "diffusers": diffusers_child}

if __name__ == "__main__":
    sys.exit(main())
