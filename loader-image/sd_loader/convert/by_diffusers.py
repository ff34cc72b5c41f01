"""Lets diffusers convert models for which this loader has no key table. Needs torch.

First, the loader reads the file itself and writes it again as safetensors: torch reads no pickle,
and no second parser interprets an untrusted header. The folder that diffusers saves is then written
again like every published folder.

This module imports torch, diffusers and transformers, each inside the function that needs it, since
importing them takes seconds.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sd_api.choices import Weights
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.fallback import ForeignPipeline, plan_saved, read_index
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import TORCH_NAMES, published_dtype
from sd_loader.convert.write.files import Item, weights_file
from sd_loader.convert.write.verify import verify_folder
from sd_loader.convert.write.writer import write_folder
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.failures import explain
from sd_loader.handover import Converted
from sd_loader.progress import Report
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype, Tensor, TensorFile
from sd_loader.torchstack import quiet

_SCRATCH = "fallback"
_MAX_DETAIL = 200


def convert_by_diffusers(
    file: TensorFile,
    pipeline: ForeignPipeline,
    companions: Companions,
    conversion: Conversion,
    out: Path,
    report: Report,
) -> Converted:
    """Convert a file with the configs that were downloaded beside it."""
    _refuse_options(pipeline.what, conversion)
    configs = companions.configs
    if not (configs / INDEX_NAME).is_file():
        raise LoaderError(
            Reason.LOADER_CRASHED,
            f"the configs of {pipeline.config_repo} are not downloaded; run fetch again",
        )
    index = read_index(configs, pipeline.config_repo)
    scratch = companions.folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    saved = scratch / "saved"
    _save(file, index, configs, scratch, saved, pipeline.what, report)
    with ExitStack() as stack:
        plan = plan_saved(saved, configs, index, pipeline.name, conversion, OpenFiles(stack))
        files = write_folder(out, plan.files, report)
        verify_folder(out, plan, conversion.verify, report)
    shutil.rmtree(scratch)
    return plan.converted(files)


def _refuse_options(what: str, conversion: Conversion) -> None:
    """Refuse, by name, a field that would have no effect."""
    given = {
        "weights": conversion.weights is Weights.EMA,
        "baseModel": conversion.base_model is not None,
        "predictionType": conversion.prediction_type is not None,
        "upcastAttention": conversion.upcast_attention is not None,
        "originalConfig": conversion.original_config,
        "vae": conversion.replacement_vae,
    }
    for field, is_given in given.items():
        if is_given:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.{field} does not apply: the file is {what}"
            )


def _save(
    file: TensorFile,
    index: Mapping[str, Any],
    configs: Path,
    scratch: Path,
    saved: Path,
    what: str,
    report: Report,
) -> None:
    """Let diffusers convert the file, and save the pipeline."""
    import diffusers
    import torch

    items = [Item(name, tensor, tensor.dtype) for name, tensor in file.tensors.items()]
    rewritten = weights_file("model.safetensors", items)
    write_folder(scratch, [rewritten], report)
    pipeline_class: Any = getattr(diffusers, index["_class_name"])
    with _explaining(what):
        pipeline = pipeline_class.from_single_file(
            str(scratch / rewritten.path),
            config=str(configs),
            local_files_only=True,
            dtype=getattr(torch, TORCH_NAMES[_usual_dtype(file.tensors)]),
        )
        models: dict[str, Any] = {
            name: component
            for name, component in pipeline.components.items()
            if isinstance(component, torch.nn.Module)
        }
        for name, model in models.items():
            if hasattr(model, "tie_weights"):
                model.tie_weights()  # diffusers 0.42 leaves T5's embedding untied, and empty
            # A tensor that the file lacks stays on the meta device.
            lacking = [key for key, tensor in model.state_dict().items() if tensor.is_meta]
            if lacking:
                raise _lacks(what, f"{len(lacking)} tensors of {name}, first {lacking[0]}")
        pipeline.save_pretrained(saved)
    (scratch / rewritten.path).unlink()


def _usual_dtype(tensors: Mapping[str, Tensor]) -> Dtype:
    """Return the type of most weights, because diffusers loads all weights in one type."""
    sizes: Counter[Dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype.is_float:
            sizes[published_dtype(tensor.dtype, None)] += tensor.count
    return sizes.most_common(1)[0][0] if sizes else Dtype.F32


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Map diffusers' errors to LoaderErrors."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with quiet():
            yield
    except SingleFileComponentError as error:
        detail = str(error).partition("\n")[0].removeprefix("Failed to load ")
        raise _lacks(what, f"the {snippet(detail.partition('.')[0])}") from error
    except Exception as error:
        if explain(error).reason is not Reason.LOADER_CRASHED:
            raise
        if "contain a valid CLIP model" in str(error):
            raise _lacks(what, "a CLIP text encoder") from error
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the file is {what}, and diffusers does not convert it:"
            f" {type(error).__name__}: {snippet(str(error), _MAX_DETAIL)}",
        ) from error


def _lacks(what: str, component: str) -> LoaderError:
    return LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the file is {what} that lacks {component}: use a file that holds the whole pipeline",
    )
