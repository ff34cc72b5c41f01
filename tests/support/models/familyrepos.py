"""Tiny repos of FLUX, Stable Diffusion 3 and Wan, in the forms in which they are published.

They are made without torch: configs and names of tensors are real, but most tensors are left out.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
Shape = tuple[int, ...]
Tensors = Mapping[str, tuple[str, Shape]]
"""Types and shapes by name."""

DIFFUSION, ENCODER = "diffusion_pytorch_model", "model"
_FORMATS = {"F32": "f", "F16": "e"}
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number by type. All other types have one byte."""


def weights(tensors: Tensors, *, seed: int = 0, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a .safetensors file of small random numbers, with its tensors in the given order."""
    numbers = random.Random(seed)
    header, _ = _header(tensors, metadata)
    return header + b"".join(
        _encoded([numbers.uniform(-1, 1) for _ in range(math.prod(shape))], dtype)
        for dtype, shape in tensors.values()
    )


def packed(tensors: Tensors, seed: int = 0) -> bytes:
    """Return a .safetensors file of random bits, which are made faster than numbers."""
    header, size = _header(tensors)
    return header + random.Random(seed).randbytes(size)


def zeros(tensors: Tensors) -> bytes:
    """Return a .safetensors file of zeros."""
    header, size = _header(tensors)
    return header + bytes(size)


def typed(shapes: Mapping[str, Shape], dtype: str = "BF16") -> dict[str, tuple[str, Shape]]:
    """Return tensors of these shapes, all of one type."""
    return {name: (dtype, shape) for name, shape in shapes.items()}


def _header(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """Return the bytes before the tensors, and the number of bytes of the tensors."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * _WIDTHS.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, position


def _encoded(values: list[float], dtype: str) -> bytes:
    if dtype == "BF16":  # the upper half of each float
        single = struct.pack(f"<{len(values)}f", *values)
        return b"".join(single[at + 2 : at + 4] for at in range(0, len(single), 4))
    if dtype in _FORMATS:
        return struct.pack(f"<{len(values)}{_FORMATS[dtype]}", *values)
    return bytes(abs(int(100 * value)) for value in values)  # one byte each


def sharded(
    folder: str, stem: str, shards: list[Tensors], *, variant: str = "", **options: Any
) -> Files:
    """Return shards and their index, as diffusers and transformers write them."""
    dotted = f".{variant}" if variant else ""
    files: Files = {}
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"{stem}{dotted}-{number:05d}-of-{len(shards):05d}.safetensors"
        files[f"{folder}/{name}"] = weights(tensors, seed=number, **options)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    files[f"{folder}/{stem}.safetensors.index{dotted}.json"] = json.dumps(index).encode()
    return files


def encoded(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value, indent=2).encode()


def index(class_name: str, **entries: Any) -> bytes:
    """Return a model_index.json."""
    return encoded({"_class_name": class_name, "_diffusers_version": "0.36.0", **entries})


def clip(folder: str, class_name: str, dtype: str = "BF16") -> Files:
    """Return a CLIP text encoder."""
    names = ("embeddings.token_embedding.weight", "final_layer_norm.weight")
    config = {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": [class_name],
        "hidden_act": "quick_gelu",
        "hidden_size": 8,
        "model_type": "clip_text_model",
        "projection_dim": 768,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "transformers_version": "4.43.3",
        "vocab_size": 49408,
    }
    tensors = {f"text_model.{name}": (dtype, (8,)) for name in names}
    return {
        f"{folder}/config.json": encoded(config),
        f"{folder}/model.safetensors": weights(tensors),
    }


def t5_config(class_name: str = "T5EncoderModel", dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the config of a T5 or UMT5 encoder, as transformers 4 wrote it."""
    return {
        "architectures": [class_name],
        "d_ff": 16,
        "d_model": 8,
        "dense_act_fn": "gelu_new",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "model_type": "umt5" if class_name.startswith("UMT5") else "t5",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": 32128,
    }


def t5_tensors(dtype: str) -> Tensors:
    """Return some tensors of a T5 encoder; `wo` is the one that some libraries keep in fp32."""
    block = "encoder.block.0.layer"
    return {
        "shared.weight": (dtype, (4, 8)),
        f"{block}.0.SelfAttention.q.weight": (dtype, (8, 8)),
        f"{block}.1.DenseReluDense.wo.weight": (dtype, (8, 16)),
    }


def t5_tokenizer(folder: str) -> Files:
    """Return the files of a T5 tokenizer. spiece.model and tokenizer.json hold no vocabulary."""
    return {
        f"{folder}/spiece.model": b"\n\x0e\n\x05<pad>" * 4,
        f"{folder}/tokenizer.json": b"{" + b" " * 64 + b"}",
        f"{folder}/tokenizer_config.json": encoded({"tokenizer_class": "T5TokenizerFast"}),
        f"{folder}/special_tokens_map.json": encoded({"pad_token": "<pad>"}),
    }


def clip_tokenizer(folder: str) -> Files:
    """Return the files of a CLIP tokenizer."""
    return {
        f"{folder}/merges.txt": b"#version: 0.2\n",
        f"{folder}/tokenizer_config.json": encoded({"tokenizer_class": "CLIPTokenizer"}),
        f"{folder}/vocab.json": encoded({"a": 0}),
    }


def scheduler(**config: Any) -> Files:
    """Return the scheduler of a flow-matching model."""
    content = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0"}
    return {"scheduler/scheduler_config.json": encoded({**content, "shift": 3.0, **config})}


FLOW = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
FLUX_TRANSFORMER: list[Tensors] = [
    {"x_embedder.weight": ("BF16", (8, 4)), "context_embedder.weight": ("BF16", (8, 8))},
    {
        # Not in alphabetical order, so a file that the loader wrote again would differ
        "transformer_blocks.0.attn.to_q.weight": ("BF16", (8, 8)),
        "proj_out.bias": ("BF16", (4,)),
    },
]


def flux() -> Files:
    """Return FLUX.1 in bf16, with shards, a T5 tokenizer, and files that are not published."""
    transformer = {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": "0.30.0",
        "_name_or_path": "../checkpoints/flux-dev/transformer",
        "attention_head_dim": 4,
        "guidance_embeds": True,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 1,
        "patch_size": 1,
    }
    return {
        "model_index.json": index(
            "FluxPipeline",
            scheduler=FLOW,
            text_encoder=["transformers", "CLIPTextModel"],
            text_encoder_2=["transformers", "T5EncoderModel"],
            tokenizer=["transformers", "CLIPTokenizer"],
            tokenizer_2=["transformers", "T5TokenizerFast"],
            transformer=["diffusers", "FluxTransformer2DModel"],
            vae=["diffusers", "AutoencoderKL"],
        ),
        **scheduler(max_shift=1.15, use_dynamic_shifting=True),
        **clip("text_encoder", "CLIPTextModel"),
        "text_encoder_2/config.json": encoded(t5_config()),
        **sharded("text_encoder_2", ENCODER, [t5_tensors("BF16")]),
        **clip_tokenizer("tokenizer"),
        **t5_tokenizer("tokenizer_2"),
        "transformer/config.json": encoded(transformer),
        **sharded("transformer", DIFFUSION, FLUX_TRANSFORMER),
        "vae/config.json": encoded({"_class_name": "AutoencoderKL", "scaling_factor": 0.3611}),
        f"vae/{DIFFUSION}.safetensors": weights({"decoder.conv_in.weight": ("BF16", (8, 4, 3, 3))}),
        "README.md": b"not needed",
        "pipeline.py": b"raise SystemExit",
        "transformer/modeling.py": b"raise SystemExit",
        "flux1-dev.safetensors": b"not needed",
    }


def sd3() -> Files:
    """Return Stable Diffusion 3 in fp16, with a sharded fp16 variant of the third encoder."""
    transformer = {
        "_class_name": "SD3Transformer2DModel",
        "in_channels": 4,
        "dual_attention_layers": [],
    }
    return {
        "model_index.json": index(
            "StableDiffusion3Pipeline",
            feature_extractor=[None, None],
            image_encoder=[None, None],
            scheduler=FLOW,
            text_encoder=["transformers", "CLIPTextModelWithProjection"],
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            text_encoder_3=["transformers", "T5EncoderModel"],
            tokenizer=["transformers", "CLIPTokenizer"],
            tokenizer_2=["transformers", "CLIPTokenizer"],
            tokenizer_3=["transformers", "T5TokenizerFast"],
            transformer=["diffusers", "SD3Transformer2DModel"],
            vae=["diffusers", "AutoencoderKL"],
        ),
        **scheduler(),
        **clip("text_encoder", "CLIPTextModelWithProjection", "F16"),
        **clip("text_encoder_2", "CLIPTextModelWithProjection", "F16"),
        "text_encoder_3/config.json": encoded(t5_config(dtype="float16")),
        **sharded("text_encoder_3", ENCODER, [t5_tensors("F32"), {"x.weight": ("F32", (4,))}]),
        **sharded(
            "text_encoder_3",
            ENCODER,
            [t5_tensors("F16"), {"x.weight": ("F16", (4,))}],
            variant="fp16",
        ),
        **clip_tokenizer("tokenizer"),
        **clip_tokenizer("tokenizer_2"),
        **t5_tokenizer("tokenizer_3"),
        "transformer/config.json": encoded(transformer),
        f"transformer/{DIFFUSION}.safetensors": weights({"pos_embed.proj.weight": ("F16", (8, 4))}),
        "vae/config.json": encoded({"_class_name": "AutoencoderKL", "use_quant_conv": False}),
        f"vae/{DIFFUSION}.safetensors": weights({"decoder.conv_in.weight": ("F16", (8, 4))}),
    }


WAN_BLOCK: Tensors = {
    "blocks.0.attn1.to_q.weight": ("F32", (8, 8)),
    "blocks.0.norm2.weight": ("F32", (8,)),
    "blocks.0.scale_shift_table": ("F32", (1, 6, 8)),
    "condition_embedder.time_embedder.linear_1.weight": ("F32", (8, 8)),
    "condition_embedder.time_proj.weight": ("F32", (8, 8)),
}


def wan() -> Files:
    """Return Wan 2.2 in fp32: two transformers and UMT5."""
    transformer = {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "text_dim": 8}
    return {
        "model_index.json": index(
            "WanPipeline",
            boundary_ratio=0.875,
            expand_timesteps=False,
            scheduler=["diffusers", "UniPCMultistepScheduler"],
            text_encoder=["transformers", "UMT5EncoderModel"],
            tokenizer=["transformers", "T5TokenizerFast"],
            transformer=["diffusers", "WanTransformer3DModel"],
            transformer_2=["diffusers", "WanTransformer3DModel"],
            vae=["diffusers", "AutoencoderKLWan"],
        ),
        "scheduler/scheduler_config.json": encoded(
            {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": True}
        ),
        "text_encoder/config.json": encoded(t5_config("UMT5EncoderModel", "float32")),
        "text_encoder/model.safetensors": weights(t5_tensors("F32")),
        **t5_tokenizer("tokenizer"),
        "transformer/config.json": encoded(transformer),
        **sharded("transformer", DIFFUSION, [WAN_BLOCK, {"proj_out.weight": ("F32", (4, 8))}]),
        "transformer_2/config.json": encoded(transformer),
        f"transformer_2/{DIFFUSION}.safetensors": weights(WAN_BLOCK, seed=7),
        "vae/config.json": encoded(
            {"_class_name": "AutoencoderKLWan", "latents_mean": [-0.7571] * 16, "z_dim": 16}
        ),
        f"vae/{DIFFUSION}.safetensors": weights({"decoder.conv_in.weight": ("F32", (8, 4))}),
    }


def quantized(method: str = "bitsandbytes", **settings: Any) -> Files:
    """Return FLUX with a transformer that is quantized."""
    repo = flux()
    config = json.loads(repo["transformer/config.json"])
    config["quantization_config"] = {"quant_method": method, **settings}
    repo["transformer/config.json"] = encoded(config)
    for name in [name for name in repo if name.startswith(f"transformer/{DIFFUSION}")]:
        del repo[name]
    tensors = {
        "x_embedder.weight": ("U8", (16, 1)),
        "x_embedder.weight.absmax": ("F32", (4,)),
        "x_embedder.weight.quant_state.bitsandbytes__nf4": ("U8", (8,)),
    }
    repo[f"transformer/{DIFFUSION}.safetensors"] = weights(tensors)
    return repo


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}


def lay(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a repo's files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
