"""LoRAs and embeddings in the formats of training programs, with random numbers.

Names are the real ones. Shapes are those of layers in tiny pipelines, which can open the files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from sd_loader.handover import Converted
from tests.support.models.checkpoints import save_safetensors, tiny_configs
from tests.support.models.conversions import convert_file

Tensors = dict[str, torch.Tensor]

NAME = "pytorch_lora_weights"
LEGACY = "bin of before torch 1.6"
RANK = 4
STYLES = ("kohya", "kohya sgm", "old diffusers", "diffusers", "peft")

# One layer of each kind that training programs change.
_ATTENTION = tuple(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v"))
_OUTPUTS = ("attn1.to_out.0", "attn2.to_out.0")
_BLOCK = (*_ATTENTION, *_OUTPUTS, "ff.net.0.proj", "ff.net.2")
_PLACES = {
    "sd15": ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.2"),
    "sdxl": ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.2"),
}
_PLACES["sd-2"] = _PLACES["sd15"]
_RESNETS = (
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv2",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.1.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
)
# The names of kohya's style for SDXL, whose UNet kohya trains in the original layout.
_SGM = {
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "down_blocks.1.resnets.0.conv1": "input_blocks.4.0.in_layers.2",
    "down_blocks.1.resnets.0.conv2": "input_blocks.4.0.out_layers.3",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.4.0.emb_layers.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "add_embedding.linear_1": "label_emb.0.0",
}


@cache
def pipeline(family: str) -> DiffusionPipeline:
    """Return a cached pipeline that opens LoRAs; tests must unload them again.

    The pipeline is tiny and has no VAE and no tokenizers. Each transformer has one block, because
    the LoRAs change only the first block.
    """
    is_sdxl = family == "sdxl"
    with tempfile.TemporaryDirectory() as folder:
        configs = {
            path.parent.name: json.loads(path.read_text())
            for path in tiny_configs(Path(folder) / family, "sdxl" if is_sdxl else "sd15").glob(
                "*/config.json"
            )
        }
    unet, text = configs["unet"], configs["text_encoder"]
    if is_sdxl:
        unet["transformer_layers_per_block"] = 1
    if family == "sd-2":
        unet["use_linear_projection"] = True
        text["num_hidden_layers"] = 23
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config(unet),
        "text_encoder": _text_encoder(CLIPTextModel, text),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        **dict.fromkeys(("vae", "tokenizer")),
    }
    if not is_sdxl:
        unused = dict.fromkeys(("safety_checker", "feature_extractor"))
        return StableDiffusionPipeline(**parts, **unused, requires_safety_checker=False)
    second = _text_encoder(CLIPTextModelWithProjection, configs["text_encoder_2"])
    return StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=None)


def _text_encoder(kind: type[PreTrainedModel], config: dict[str, Any]) -> PreTrainedModel:
    """Make a text encoder with a small vocabulary, because no LoRA changes it."""
    return kind(CLIPTextConfig(**{**config, "vocab_size": 100}))


def layer_shapes(family: str, *, text: bool = True) -> dict[str, tuple[int, ...]]:
    """Return shapes of weights by `component.layer`: some layers of the UNet and text encoders."""
    pipe = pipeline(family)
    names = [f"unet.{name}" for name in _RESNETS]
    for place in _PLACES[family]:
        names += [f"unet.{place}.proj_in", f"unet.{place}.proj_out"]
        names += [f"unet.{place}.transformer_blocks.0.{name}" for name in _BLOCK]
    if family == "sdxl":
        names.append("unet.add_embedding.linear_1")
    modules = dict(pipe.unet.named_modules())
    shapes = {name: tuple(modules[name.removeprefix("unet.")].weight.shape) for name in names}
    for component in ("text_encoder", "text_encoder_2") if text else ():
        encoder = pipe.components.get(component)
        if encoder is None:
            continue
        last = encoder.config.num_hidden_layers - 1
        for name, module in encoder.named_modules():
            if (
                f".layers.{last}." in f".{name}"
                and hasattr(module, "weight")
                and "norm" not in name
            ):
                path = name if name.startswith("text_model.") else f"text_model.{name}"
                shapes[f"{component}.{path}"] = tuple(module.weight.shape)
    if text and family == "sdxl":
        projection = tuple(pipe.text_encoder_2.text_projection.weight.shape)
        shapes["text_encoder_2.text_projection"] = projection
    return shapes


@dataclass(frozen=True)
class Halves:
    """The two matrices of a layer's LoRA, and its alpha."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


