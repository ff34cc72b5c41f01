"""The runs that `bench` measures. Each prints its peak memory in kB as its last line.

python -m tools.bench_runs RUN ARGUMENT...
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import sys
from pathlib import Path
from typing import Any

MODEL_TYPES = {"lora": "lora", "controlnet": "controlnet", "repo-bin": "huggingface"}


def request(kind: str, url: str, revision: str) -> Any:  # noqa: ANN401 - imported where it is timed
    """Return the request that loads one kind of source."""
    from sd_api.load import LoadRequest

    return LoadRequest.model_validate(
        {
            "owner": {"uid": "bench", "namespace": "default", "name": "bench"},
            "modelId": "bench",
            "modelType": MODEL_TYPES.get(kind, "custom_ckpt"),
            "url": url,
            "loadHash": "0" * 16,
            "revision": revision or None,
        }
    )


def ours(kind: str, source: str, out: str, revision: str) -> None:
    """Convert with the loader, as `sd-loader convert` does between staging and publishing."""
    from sd_api.wire import Source
    from sd_loader.convert.run import convert
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
    convert(fetched, path.parent, conversion_of(load), Path(out), lambda _: None)


def ours_link(url: str, out: str, revision: str) -> None:
    """Download and convert with the loader, as `sd-loader fetch` does."""
    from urllib.parse import urlsplit

    from sd_loader.acquire import acquire
    from sd_loader.convert.run import convert
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
        convert(fetched, into, conversion_of(load), folder, lambda _: None)


def make(kind: str, path: str) -> None:
    """Write random finite tensors with a real model's names and shapes, each in its own storage."""
    import torch
    from safetensors.torch import save_file

    if kind == "repo-bin":
        make_repo(Path(path))
        return
    shapes = SHAPES[kind]()
    is_pickle = path.endswith((".ckpt", ".pth"))
    numbers = torch.randn(64 * 2**20) * 0.05
    numbers = numbers if is_pickle else numbers.half()
    tensors = {
        name: numbers[: math.prod(shape)].clone().view(shape) for name, shape in shapes.items()
    }
    if kind.startswith("sd15") and is_pickle:
        torch.save({"state_dict": tensors, "global_step": 470000}, path)
    elif is_pickle:
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


def make_repo(folder: Path) -> None:
    """Write SD 1.5 as a diffusers repo with fp32 .bin weights; the loader makes the folder."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir()
    checkpoint = folder.with_name("made") / "checkpoint.safetensors"
    checkpoint.parent.mkdir()
    make("sd15", str(checkpoint))
    ours("sd15", str(checkpoint), str(folder), "fp32")
    shutil.rmtree(checkpoint.parent)
    for path in sorted(folder.rglob("*.safetensors")):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def touch() -> None:
    """Touch the free memory, except what the source may need in the page cache."""
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    cached = int(Path("/proc/meminfo").read_text().split("\nCached:")[1].split()[0]) * 1024
    count = max(0, min(10 << 30, available - cached - (1 << 30)))
    memory = mmap.mmap(-1, max(mmap.PAGESIZE, count))
    for offset in range(0, count, mmap.PAGESIZE):
        memory[offset] = 1


def digest(count: str) -> None:
    """Compute the SHA-256 of this many bytes on one core."""
    block = bytes(1 << 20)
    whole, rest = divmod(int(count), len(block))
    sha256 = hashlib.sha256(block[:rest])
    for _ in range(whole):
        sha256.update(block)


def configs(kind: str, source: str, out: str) -> None:
    """Write the configs and tokenizers that diffusers reads: the loader's folder, no weights."""
    if kind in ("lora", "repo-bin"):
        return
    folder = Path(out)
    folder.mkdir()
    ours(kind, source, out, "fp16")
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def diffusers(kind: str, source: str, out: str, configs_folder: str) -> None:
    """Convert with diffusers, to the precision that the loader publishes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    half = {"torch_dtype": torch.float16}
    match kind:
        case "repo-bin":
            from diffusers import StableDiffusionPipeline

            StableDiffusionPipeline.from_pretrained(
                source, use_safetensors=False, local_files_only=True
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
        case _:
            from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

            pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
            pipeline.from_single_file(
                source, config=configs_folder, local_files_only=True, **half
            ).save_pretrained(out)


def _sd15() -> dict[str, tuple[int, ...]]:
    from devkit.ldm_layouts import SD15, sd15_shapes

    return sd15_shapes(SD15)


def _sd15_ema() -> dict[str, tuple[int, ...]]:
    from devkit.ldm_layouts import SD15, ema_shapes

    return _sd15() | ema_shapes(SD15)


def _sdxl() -> dict[str, tuple[int, ...]]:
    from devkit.ldm_layouts import SDXL, sdxl_shapes

    return sdxl_shapes(SDXL)


def _sd21() -> dict[str, tuple[int, ...]]:
    from devkit.ldm_layouts import SD2, sd2_shapes

    return sd2_shapes(SD2)


def _controlnet() -> dict[str, tuple[int, ...]]:
    from devkit.controlnet_layouts import SD1, controlnet_shapes

    return controlnet_shapes(SD1)


def _lora(rank: int = 64) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a LoRA for all attention layers of SDXL's UNet, with kohya's names."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            path = f"lora_unet_{name.replace('.', '_')}"
            shapes[f"{path}.lora_down.weight"] = (rank, layer.in_features)
            shapes[f"{path}.lora_up.weight"] = (layer.out_features, rank)
            shapes[f"{path}.alpha"] = ()
    return shapes


SHAPES = {
    "sd15": _sd15,
    "sd15-ema": _sd15_ema,
    "sdxl": _sdxl,
    "sd21": _sd21,
    "controlnet": _controlnet,
    "lora": _lora,
}
RUNS = {
    "make": make,
    "configs": configs,
    "ours": ours,
    "ours-link": ours_link,
    "digest": digest,
    "diffusers": diffusers,
    "touch": touch,
}

if __name__ == "__main__":
    RUNS[sys.argv[1]](*sys.argv[2:])
    status = Path("/proc/self/status").read_text()
    print(status.split("VmHWM:")[1].split()[0])
