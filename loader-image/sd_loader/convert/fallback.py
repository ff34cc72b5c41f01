"""Converts what has no key table here but in diffusers: by diffusers itself, where torch is.

The file is rewritten by our own reader first, so that no pickle and no second parser's idea of a
header gets near torch; what diffusers saves is then written anew as every folder of ours is.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import Weights
from sd_loader.convert.detect.detect import known_to_diffusers_only
from sd_loader.convert.verify import verify_folder
from sd_loader.convert.write.files import (
    DIFFUSERS_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    FolderPlan,
    Item,
    PlannedFile,
    SmallFile,
    component_files,
    json_file,
    published_dtype,
    weights_file,
)
from sd_loader.convert.write.writer import write_folder
from sd_loader.diffusers_repo.index import INDEX_NAME, parse_json
from sd_loader.errors import LoaderError
from sd_loader.failures import explain
from sd_loader.formats import open_tensor_file
from sd_loader.formats.snippet import snippet
from sd_loader.handover import Converted
from sd_loader.progress import Report
from sd_loader.source.configs import CONFIGS, SMALL
from sd_loader.tensors import Dtype, Tensor, TensorFile
from sd_loader.torchstack import has_torch

_SCRATCH = "fallback"
_CONFIG = "config.json"
_UNKNOWN = "v1"
"""What diffusers takes everything for that it does not know."""
_LIBRARIES = ("diffusers", "transformers")
_TORCH = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}
_KEPT = ("_class_name", "_diffusers_version")
_DETAIL = 200


def config_repo(what: str, tensors: Mapping[str, Tensor]) -> str:
    """The Hub repo whose configs diffusers converts this file by. what: as people call it."""
    return _inferred(what, tensors)[1]


def convert_by_diffusers(
    file: TensorFile, source_dir: Path, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Convert a file that `config_repo` knows, with the configs that were fetched beside it."""
    what = known_to_diffusers_only(file.tensors) or "no such file"
    name, repo = _inferred(what, file.tensors)
    _refuse_options(what, request)
    configs = source_dir / CONFIGS
    if not (configs / INDEX_NAME).is_file():
        raise LoaderError(
            Reason.LOADER_CRASHED, f"the configs of {repo} are not downloaded; run fetch again"
        )
    index = _index(configs, repo)
    scratch = source_dir / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    saved = scratch / "saved"
    _save(file, index, configs, scratch, saved, what, report)
    with ExitStack() as stack:
        plan = _plan(saved, configs, index, name, request, stack)
        files = write_folder(out, plan.files, report)
        verify_folder(out, plan, request.verify, report)
    shutil.rmtree(scratch)
    return Converted(
        files=files,
        base_model=plan.base_model,
        pipeline_class=plan.pipeline_class,
        precision=plan.precision,
        warnings=plan.warnings,
    )


def _inferred(what: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Diffusers' name of the architecture, and the repo of its configs."""
    if not has_torch():
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is {what}, which only diffusers converts, and this loader image has no"
            " torch: spec.verify.render: true picks the image that has it (loader.image)",
        )
    from diffusers.loaders import single_file_utils

    known: Any = single_file_utils
    try:
        name = known.infer_diffusers_model_type(tensors)
    except (LookupError, NameError):  # it relies on keys that it did not look for
        name = _UNKNOWN
    place = known.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(name, {})
    if name == _UNKNOWN or set(place) != {"pretrained_model_name_or_path"}:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the file is {what}, of a kind that diffusers does not convert to a pipeline",
        )
    return name, place["pretrained_model_name_or_path"]


def _refuse_options(what: str, request: LoadRequest) -> None:
    """A field that would have no effect is refused by its name."""
    given = {
        "weights": request.weights is Weights.EMA,
        "baseModel": request.base_model is not None,
        "predictionType": request.prediction_type is not None,
        "upcastAttention": request.upcast_attention is not None,
        "originalConfig": request.original_config is not None,
        "vae": request.vae is not None,
    }
    for field, is_given in given.items():
        if is_given:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.{field} does not apply: the file is {what}"
            )


