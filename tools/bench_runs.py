"""The runs of `bench`, each in a process of its own.

python -m tools.bench_runs RUN ARGUMENT...
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd_api.load import LoadRequest

MODEL_TYPES = {"lora": "lora", "controlnet": "controlnet"}
PIECE = 1 << 20
_LEFT_FREE = 256 << 20
_MOST_FILLED = 64 << 30
HASH = "0" * 16
_LOCKED = 0x2000
"""MAP_LOCKED of Linux, which Python's mmap does not name."""


def request(kind: str, url: str, revision: str) -> LoadRequest:
    """Return the request that loads one kind of source."""
    from sd_api.load import LoadRequest

    model_type = "huggingface" if kind.startswith("repo-") else "custom_ckpt"
    return LoadRequest.model_validate(
        {
            "owner": {"uid": "bench", "namespace": "default", "name": "bench"},
            "modelId": "bench",
            "modelType": MODEL_TYPES.get(kind, model_type),
            "url": url,
            "loadHash": HASH,
            "revision": revision or None,
        }
    )


def convert(kind: str, source: str, out: str, revision: str) -> None:
    """Convert with the loader, as `sd-loader convert` does between staging and publishing."""
    from sd_api.wire import Source
    from sd_loader.convert import run
    from sd_loader.handover import Fetched
    from sd_loader.request import conversion_of

    path = Path(source)
    load = request(kind, "https://models.example.com/model", revision)
    if path.is_dir():
        fetched = Fetched(kind="repo", path=path.name, source=Source())
    else:
        fetched = Fetched(kind="file", path="model", source=Source())
        link = path.with_name("model")
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
    run.convert(fetched, path.parent, conversion_of(load), Path(out), lambda _: None)


def fetch(url: str, out: str, revision: str) -> None:
    """Download and convert with the loader. `acquire` converts during the download if it can."""
    from urllib.parse import urlsplit

    from sd_loader.acquire import acquire
    from sd_loader.convert import run
    from sd_loader.net.client import HttpClient
    from sd_loader.request import conversion_of
    from sd_loader.settings import Settings

    into, folder = Path(out, "source"), Path(out, "folder")
    into.mkdir()
    folder.mkdir()
    client = HttpClient(Settings(allowed_hosts=frozenset({urlsplit(url).netloc})))
    load = request("link", url, revision)
    fetched = acquire(load, client, into, lambda _: None, out=folder)
    if fetched.converted is None:
        run.convert(fetched, into, conversion_of(load), folder, lambda _: None)


def floor(source: str, out: str, count: str, cast: str) -> None:
    """Write as many bytes as the loader publishes, and digest them in a second thread.

    source: the file that the bytes come from, or a folder: they come from its largest file. cast:
    the types of source and output, as `F32-F16`; empty if the bytes do not change.
    """
    path = Path(source)
    if path.is_dir():
        path = max(path.rglob("*.*"), key=lambda found: found.stat().st_size)
    total, size = int(count), path.stat().st_size
    source_fd = os.open(path, os.O_RDONLY)
    fd = os.open(Path(out, "floor"), os.O_RDWR | os.O_CREAT)
    produce = _casting(source_fd, fd, cast) if cast else _copying(source_fd, fd)
    ready = threading.Semaphore(0)
    digester = threading.Thread(target=_digest_written, args=(fd, total, ready))
    digester.start()
    for position in range(0, total, PIECE):
        produce(position, min(PIECE, total - position), size)
        ready.release()
    digester.join()


def _digest_written(fd: int, total: int, ready: threading.Semaphore) -> None:
    from sd_loader.bulk import fill_at
    from sd_loader.digests import Blake3

    digest, buffer = Blake3(), memoryview(bytearray(PIECE))
    for position in range(0, total, PIECE):
        ready.acquire()
        piece = buffer[: min(PIECE, total - position)]
        fill_at(fd, piece, position)
        digest.update(piece)


def _copying(source: int, fd: int) -> Callable[[int, int, int], None]:
    from sd_loader.bulk import copy_at, write_at

    def produce(position: int, count: int, size: int) -> None:
        # The output may be a little larger than the source: read the source's end again.
        start = min(position, size - count)
        copied = copy_at(source, start, fd, position, count)
        if copied < count:
            rest = os.pread(source, count - copied, start + copied)
            write_at(fd, rest, position + copied)

    return produce


