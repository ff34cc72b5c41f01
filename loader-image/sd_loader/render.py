"""Renders an image with a converted folder before it is published. No other check runs the model.

This module imports torch and diffusers inside the functions that need them: importing them takes
seconds, and the slim image does not have them.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_api import defaults
from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.spec import Verify
from sd_api.taxonomy import title_of
from sd_api.wire import Progress, Stage
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.quantized_repo import is_quantized
from sd_loader.convert.tables.families import PUBLISHED_SIZES
from sd_loader.convert.write.files import MIXED
from sd_loader.errors import LoaderError
from sd_loader.failures import explain
from sd_loader.handover import Converted
from sd_loader.progress import Report
from sd_loader.render_adapter import try_adapter
from sd_loader.snippet import snippet
from sd_loader.torchstack import quiet

if TYPE_CHECKING:
    import numpy as np
    import torch

Pipeline = Any
"""diffusers has no types."""

MAX_SIDE = 512

_DARK = 1 / 255
_UNIFORM = 0.5 / 255
"""Largest standard deviation of an image that looks like one colour."""
_FP16_MAX = 65504.0
_DETAIL = 200


@dataclass(frozen=True)
class Rendered:
    """The result of rendering."""

    preview: bytes | None = None
    """A PNG. None if the model is not rendered."""

    warning: str | None = None
    """Why no rendering was tried with the model. None if it was tried."""


def render(folder: Path, converted: Converted, conversion: Conversion, report: Report) -> Rendered:
    """Render an image with the pipeline in the folder. Raise VerificationFailed if it is unusable.

    A LoRA, embedding, ControlNet or VAE cannot render an image alone. With a GPU it is tried on a
    base of its family with random weights, if the loader has the family's configs.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    report(Progress(stage=Stage.VERIFYING, percent=0))
    with explaining():
        if not conversion.is_pipeline:
            why_not = _try_adapter(folder, conversion.model_type, converted.base_model, device)
            return Rendered(warning=None if why_not is None else f"not tried: {why_not}")
        if is_quantized(converted.precision):
            return Rendered(warning=f"not rendered: the weights are {converted.precision}")
        precision = converted.precision
        if precision == MIXED and conversion.precision is not None:
            precision = conversion.precision.value
        pipeline = open_pipeline(folder, _dtype(device, precision)).to(device)
        arguments, lacking = _arguments(pipeline, conversion.verify)
        if lacking:
            return Rendered(
                warning=f"not rendered: {type(pipeline).__name__} also takes {', '.join(lacking)}"
            )
        if not _draws(pipeline):
            return Rendered(
                warning=f"not rendered: {type(pipeline).__name__} does not draw an image in steps"
            )
        watch = _Watch(report)
        watch.attach(pipeline, halves=device == "cpu" and converted.precision == "fp16")
        images = pipeline(**arguments, callback_on_step_end=watch.step, output_type="np").images
        image: np.ndarray[Any, Any] = images[0]
        _check(image, watch, pipeline)
        return Rendered(_png(image))


def _try_adapter(
    folder: Path, model_type: ModelType, base_model: str | None, device: str
) -> str | None:
    """Try the model on a random base of full size. Return None, or why it could not be tried."""
    if device != "cuda":
        return "that needs a GPU"
    if base_model is None:
        return "its family is not known; name it in spec.baseModel"
    for family, sizes in PUBLISHED_SIZES.items():
        if family == base_model:
            try_adapter(folder, model_type, family, sizes, device)
            return None
    return f"the loader has no base of {title_of(base_model)} to try it on"


def open_pipeline(folder: Path, dtype: torch.dtype) -> Pipeline:
    """Open the pipeline in a folder, offline and from its own files only."""
    import diffusers

    kind: Any = diffusers.DiffusionPipeline
    pipeline = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def explaining() -> Iterator[None]:
    """Map the libraries' errors to LoaderErrors."""
    import torch

    try:
        with quiet():
            yield
    except torch.OutOfMemoryError as error:
        raise LoaderError(
            Reason.OUT_OF_MEMORY,
            "the GPU has too little memory to render with this model: choose a larger one, or set"
            " spec.verify.render: false",
        ) from error
    except Exception as error:
        if explain(error).reason is not Reason.LOADER_CRASHED:
            raise
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            "diffusers cannot open or run the converted model:"
            f" {type(error).__name__}: {snippet(str(error), _DETAIL)}",
        ) from error


def _dtype(device: str, precision: str | None) -> torch.dtype:
    """Return the published half precision on a GPU, otherwise fp32, which is fast on a CPU."""
    import torch

    published = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision or "")
    return published if device == "cuda" and published is not None else torch.float32