def _index(configs: Path, repo: str) -> dict[str, Any]:
    """The pipeline that the configs describe; it names nothing but classes of the two libraries."""
    import diffusers
    import transformers

    index = parse_json((configs / INDEX_NAME).read_bytes(), INDEX_NAME)
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    if not isinstance(kind, type) or not hasattr(kind, "from_single_file"):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{repo}: diffusers makes no {snippet(str(index.get('_class_name')))} of a single file",
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


def _save(
    file: TensorFile,
    index: Mapping[str, Any],
    configs: Path,
    scratch: Path,
    saved: Path,
    what: str,
    report: Report,
) -> None:
    """Have diffusers convert the file and save the pipeline."""
    import diffusers
    import torch

    items = [Item(name, tensor, tensor.dtype) for name, tensor in file.tensors.items()]
    rewritten = weights_file("model.safetensors", items)
    write_folder(scratch, [rewritten], report)
    kind: Any = getattr(diffusers, index["_class_name"])
    with _explaining(what):
        pipeline = kind.from_single_file(
            str(scratch / rewritten.path),
            config=str(configs),
            local_files_only=True,
            dtype=getattr(torch, _TORCH[_usual_dtype(file.tensors)]),
        )
        models: dict[str, Any] = {
            name: part
            for name, part in pipeline.components.items()
            if isinstance(part, torch.nn.Module)
        }
        for name, model in models.items():
            if hasattr(model, "tie_weights"):
                model.tie_weights()  # diffusers 0.42 leaves T5's embedding untied, and empty
            # What the file lacks stays without numbers.
            lacking = [key for key, one in model.state_dict().items() if one.is_meta]
            if lacking:
                raise _lacks(what, f"{len(lacking)} tensors of {name}, first {lacking[0]}")
        pipeline.save_pretrained(saved)
    (scratch / rewritten.path).unlink()


def _usual_dtype(tensors: Mapping[str, Tensor]) -> Dtype:
    """The type of most weights, which diffusers loads all in, as a pipeline computes in one."""
    sizes: Counter[Dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype.is_float:
            sizes[published_dtype(tensor.dtype, None)] += tensor.count
    return sizes.most_common(1)[0][0] if sizes else Dtype.F32


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    from sd_loader.render import quiet

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
            f" {type(error).__name__}: {snippet(str(error), _DETAIL)}",
        ) from error


def _lacks(what: str, part: str) -> LoaderError:
    return LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the file is {what} that lacks {part}: use a file that holds the whole pipeline",
    )


def _plan(
    saved: Path,
    configs: Path,
    index: Mapping[str, Any],
    base_model: str,
    request: LoadRequest,
    stack: ExitStack,
) -> FolderPlan:
    """The canonical folder of what diffusers saved; tokenizers and scheduler as published."""
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
                if path.suffix in SMALL
            ]
            continue
        items = [
            Item(
                _canonical(key, class_name), tensor, published_dtype(tensor.dtype, request.revision)
            )
            for path in weights
            for key, tensor in stack.enter_context(open_tensor_file(path)).tensors.items()
        ]
        own = library == "diffusers"
        stem = DIFFUSERS_WEIGHTS if own else TRANSFORMERS_WEIGHTS
        files += component_files(name, stem, items)
        # transformers writes its newest config, of which older ones do not read all.
        config = parse_json(((saved if own else configs) / name / _CONFIG).read_bytes(), name)
        known = {key: one for key, one in config.items() if key in _KEPT or key[0] != "_"}
        dtypes = {item.dtype for item in items}
        if not own and len(dtypes) == 1:
            known["torch_dtype"] = _TORCH[dtypes.pop()]
        files.append(json_file(f"{name}/{_CONFIG}", known))
    return FolderPlan(
        files=tuple(files), base_model=base_model, pipeline_class=index["_class_name"]
    )


def _canonical(name: str, class_name: str) -> str:
    """Transformers since 5.6 leaves the prefix out, and older ones then load noise."""
    if class_name == "CLIPTextModel" and not name.startswith("text_model."):
        return f"text_model.{name}"
    return name
