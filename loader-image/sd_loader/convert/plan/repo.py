"""Makes the canonical folder of a diffusers repo: the same files whoever saved them, and how.

Weights become safetensors under their canonical names, in the precision asked for; a file that
needs no change is linked instead of copied. Configs are parsed and written anew.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName
from sd_loader.convert.plan.beside import Supplied
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.plan.repo_configs import (
    Template,
    component_config,
    pipeline_index,
    prediction_type,
    read_json,
    read_small,
    scheduler_config,
    tokenizer_files,
)
from sd_loader.convert.plan.vae_names import current_name
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.verify import verify_folder
from sd_loader.convert.write.files import (
    FolderPlan,
    Item,
    PlannedFile,
    WeightsFile,
    component_files,
    json_file,
    published_dtype,
)
from sd_loader.convert.write.weights import Weights
from sd_loader.convert.write.writer import write_folder
from sd_loader.diffusers_repo.component_files import RepoFile, choose_files, require_pipeline
from sd_loader.diffusers_repo.index import INDEX_NAME, WEIGHTS, Pipeline, parse_pipeline
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.handover import Converted, FileDigest
from sd_loader.progress import Report
from sd_loader.tensors import Tensor, TensorFile

_BASE_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
_SDXL_LEVELS = 3
_TEXT_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
_UNUSED = re.compile(r".*\bposition_ids|logit_scale|vision_model\..*|visual_projection\..*")


@dataclass(frozen=True)
class Planned:
    """Parts that come from elsewhere, by the names of their folders.

    warnings: what the user should know of them.
    """

    parts: Mapping[str, Supplied] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


PlanParts = Callable[[BaseModelName, Weights], Planned]


def convert_repo(
    folder: Path,
    request: LoadRequest,
    out: Path,
    report: Report,
    plan_parts: PlanParts = lambda _base, _weights: Planned(),
) -> Converted:
    """Convert a downloaded repo into the empty folder `out`.

    plan_parts: plans what comes from elsewhere, for a pipeline of this base model.
    """
    with ExitStack() as stack:
        weights = Weights(stack)
        plan = _plan(folder, request, weights, plan_parts)
        return write_plan(plan, weights, request, out, report)


def write_plan(
    plan: FolderPlan, weights: Weights, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Write the planned folder, and link what lies there already as planned."""
    kept = {file.path for file in plan.weights if _link(file, weights.files, out)}
    to_write = [file for file in plan.files if file.path not in kept]
    digests = dict(write_folder(out, to_write, report, weights.files.values()))
    digests.update(_digests(out, kept))
    verify_folder(out, plan, request.verify, report)
    return plan.converted(dict(sorted(digests.items())))


def _plan(
    folder: Path, request: LoadRequest, weights: Weights, plan_parts: PlanParts
) -> FolderPlan:
    names = files_of(folder)
    require_pipeline(list(names))
    pipeline = parse_pipeline(read_small(folder / INDEX_NAME))
    base = BaseModelName.SDXL if pipeline.is_sdxl else BaseModelName.SD1
    planned = plan_parts(base, weights)
    chosen = choose_files(
        names,
        pipeline.without(planned.parts),
        request.revision,
        safetensors_only=bool(request.from_safetensors),
    )
    origin, pipeline = pipeline.origin, pipeline.canonical()
    template = Template(pipeline)
    files: list[PlannedFile] = [file for part in planned.parts.values() for file in part.files]
    dimensions: Dimensions = {}
    configs: dict[str, dict[str, Any]] = {}
    for component in sorted(pipeline.components):
        if component in WEIGHTS and component not in planned.parts:
            own = folder / origin(component)
            found = component_config(read_json(own / "config.json"), component, pipeline, request)
            tensors = component_tensors(
                component, pipeline.components[component], weights.open_chosen(folder, own, chosen)
            )
            config = checked_config(component, pipeline, found, tensors, dimensions)
            configs[component] = config
            files += model_files(component, config, tensors, request)
    for component in pipeline.components:
        if component.startswith("tokenizer"):
            files += tokenizer_files(folder / origin(component), component, template)
    scheduler = scheduler_config(
        read_json(folder / "scheduler" / "scheduler_config.json"), pipeline, request
    )
    files.append(json_file("scheduler/scheduler_config.json", scheduler))
    files.append(json_file(INDEX_NAME, pipeline_index(pipeline, template)))
    return FolderPlan(
        files=tuple(files),
        base_model=_base_model(pipeline, configs["unet"], request),
        pipeline_class=pipeline.class_name,
        prediction_type=prediction_type(scheduler),
        warnings=planned.warnings,
    )


