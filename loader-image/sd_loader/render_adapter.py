"""Tries a LoRA, embedding, ControlNet or VAE on a base of its family with random weights.

The image is not used. The check passes if the model fits every layer of the base and the result is
finite.

This module imports torch and diffusers inside the functions that need them: importing them takes
seconds, and the slim image does not have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.plan.small_files import Choices, small_files
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype

Pipeline = Any
"""diffusers has no types."""

LATENTS = 4
"""Number of input channels of a text-to-image UNet."""
_SIDE = 256
_WORD = "<tried>"


def try_adapter(
    folder: Path,
    kind: ModelType,
    base_model: BaseModelName,
    sizes: Mapping[str, int],
    device: str,
) -> None:
    """Apply the model to a random base and run one step. Errors of diffusers are not mapped.

    base_model: a family whose configs are bundled. sizes: the dimensions of the random base.
    """
    import torch

    dtype = torch.float16 if device == "cuda" else torch.float32
    pipeline = random_pipeline(base_model, sizes, device).to(dtype=dtype)
    arguments: dict[str, Any] = {}
    match kind:
        case ModelType.LORA:
            pipeline.load_lora_weights(folder)
        case ModelType.EMBEDDINGS:
            _load_embedding(pipeline, folder)
        case ModelType.VAE:
            pipeline = _with_vae(pipeline, folder, device, dtype)
        case _:
            pipeline = _with_controlnet(pipeline, folder, device, dtype)
            arguments["image"] = torch.full((1, 3, _SIDE, _SIDE), 0.5)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_timesteps(1)
    images = pipeline(
        f"an object {_WORD}",
        height=_SIDE,
        width=_SIDE,
        num_inference_steps=1,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="pt" if kind is ModelType.VAE else "latent",
        **arguments,
    ).images
    if not bool(torch.isfinite(images).all()):
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            f"tried on a random {base_model} of full size: the result is not finite",
        )


def random_pipeline(base_model: str, sizes: Mapping[str, int], device: str) -> Pipeline:
    """Build a text-to-image pipeline of a family with random weights from the bundled configs."""
    import diffusers
    import torch
    import transformers

    with TemporaryDirectory() as name:
        folder = Path(name)
        known = load_architecture(base_model)
        dtypes = {component.name: {Dtype.F32} for component in known.components}
        for file in small_files(known, {"unet_inputs": LATENTS, **sizes}, dtypes, Choices()):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_bytes(file.content)
        index = json.loads((folder / INDEX_NAME).read_text())
        components: dict[str, Any] = {}
        torch.manual_seed(0)
        for component, value in index.items():
            if not isinstance(value, list):
                continue
            library, class_name = value
            if library is None:
                components[component] = None
            elif component == "scheduler" or component.startswith("tokenizer"):
                kind = getattr(diffusers if library == "diffusers" else transformers, class_name)
                components[component] = kind.from_pretrained(folder / component)
            else:
                with torch.device(device):
                    components[component] = _random_model(folder / component, library, class_name)
        options = {
            key: value
            for key, value in index.items()
            if not key.startswith("_") and not isinstance(value, list)
        }
        return getattr(diffusers, index["_class_name"])(**components, **options)


def _random_model(folder: Path, library: str, class_name: str) -> Any:  # noqa: ANN401 - untyped
    import diffusers
    import transformers

    if library == "diffusers":
        kind = getattr(diffusers, class_name)
        return kind.from_config(kind.load_config(folder))
    kind = getattr(transformers, class_name)
    return kind(kind.config_class.from_pretrained(folder))


def _load_embedding(pipeline: Pipeline, folder: Path) -> None:
    """Load each file of vectors into its text encoder. SDXL has two files and two encoders."""
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        second = path.stem.endswith("_2")
        (vectors,) = load_file(path).values()
        pipeline.load_textual_inversion(
            vectors,
            token=_WORD,
            text_encoder=pipeline.text_encoder_2 if second else pipeline.text_encoder,
            tokenizer=pipeline.tokenizer_2 if second else pipeline.tokenizer,
        )


def _with_vae(pipeline: Pipeline, folder: Path, device: str, dtype: Any) -> Pipeline:  # noqa: ANN401 - of torch
    import diffusers

    kind: Any = diffusers.AutoencoderKL
    vae = kind.from_pretrained(folder, local_files_only=True, dtype=dtype)
    return type(pipeline)(**{**pipeline.components, "vae": vae.to(device)})


def _with_controlnet(pipeline: Pipeline, folder: Path, device: str, dtype: Any) -> Pipeline:  # noqa: ANN401 - of torch
    import diffusers

    kind: Any = diffusers.ControlNetModel
    control = kind.from_pretrained(folder, local_files_only=True, dtype=dtype)
    name = type(pipeline).__name__.replace("Pipeline", "ControlNetPipeline")
    return getattr(diffusers, name)(**pipeline.components, controlnet=control.to(device))
