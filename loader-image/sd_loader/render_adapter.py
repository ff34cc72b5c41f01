"""Tries a LoRA, embedding, ControlNet or VAE on a base of its family, with random weights.

What the base draws means nothing; that the part fits it in every layer, and that finite numbers
come out, does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.convert.plan.small_files import INDEX, Choices, small_files
from sd_loader.convert.tables import architecture
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype

Pipeline = Any
"""diffusers has no types."""

_VOCABULARY = 49408
_SD1 = {
    **{f"unet_{level}": width for level, width in enumerate((320, 640, 1280, 1280))},
    **{f"vae_{level}": width for level, width in enumerate((128, 256, 512, 512))},
    "text_encoder": 768,
    "text_encoder_layers": 12,
    "text_encoder_mlp": 3072,
    "text_encoder_positions": 77,
    "text_encoder_vocabulary": _VOCABULARY,
}
FULL_SIZES: Mapping[str, Mapping[str, int]] = {
    "sd1": _SD1,
    "sd2": {
        **_SD1,
        "text_encoder": 1024,
        "text_encoder_layers": 23,
        "text_encoder_mlp": 4096,
    },
    "sdxl": {
        **_SD1,
        "text_encoder_2": 1280,
        "text_encoder_2_layers": 32,
        "text_encoder_2_mlp": 5120,
        "text_encoder_2_positions": 77,
        "text_encoder_2_projection": 1280,
        "text_encoder_2_vocabulary": _VOCABULARY,
    },
}
"""The published models' dimensions, by the names that `convert.architecture` gives them."""
LATENTS = 4
"""Channels that the UNet of a text-to-image model is given."""
_SIDE = 256
_WORD = "<tried>"


def try_adapter(
    folder: Path,
    kind: ModelType,
    base: str | None,
    device: str,
    sizes: Mapping[str, Mapping[str, int]] = FULL_SIZES,
) -> None:
    """Apply the part to a random base and make one step; raises what diffusers says against it.

    A base that is not known, or whose configs are not bundled, tries nothing.
    """
    if base not in architecture.ARCHITECTURES or base not in sizes:
        return
    import torch

    dtype = torch.float16 if device == "cuda" else torch.float32
    pipeline = random_pipeline(base, sizes[base], device).to(dtype=dtype)
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
            f"tried on a random {base} of full size: the result is not finite",
        )


def random_pipeline(base: str, sizes: Mapping[str, int], device: str) -> Pipeline:
    """A text-to-image pipeline of a family with random weights, from the bundled configs."""
    import diffusers
    import torch
    import transformers

    with TemporaryDirectory() as name:
        folder = Path(name)
        known = architecture.load(base)
        dtypes = {part.name: {Dtype.F32} for part in known.components}
        for file in small_files(known, {"unet_inputs": LATENTS, **sizes}, dtypes, Choices()):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_bytes(file.content)
        index = json.loads((folder / INDEX).read_text())
        components: dict[str, Any] = {}
        torch.manual_seed(0)
        for part, value in index.items():
            if not isinstance(value, list):
                continue
            library, class_name = value
            if library is None:
                components[part] = None
            elif part == "scheduler" or part.startswith("tokenizer"):
                kind = getattr(diffusers if library == "diffusers" else transformers, class_name)
                components[part] = kind.from_pretrained(folder / part)
            else:
                with torch.device(device):
                    components[part] = _random_model(folder / part, library, class_name)
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
    """Each file of vectors into its own encoder: SDXL has two."""
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