def _draws(pipeline: Pipeline) -> bool:
    """Whether the pipeline draws an image in steps that can be watched."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return {"callback_on_step_end", "output_type"} <= known.keys()


def _arguments(pipeline: Pipeline, verify: Verify) -> tuple[dict[str, Any], list[str]]:
    """Return the pipeline's arguments, and the names of required arguments without a value."""
    import torch
    from PIL import Image

    side = _side(pipeline)
    # Pipelines that change an image start from this one. At strength 1.0 they replace all of it.
    gradient = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    offered = {
        "prompt": verify.prompt or defaults.RENDER_PROMPT,
        "image": gradient,
        "mask_image": Image.new("L", (side, side), 255),
        "strength": 1.0,
        "height": side,
        "width": side,
        "num_inference_steps": verify.steps or defaults.RENDER_STEPS,
        # The CPU's random numbers are the same on every machine.
        "generator": torch.Generator("cpu").manual_seed(defaults.RENDER_SEED),
    }
    known = inspect.signature(type(pipeline).__call__).parameters
    needed = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and name not in {"self", *offered}
    ]
    # A video would take minutes, so num_frames counts as an argument without value.
    videos = [name for name in known if name == "num_frames"]
    return {name: value for name, value in offered.items() if name in known}, needed + videos


def _side(pipeline: Pipeline) -> int:
    """Return the image's width and height: the size used in training, but at most MAX_SIDE."""
    unet = getattr(pipeline, "unet", None)
    trained = getattr(pipeline, "default_sample_size", None)
    if trained is None and unet is not None:
        trained = unet.config.sample_size
    if not isinstance(trained, int):
        return MAX_SIDE
    return min(MAX_SIDE, trained * int(pipeline.vae_scale_factor))


@dataclass
class _Watch:
    """Reports the progress of a run, and keeps the values that explain a bad image."""

    report: Report

    latents: torch.Tensor | None = None
    """The latents of the last step."""

    largest: float = 0.0
    """Largest absolute value that a layer of the VAE's decoder returned. 0 if it is not watched."""

    def step(
        self,
        pipeline: Pipeline,
        number: int,
        _time: object,
        tensors: dict[str, Any],
    ) -> dict[str, Any]:
        """Record a step, and report the progress. The pipeline calls this."""
        total = max(1, len(pipeline.scheduler.timesteps))
        self.latents = tensors.get("latents")
        self.report(Progress(stage=Stage.VERIFYING, percent=min(100, 100 * (number + 1) // total)))
        return {}

    def attach(self, pipeline: Pipeline, *, halves: bool) -> None:
        """Watch the values in a VAE that is published in fp16 but runs in fp32 on this machine.

        halves: whether this is such a machine and model. A VAE that diffusers always decodes in
        fp32 is not watched.
        """
        vae = getattr(pipeline, "vae", None)
        if not halves or vae is None or _is_upcast(pipeline):
            return
        for module in vae.decoder.modules():
            module.register_forward_hook(self._seen)

    def _seen(self, _module: object, _inputs: object, output: object) -> None:
        import torch

        if isinstance(output, torch.Tensor):
            self.largest = max(self.largest, float(output.abs().max()))


def _is_upcast(pipeline: Pipeline) -> bool:
    """Whether diffusers decodes in fp32 even if the VAE is published in fp16."""
    return hasattr(pipeline, "upcast_vae") and bool(pipeline.vae.config.get("force_upcast"))


def _check(
    image: np.ndarray[Any, Any],
    watch: _Watch,
    pipeline: Pipeline,
) -> None:
    import numpy as np
    import torch

    if watch.latents is not None and not bool(torch.isfinite(watch.latents).all()):
        _fail(
            "the latents are not finite: the model computes NaN in the published precision. Use"
            " spec.revision: bf16 or fp32, or spec.upcastAttention: true"
        )
    decoded = bool(np.isfinite(image).all())
    half = watch.largest > _FP16_MAX or pipeline.dtype is torch.float16
    if watch.largest > _FP16_MAX or (half and (not decoded or float(image.max()) < _DARK)):
        _fail(
            "the image is black: the latents are finite, but the VAE overflows in fp16, as SDXL's"
            " own does. Use spec.vae: {url: madebyollin/sdxl-vae-fp16-fix}, or spec.revision:"
            " bf16 or fp32"
        )
    if not decoded:
        _fail("the VAE computes NaN from finite latents")
    if float(image.max()) < _DARK:
        _fail("the image is black")
    if float(image.std()) < _UNIFORM:
        _fail("the image has only one colour")


def _fail(message: str) -> None:
    raise LoaderError(Reason.VERIFICATION_FAILED, f"rendered: {message}")


def _png(image: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    pixels = (image * 255).round().astype("uint8")
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return content.getvalue()