def files_of(folder: Path) -> dict[str, RepoFile]:
    """The files of a downloaded repo."""
    return {
        name: RepoFile(name, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix())
    }


def model_files(
    component: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], request: LoadRequest
) -> list[PlannedFile]:
    """The folder of a component that has weights."""
    items = [
        Item(name, tensor, published_dtype(tensor.dtype, request.revision))
        for name, tensor in tensors.items()
    ]
    precise = Template.with_precision(config, component, {item.dtype for item in items})
    return [
        *component_files(component, WEIGHTS[component], items),
        json_file(f"{component}/config.json", precise),
    ]


def component_tensors(
    component: str, class_name: str, files: Iterable[TensorFile]
) -> dict[str, Tensor]:
    """All tensors of a component under their canonical names."""
    found: dict[str, Tensor] = {}
    for file in files:
        for old, tensor in file.tensors.items():
            name = _canonical(old, component)
            if name is None or _is_foreign(name, class_name):
                continue
            if name in found:
                raise LoaderError(
                    Reason.CONVERSION_FAILED, f"{component} has two tensors {snippet(name)}"
                )
            if not tensor.dtype.is_float:
                raise LoaderError(
                    Reason.UNSUPPORTED_FORMAT,
                    f"{component}: {snippet(name)} is of type {tensor.dtype.label}: quantized"
                    " weights are not supported",
                )
            found[name] = tensor
    return found


def _canonical(name: str, component: str) -> str | None:
    """The tensor's name in the canonical folder; None for what no folder holds."""
    if component.startswith("text_encoder"):
        if _UNUSED.fullmatch(name):
            return None
        # transformers since 5.6 leaves the prefix out, and older ones then load noise.
        return f"text_model.{name}" if name.startswith(_TEXT_PARTS) else name
    return current_name(name) if component == "vae" else name


def _is_foreign(name: str, class_name: str) -> bool:
    """Some text encoders were saved with the projection that their class does not have."""
    return name == "text_projection.weight" and class_name == "CLIPTextModel"


def _base_model(pipeline: Pipeline, unet: Mapping[str, Any], request: LoadRequest) -> str:
    width = unet.get("cross_attention_dim")
    found = _BASE_BY_WIDTH.get(width) if isinstance(width, int) else None
    base = found or _base_by_structure(pipeline, unet)
    if request.base_model is not None and request.base_model.value != base:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"spec.baseModel is {request.base_model.value}, but the repo's UNet is of {base}",
        )
    return base


def _base_by_structure(pipeline: Pipeline, unet: Mapping[str, Any]) -> str:
    """The family of a UNet whose width is no family's own."""
    if pipeline.is_sdxl:
        return "sdxl-refiner" if len(unet.get("block_out_channels", [])) > _SDXL_LEVELS else "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def _link(file: WeightsFile, sources: Mapping[int, TensorFile], out: Path) -> bool:
    """Put a source file in place that is already, byte for byte, what is planned."""
    fds = {item.source.fd for item in file.items}
    if len(fds) != 1:
        return False
    fd = fds.pop()
    if os.fstat(fd).st_size != file.size or os.pread(fd, len(file.header), 0) != file.header:
        return False
    position = len(file.header)
    for item in file.items:
        if item.source.offset != position or item.dtype is not item.source.dtype:
            return False
        position += item.nbytes
    path = out / file.path
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.link(sources[fd].path, path)
    except OSError:
        return False  # no links on this volume: it is copied like the others
    return True


def _digests(out: Path, names: Iterable[str]) -> dict[str, FileDigest]:
    ordered = sorted(names)
    with ThreadPoolExecutor(2, "digest") as pool:
        return dict(zip(ordered, pool.map(lambda name: _digest(out / name), ordered), strict=True))


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(digest, os.fstat(file.fileno()).st_size)
