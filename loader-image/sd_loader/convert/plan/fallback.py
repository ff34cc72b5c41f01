"""Recognises pipelines that only diffusers converts, and plans the folder that it saved.

This module imports diffusers and transformers, each inside the function that needs it, since the
slim image has neither and importing them takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import only_diffusers_converts, transformer_file
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import published_dtype, torch_dtype
from sd_loader.convert.tables.architecture import DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.convert.write.files import (
    FolderPlan,
    Item,
    PlannedFile,
    SmallFile,
    component_files,
    json_file,
)
from sd_loader.diffusers_repo.component_files import CONFIG_SUFFIXES
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME, parse_json
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor, TensorFile
from sd_loader.torchstack import has_torch

_UNKNOWN = "v1"
"""diffusers' name for every file that it does not recognise."""

_KEPT = ("_class_name", "_diffusers_version")
"""Private fields of a config that are published."""


@dataclass(frozen=True)
class ForeignPipeline:
    """A pipeline that diffusers converts and this loader does not."""

    what: str
    """Its usual name, with an article."""

    name: str
    """diffusers' name of its architecture, which is published as the base model."""

    config_repo: str
    """The Hub repo with the configs that the conversion needs."""


def foreign_pipeline(file: TensorFile, conversion: Conversion) -> ForeignPipeline | None:
    """The pipeline that only diffusers converts. None if the file is anything else.

    Raises LoaderError if diffusers is not installed or does not convert the file either.
    """
    what = _foreign(file.tensors) if conversion.is_pipeline else None
    if what is None:
        return None
    refuse_quantized(file.tensors)
    if not has_torch():
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is {what}, which only diffusers converts, and this loader image has no"
            " torch: spec.verify.render: true picks the image that has it (loader.image)",
        )
    from diffusers.loaders import single_file_utils

    known: Any = single_file_utils
    try:
        name = known.infer_diffusers_model_type(file.tensors)
    except (LookupError, NameError):  # it relies on keys that it did not look for
        name = _UNKNOWN
    place = known.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(name, {})
    if name == _UNKNOWN or set(place) != {"pretrained_model_name_or_path"}:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is {what}, of a kind that diffusers does not convert to a pipeline",
        )
    return ForeignPipeline(what, name, place["pretrained_model_name_or_path"])


def _foreign(tensors: Mapping[str, Tensor]) -> str | None:
    """Describe a model that diffusers converts. None for any other file."""
    transformer = transformer_file(tensors)
    if transformer is None or transformer.lacking:
        return only_diffusers_converts(tensors)
    return str(transformer)


def read_index(configs: Path, repo: str) -> dict[str, Any]:
    """The pipeline that downloaded configs describe. Refuses classes of unknown libraries."""
    import diffusers
    import transformers

    index = parse_json((configs / INDEX_NAME).read_bytes(), INDEX_NAME)
    class_name = str(index.get("_class_name"))
    pipeline_class = getattr(diffusers, class_name, None)
    if not isinstance(pipeline_class, type) or not hasattr(pipeline_class, "from_single_file"):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{repo}: diffusers makes no {snippet(class_name)} of a single file",
        )
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        library = {"diffusers": diffusers, "transformers": transformers}.get(str(value[0]))
        if library is None or not isinstance(getattr(library, str(value[1]), None), type):
            raise LoaderError(
                Reason.UNSAFE_MODEL,
                f"{repo}: {INDEX_NAME} has {snippet(name)} of {snippet(str(value))}",
            )
    return index


def plan_saved(
    saved: Path,
    configs: Path,
    index: Mapping[str, Any],
    base_model: str,
    conversion: Conversion,
    opened: OpenFiles,
) -> FolderPlan:
    """Plan the canonical folder of a pipeline that diffusers saved.

    Tokenizers and scheduler are published as the repo of configs has them.
    """
    files: list[PlannedFile] = [json_file(INDEX_NAME, index)]
    for name, value in index.items():
        if not isinstance(value, list) or value[0] is None:
            continue
        library, class_name = value
        weights = sorted((saved / name).glob("*.safetensors"))
        if not weights:
            files += [
                SmallFile(f"{name}/{path.name}", path.read_bytes())
                for path in sorted((configs / name).iterdir())
                if path.suffix in CONFIG_SUFFIXES
            ]
            continue
        items = [
            Item(
                _canonical(key, class_name),
                tensor,
                published_dtype(tensor.dtype, conversion.precision),
            )
            for path in weights
            for key, tensor in opened.open(path).tensors.items()
        ]
        is_diffusers = library == "diffusers"
        files += component_files(
            name, DIFFUSERS_WEIGHTS if is_diffusers else TRANSFORMERS_WEIGHTS, items
        )
        # transformers saves its newest config, of which older versions do not read everything.
        folder = (saved if is_diffusers else configs) / name
        config = parse_json((folder / CONFIG_NAME).read_bytes(), name)
        published = {key: field for key, field in config.items() if key in _KEPT or key[0] != "_"}
        if not is_diffusers:
            published |= torch_dtype(item.dtype for item in items)
        files.append(json_file(f"{name}/{CONFIG_NAME}", published))
    return FolderPlan(
        files=tuple(files), base_model=base_model, pipeline_class=index["_class_name"]
    )


def _canonical(name: str, class_name: str) -> str:
    return with_prefix(name) if class_name == "CLIPTextModel" else name
