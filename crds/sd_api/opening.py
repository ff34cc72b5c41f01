"""Makes the Python code that opens a published model with diffusers, for people to copy. Pure."""

from __future__ import annotations

import json

from sd_api.choices import ModelType
from sd_api.wire import Artifact

_DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}
_PIPELINES = {
    "sd-1": "StableDiffusionPipeline",
    "sd-2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}


def python_code(model_type: str | None, artifact: Artifact, link: str) -> str:
    """Return code that opens the artifact.

    link: path of the model's link, in the folder with the other models.
    """
    dtype = _DTYPES.get(artifact.precision or "")
    options = f", torch_dtype={dtype}" if dtype else ""
    base = artifact.base_model or ""
    pipeline = _PIPELINES.get(base, "DiffusionPipeline")
    models = link.rpartition("/")[0]
    match model_type:
        case ModelType.LORA:
            body = _on_a_base(pipeline, base, models, ["pipe.load_lora_weights(folder)"])
        case ModelType.EMBEDDINGS:
            body = _on_a_base(pipeline, base, models, _embedding(base))
        case ModelType.CONTROLNET | ModelType.VAE:
            kind = "controlnet" if model_type == ModelType.CONTROLNET else "vae"
            default = "ControlNetModel" if kind == "controlnet" else "AutoencoderKL"
            pipeline = _class(artifact.pipeline_class, default)
            body = [f"{kind} = {pipeline}.from_pretrained(folder{options})"]
        case _:
            pipeline = _class(artifact.pipeline_class, "DiffusionPipeline")
            body = [f"pipe = {pipeline}.from_pretrained(folder{options})", 'pipe.to("cuda")']
            body += ['image = pipe("a lighthouse at dusk").images[0]'] * _paints(pipeline)
    imports = ["import os", "", *(["import torch"] if "torch." in "".join(body) else [])]
    head = [*imports, f"from diffusers import {pipeline}", ""]
    comment = "# A reload changes where this link points, so resolve it once."
    return "\n".join([*head, comment, f"folder = os.path.realpath({json.dumps(link)})", *body, ""])


def _on_a_base(pipeline: str, base: str, models: str, use: list[str]) -> list[str]:
    """Return code that applies `use` to a base model, whose path the user must fill in."""
    family = f"{base.upper()}-" if base else ""
    link = json.dumps(f"{models}/YOUR-{family}MODEL")
    return [
        f"pipe = {pipeline}.from_pretrained({link}, torch_dtype=torch.float16)",
        'pipe.to("cuda")',
        *use,
    ]


def _embedding(base: str) -> list[str]:
    """Return code that loads an embedding; SDXL has a second file for its second encoder."""
    lines = ["pipe.load_textual_inversion(folder)  # its token is in token_identifier.txt"]
    if base.startswith("sdxl"):
        lines += [
            "pipe.load_textual_inversion(",
            '    folder, weight_name="learned_embeds_2.safetensors",',
            "    text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2,",
            ")",
        ]
    return lines


def _paints(pipeline: str) -> bool:
    """Return whether this is a Stable Diffusion pipeline that needs only a prompt."""
    return pipeline in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def _class(name: str | None, default: str) -> str:
    """Return the class name, or the default if it is not an identifier.

    The name comes from the status: other text must not get into code that users copy.
    """
    return name if name and name.isidentifier() else default
