"""Tiny files that hold only a transformer, and repos that supply the rest of their pipelines.

They are made without torch, with real names of tensors and the sizes of `transformershapes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sd_loader.convert.tables.bind import bind
from sd_loader.convert.tables.transformers import load_transformer
from sd_loader.store.blobs import SHARED_FROM
from sd_loader.tensors import Dtype, Tensor
from tests.support.models import familyrepos
from tests.support.models.familyrepos import DIFFUSION, FLOW, Files, encoded, packed, typed
from tests.support.models.transformershapes import LAYERS, SIZES, Shape, original_shapes

_INNER = {
    "num_attention_heads": SIZES["inner"] // SIZES["head"],
    "attention_head_dim": SIZES["head"],
}
FLUX_CONFIG = {
    **_INNER,
    "_class_name": "FluxTransformer2DModel",
    "guidance_embeds": True,
    "in_channels": SIZES["inputs"],
    "joint_attention_dim": SIZES["context"],
    "num_layers": LAYERS,
    "num_single_layers": LAYERS,
    "out_channels": SIZES["outputs"],
    "patch_size": 1,
    "pooled_projection_dim": SIZES["pooled"],
}
QWEN_CONFIG = {
    **_INNER,
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": SIZES["inputs"],
    "joint_attention_dim": SIZES["context"],
    "num_layers": LAYERS,
    "out_channels": SIZES["outputs"] // 4,
    "patch_size": 2,
    "use_additional_t_cond": True,
}
WAN_CONFIG = {
    **_INNER,
    "_class_name": "WanTransformer3DModel",
    "added_kv_proj_dim": SIZES["image_keys"],
    "ffn_dim": SIZES["mlp"],
    "freq_dim": SIZES["time"],
    "image_dim": SIZES["image"],
    "in_channels": SIZES["inputs"],
    "num_layers": LAYERS,
    "out_channels": SIZES["outputs"] // 4,
    "patch_size": [1, 2, 2],
    "pos_embed_seq_len": SIZES["image_positions"],
    "text_dim": SIZES["context"],
}


def file_of(family: str, *, seed: int = 0) -> bytes:
    """Return a transformer in the original layout, with random bits."""
    return packed(typed(original_shapes(family)), seed)


def published_shapes(family: str) -> Mapping[str, Shape]:
    """Return the names and shapes of a transformer in diffusers' layout."""
    tensors = {
        name: Tensor(-1, Dtype.BF16, shape, 0) for name, shape in original_shapes(family).items()
    }
    bound = bind(load_transformer(family).component(tensors), tensors, {})
    return {name: source.shape for name, source in bound.items()}


def flux() -> Files:
    """Return FLUX.1 dev, whose T5 is large enough to be shared between models."""
    repo = familyrepos.flux()
    repo["transformer/config.json"] = encoded(FLUX_CONFIG)
    name = "text_encoder_2/model-00001-of-00001.safetensors"
    tensors = {**familyrepos.t5_tensors("BF16"), "shared.weight": ("BF16", (SHARED_FROM // 16, 8))}
    repo[name] = packed(tensors)
    return repo


def qwen() -> Files:
    """Return Qwen-Image; its encoder's config has only the fields that the loader compares."""
    encoder = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return {
        "model_index.json": familyrepos.index(
            "QwenImagePipeline",
            scheduler=FLOW,
            text_encoder=["transformers", "Qwen2_5_VLForConditionalGeneration"],
            tokenizer=["transformers", "Qwen2Tokenizer"],
            transformer=["diffusers", "QwenImageTransformer2DModel"],
            vae=["diffusers", "AutoencoderKLQwenImage"],
        ),
        **familyrepos.scheduler(),
        "text_encoder/config.json": encoded(encoder),
        "text_encoder/model.safetensors": packed({"model.norm.weight": ("BF16", (8,))}),
        **familyrepos.t5_tokenizer("tokenizer"),
        "transformer/config.json": encoded(QWEN_CONFIG),
        f"transformer/{DIFFUSION}.safetensors": b"not needed",
        "vae/config.json": encoded({"_class_name": "AutoencoderKLQwenImage", "z_dim": 16}),
        f"vae/{DIFFUSION}.safetensors": packed({"conv1.weight": ("BF16", (8,))}),
    }


def wan() -> Files:
    """Return Wan 2.2, with two transformers of the same config."""
    repo = familyrepos.wan()
    for name in ("transformer", "transformer_2"):
        repo[f"{name}/config.json"] = encoded(WAN_CONFIG)
    return repo


def with_class(component: str, library: str | None, class_name: str | None) -> Files:
    """Return FLUX.1's model_index.json with another class, or [null, null], for a component."""
    index = json.loads(flux()["model_index.json"])
    return {"model_index.json": encoded({**index, component: [library, class_name]})}


def changed(repo: Files, **config: object) -> Files:
    """Return a repo with these values set in the config of its transformer."""
    own = json.loads(repo["transformer/config.json"])
    return {**repo, "transformer/config.json": encoded({**own, **config})}