def _casting(source: int, fd: int, types: str) -> Callable[[int, int, int], None]:
    import numpy as np

    from sd_loader.bulk import fill_at, write_at
    from sd_loader.convert.write.cast import cast, storage_dtype
    from sd_loader.tensors import Dtype

    before, after = (Dtype[word] for word in types.split("-"))
    read = np.empty(PIECE // after.itemsize, storage_dtype(before))
    made = np.empty(read.size, storage_dtype(after))

    def produce(position: int, count: int, size: int) -> None:
        elements = count // after.itemsize
        wanted = elements * before.itemsize
        start = min(position // after.itemsize * before.itemsize, size - wanted)
        fill_at(source, memoryview(read[:elements]).cast("B"), max(0, start))
        cast(read[:elements], before, after, made[:elements])
        write_at(fd, memoryview(made[:elements]).cast("B"), position)

    return produce


def fill(sparse: str) -> None:
    """Read a sparse file until its page cache fills free memory. Make the file if it is missing.

    A virtual machine may give free memory back to its host, and is slow when it uses it again. It
    keeps the page cache, which the kernel reuses for the bytes that a run writes.
    """
    with Path(sparse).open("a+b") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        free = int(Path("/proc/meminfo").read_text().split("MemFree:")[1].split()[0]) * 1024
        file.truncate(min(max(0, free - _LEFT_FREE), _MOST_FILLED))
        file.seek(0)
        while file.read(PIECE):
            pass


def hold(source: str) -> None:
    """Keep a source in the page cache until stdin ends. Print a line once it is there."""
    path = Path(source)
    held = []
    for file in (path,) if path.is_file() else sorted(path.rglob("*.*")):
        with file.open("rb") as opened:
            held.append(mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED | _LOCKED, mmap.PROT_READ))
    print("ready", flush=True)
    sys.stdin.read()


def configs(kind: str, source: str, out: str) -> None:
    """Write the configs and tokenizers that diffusers reads: the loader's folder, no weights."""
    folder = Path(out)
    folder.mkdir()
    convert(kind, source, out, "fp16")
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def diffusers(kind: str, source: str, out: str, configs_folder: str) -> None:
    """Convert with diffusers. It writes fp16, except from the .bin repo and from a LoRA."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    half = {"torch_dtype": torch.float16}
    match kind:
        case "repo-sd15-bin":
            from diffusers import StableDiffusionPipeline

            StableDiffusionPipeline.from_pretrained(
                source, use_safetensors=False, local_files_only=True
            ).save_pretrained(out)
        case "repo-sdxl-shards":
            from diffusers import StableDiffusionXLPipeline

            StableDiffusionXLPipeline.from_pretrained(
                source, local_files_only=True, **half
            ).save_pretrained(out)
        case "lora":
            from diffusers import StableDiffusionXLPipeline
            from safetensors.torch import save_file

            state, *_ = StableDiffusionXLPipeline.lora_state_dict(source)
            save_file(state, Path(out, "pytorch_lora_weights.safetensors"))
        case "controlnet":
            from diffusers import ControlNetModel

            ControlNetModel.from_single_file(
                source, config=configs_folder, local_files_only=True, **half
            ).save_pretrained(out)
        case "sd35":
            from diffusers import StableDiffusion3Pipeline

            StableDiffusion3Pipeline.from_single_file(
                source,
                config=configs_folder,
                text_encoder_3=None,
                tokenizer_3=None,
                local_files_only=True,
                **half,
            ).save_pretrained(out)
        case _:
            from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

            pipeline = (
                StableDiffusionXLPipeline if kind.startswith("sdxl") else StableDiffusionPipeline
            )
            pipeline.from_single_file(
                source, config=configs_folder, local_files_only=True, **half
            ).save_pretrained(out)


def publish(source: str, store: str, retain: str = "") -> None:
    """Load a local file. Print the requests that remove the model and that adopt its files.

    retain: if not empty, release the files, so that another model can adopt them.
    """
    loader = [sys.executable, "-m", "sd_loader"]
    load = [*loader, "load", "--url", source, "--model-id", "bench", "--store", store]
    subprocess.run(load, check=True, capture_output=True)
    version = Path(store, "bench").resolve()
    owner = json.loads((version.parent / "owner.json").read_text())["owner"]
    removal = {"owner": owner, "modelId": "bench"}
    adoption = {
        "owner": {**owner, "uid": "another"},
        "modelId": "bench",
        "modelType": "custom_ckpt",
        "url": "https://models.example.com/model",
        "loadHash": version.name,
    }
    if retain:
        release = json.dumps({**removal, "retain": True})
        remove = [*loader, "remove", "--request", release, "--store", store]
        subprocess.run(remove, check=True, capture_output=True)
    print(json.dumps({"fetch": adoption, "remove": removal}))


RUNS: dict[str, Callable[..., None]] = {
    "configs": configs,
    "convert": convert,
    "diffusers": diffusers,
    "fetch": fetch,
    "fill": fill,
    "floor": floor,
    "hold": hold,
    "publish": publish,
}

if __name__ == "__main__":
    # As the command does.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    RUNS[sys.argv[1]](*sys.argv[2:])
