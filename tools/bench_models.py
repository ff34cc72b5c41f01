"""Makes the sources that `bench` loads: random weights with the names and shapes of real models.

python -m tools.bench_models KIND PATH [tiny]
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from devkit import controlnet_layouts, sd3_layouts
from devkit.layers import Shapes
from devkit.ldm_layouts import (
    SD2,
    SD15,
    SDXL,
    TINY_SD2,
    TINY_SD15,
    TINY_SDXL,
    Widths,
    ema_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)

SHARDS = 4
_ELEMENTS = 64 << 20


def make(kind: str, path: Path, *, tiny: bool) -> None:
    """Write a source of a kind of KINDS. The suffix of the path decides its container."""
    if path.suffix:
        write_file(path, KINDS[kind](tiny), half=path.suffix == ".safetensors", fp8="fp8" in kind)
        return
    write_repo(kind, path, tiny=tiny)


def write_file(path: Path, shapes: Shapes, *, half: bool, fp8: bool) -> None:
    """Write a checkpoint whose tensors have storages of their own."""
    import torch
    from safetensors.torch import save_file

    longest = max(math.prod(shape) for shape in shapes.values())
    numbers = torch.randn(max(_ELEMENTS, longest)) * 0.05
    if fp8:
        numbers = numbers.to(torch.float8_e4m3fn)
    elif half:
        numbers = numbers.half()
    tensors = {
        name: numbers[: math.prod(shape)].clone().view(shape) for name, shape in shapes.items()
    }
    match path.suffix:
        case ".ckpt":
            torch.save({"state_dict": tensors, "global_step": 470000}, path)
        case ".pth":
            torch.save(tensors, path)
        case _:
            save_file(tensors, path)


def write_repo(kind: str, folder: Path, *, tiny: bool) -> None:
    """Write a diffusers repo. The loader converts a checkpoint to it."""
    import torch
    from safetensors.torch import load_file, save_file

    from tools.bench_runs import convert

    model, _, container = kind.removeprefix("repo-").partition("-")
    work = folder.with_name("made")
    work.mkdir()
    checkpoint = work / "model.safetensors"
    make(model, checkpoint, tiny=tiny)
    folder.mkdir()
    convert(model, str(checkpoint), str(folder), "fp32" if container == "bin" else "")
    shutil.rmtree(work)
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        if container == "bin":
            stem = "pytorch_model" if path.stem == "model" else path.stem
            torch.save(tensors, path.with_name(f"{stem}.bin"))
        elif path.parent.name == "unet":
            names = sorted(tensors)
            places = {}
            for number in range(SHARDS):
                name = f"{path.stem}-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
                shard = {key: tensors[key] for key in names[number::SHARDS]}
                save_file(shard, path.with_name(name), {"format": "pt"})
                places |= dict.fromkeys(shard, name)
            index = {"metadata": {}, "weight_map": places}
            path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
        else:
            continue
        path.unlink()


def _lora(tiny: bool) -> Shapes:
    """Return the shapes of a LoRA for all attention layers of SDXL's UNet, with kohya's names."""
    shapes: Shapes = {}
    rank = 4 if tiny else 64
    attention = (".attn1.", ".attn2.")
    for name, shape in sdxl_shapes(SDXL).items():
        if len(shape) == 2 and name.endswith(".weight") and any(one in name for one in attention):
            layer = name.removeprefix("model.diffusion_model.").removesuffix(".weight")
            path = f"lora_unet_{layer.replace('.', '_')}"
            shapes[f"{path}.lora_down.weight"] = (rank, shape[1])
            shapes[f"{path}.lora_up.weight"] = (shape[0], rank)
            shapes[f"{path}.alpha"] = ()
    return shapes


def _of(
    shapes: Callable[[Widths], Shapes], full: Widths, small: Widths
) -> Callable[[bool], Shapes]:
    return lambda tiny: shapes(small if tiny else full)


KINDS: dict[str, Callable[[bool], Shapes]] = {
    "sd15": _of(sd15_shapes, SD15, TINY_SD15),
    "sd15-ema": _of(lambda widths: sd15_shapes(widths) | ema_shapes(widths), SD15, TINY_SD15),
    "sd21": _of(sd2_shapes, SD2, TINY_SD2),
    "sdxl": _of(sdxl_shapes, SDXL, TINY_SDXL),
    "sdxl-fp8": _of(sdxl_shapes, SDXL, TINY_SDXL),
    "sd35": lambda tiny: sd3_layouts.sd35_shapes(
        sd3_layouts.TINY_SD35 if tiny else sd3_layouts.SD35_MEDIUM
    ),
    "controlnet": lambda tiny: controlnet_layouts.controlnet_shapes(
        controlnet_layouts.TINY["sd-1"] if tiny else controlnet_layouts.SD1
    ),
    "lora": _lora,
}

if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), tiny="tiny" in sys.argv[3:])