def random_halves(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, Halves]:
    """Return random numbers for each layer; ranks differ between layers.

    All matrices share one alpha, and all convolutions share another, as in kohya's LoRAs. diffusers
    0.42 ignores further alphas.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        rank = RANK * (1 + number % 3 // 2)
        down = torch.randn((rank, *shape[1:]), generator=generator).to(dtype)
        up = torch.randn((shape[0], rank, *[1] * (len(shape) - 2)), generator=generator).to(dtype)
        found[name] = Halves(down, up, 2.0 if len(shape) == 2 else 1.0)
    return found


def lora(
    family: str, style: str, *, text: bool = True, dtype: torch.dtype = torch.float16, seed: int = 0
) -> Tensors:
    """Return the tensors of a random LoRA, with names in one of STYLES."""
    shapes = layer_shapes(family, text=text)
    if style == "kohya":  # diffusers does not support this layer in this style
        shapes.pop("unet.add_embedding.linear_1", None)
    if style == "old diffusers":  # it supported attention layers only
        shapes = {name: shape for name, shape in shapes.items() if "attn" in name}
    if style != "kohya" and style != "kohya sgm":
        shapes.pop("text_encoder_2.text_projection", None)
    tensors: Tensors = {}
    for name, halves in random_halves(shapes, dtype, seed).items():
        component, _, layer = name.partition(".")
        down, up, alpha = _names(style, component, layer, sdxl=family == "sdxl")
        tensors |= {down: halves.down, up: halves.up}
        if alpha:
            tensors[alpha] = torch.tensor(halves.alpha, dtype=dtype)
    return tensors


def without_text_model(name: str) -> str:
    """Return the name as trainers on transformers 5.6 and newer write it."""
    return name.replace(".text_model.", ".").replace("_text_model_", "_")


def _names(style: str, component: str, layer: str, *, sdxl: bool) -> tuple[str, str, str | None]:
    if style.startswith("kohya"):
        short = {"unet": "unet", "text_encoder": "te1" if sdxl else "te", "text_encoder_2": "te2"}
        if style == "kohya sgm" and component == "unet":
            place = next(place for place in _SGM if layer.startswith(place))
            layer = _SGM[place] + layer.removeprefix(place)
        path = f"lora_{short[component]}_{layer.replace('.', '_')}"
        return f"{path}.lora_down.weight", f"{path}.lora_up.weight", f"{path}.alpha"
    path = f"{component}.{layer}"
    if style == "peft":
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight", None
    middle = ".lora" if component == "unet" else ".lora_linear_layer"
    if style == "old diffusers":
        head, _, last = path.replace(".to_out.0", ".to_out").rpartition(".")
        processor = ".processor" if component == "unet" else ""
        path = f"{head}{processor}.to_{last.removesuffix('_proj').removeprefix('to_')}"
        middle = "_lora"
    return f"{path}{middle}.down.weight", f"{path}{middle}.up.weight", None


def opened(family: str, source: Any, **options: Any) -> dict[str, Any]:
    """Load a LoRA with diffusers; return what it changes in the pipeline, and unload it."""
    pipe = pipeline(family)
    try:
        pipe.load_lora_weights(source, adapter_name="x", **options)
        return adapter_of(pipe)
    finally:
        pipe.unload_lora_weights()


def adapter_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return the parameters and scales of the adapter named x."""
    found: dict[str, Any] = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = pipe.components.get(component)
        for name, module in model.named_modules() if model is not None else ():
            if "x" in getattr(module, "scaling", {}):
                found[f"{component}.{name} scale"] = module.scaling["x"]
                for key, value in module.named_parameters():
                    if "lora_" in key:
                        found[f"{component}.{name} {key}"] = value.detach().clone()
    return found


def save(
    folder: Path,
    tensors: Tensors,
    container: str = "safetensors",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the file under the name that diffusers expects in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if container == "safetensors":
        return save_safetensors(folder / f"{NAME}.safetensors", tensors, metadata)
    path = folder / f"{NAME}.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=container != LEGACY)
    return path


def loaded(
    folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, **fields: Any
) -> tuple[Converted, Path]:
    """Load these tensors with the loader; return the result and the published folder."""
    out = folder / "out"
    path = save(folder / "origin", tensors, metadata=metadata)
    return convert_file(path, out, model_type="lora", **fields), out


def trained(
    component: str = "unet", target_modules: Sequence[str] = ("to_q", "to_k"), **options: Any
) -> tuple[DiffusionPipeline, Tensors, dict[str, Any]]:
    """Make a LoRA of a component; return the pipeline, and the LoRA and its config from PEFT."""
    pipe = pipeline("sd15")
    model = pipe.components[component]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=[*target_modules], **options)
    try:
        model.add_adapter(config, adapter_name="x")
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
        return pipe, get_peft_model_state_dict(model, adapter_name="x"), config.to_dict()
    finally:
        pipe.unload_lora_weights()
