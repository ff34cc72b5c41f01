"""The small files of a repo, read as data and written anew: what is not known is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import PredictionType
from sd_loader.convert.plan.small_files import clip_vocabulary
from sd_loader.convert.tables import architecture
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.diffusers_repo.index import INDEX_NAME, MAX_JSON_BYTES, Pipeline, parse_json
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.tensors import Dtype

_TORCH_DTYPES = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}
# Names code rather than numbers: transformers would fetch attention kernels from the Hub.
_NOT_DATA = ("attn_implementation", "experts_implementation", "chat_template", "dtype")
_TOKENIZER_KEYS = (
    "add_prefix_space",
    "added_tokens_decoder",
    "bos_token",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "eos_token",
    "errors",
    "model_max_length",
    "pad_token",
    "unk_token",
)
_VOCABULARY_FILES = ("vocab.json", "merges.txt")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_MAX_LENGTH = 77
_ABSURD_LENGTH = 10**6
"""transformers writes 10**30 for "unknown", which makes every prompt overflow."""


class Template:
    """The bundled folder of a pipeline's kind: what a repo's own files are completed from."""

    def __init__(self, pipeline: Pipeline) -> None:
        known = architecture.load("sdxl" if pipeline.is_sdxl else "sd1")
        for name, variant in known.variants.items():
            if variant.patches.get(INDEX_NAME, {}).get("_class_name") == pipeline.class_name:
                known = known.varied(name)
        self._templates = known.templates

    def config(self, path: str) -> dict[str, Any]:
        """A small file of the bundled folder."""
        return dict(self._templates[path])

    @staticmethod
    def with_precision(
        config: Mapping[str, Any], component: str, dtypes: set[Dtype]
    ) -> dict[str, Any]:
        """A config that names the precision, where transformers takes it from there."""
        named = {key: value for key, value in config.items() if key != "torch_dtype"}
        if component.startswith("text_encoder") and len(dtypes) == 1:
            named["torch_dtype"] = _TORCH_DTYPES[next(iter(dtypes))]
        return named


def read_small(path: Path) -> bytes:
    """A small file's bytes."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise LoaderError(Reason.TOO_LARGE, f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the repo."""
    return parse_json(read_small(path), f"{path.parent.name}/{path.name}")


def component_config(
    config: Mapping[str, Any], component: str, pipeline: Pipeline, request: LoadRequest
) -> dict[str, Any]:
    """A model's config, with the class that model_index.json names."""
    if config.get("quantization_config"):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT, f"{component} is quantized, which is not supported"
        )
    kept = _data_only(config)
    class_name = pipeline.components[component]
    if component.startswith("text_encoder"):
        return {**kept, "architectures": [class_name]}
    if component == "unet" and request.upcast_attention is not None:
        kept["upcast_attention"] = request.upcast_attention
    return {"_class_name": class_name, **_version(config), **kept}


def scheduler_config(
    config: Mapping[str, Any], pipeline: Pipeline, request: LoadRequest
) -> dict[str, Any]:
    """The scheduler's config, with the prediction type that the spec asks for."""
    kept = _data_only(config)
    if request.prediction_type is not None:
        kept["prediction_type"] = request.prediction_type.value
    return {"_class_name": pipeline.components["scheduler"], **_version(config), **kept}


def prediction_type(scheduler: Mapping[str, Any]) -> str:
    """What the UNet predicts, as the scheduler's config says; epsilon where it does not."""
    value = scheduler.get("prediction_type", PredictionType.EPSILON.value)
    try:
        return PredictionType(value).value
    except ValueError:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the scheduler's prediction_type {snippet(str(value))} is not supported",
        ) from None


def pipeline_index(pipeline: Pipeline, template: Template) -> dict[str, Any]:
    """The canonical model_index.json: safety checker and its like are null."""
    usual = template.config(INDEX_NAME)
    index: dict[str, Any] = {
        "_class_name": pipeline.class_name,
        "_diffusers_version": usual["_diffusers_version"],
        **pipeline.options,
        # Also for the text encoder that the SDXL refiner lacks.
        **{name: [None, None] for name, value in usual.items() if isinstance(value, list)},
    }
    if not pipeline.is_sdxl:
        index["requires_safety_checker"] = False
    for name, class_name in pipeline.components.items():
        library = "transformers" if name.startswith(("text", "token")) else "diffusers"
        shown = "CLIPTokenizer" if name.startswith("token") else class_name
        index[name] = [library, shown]
    return dict(sorted(index.items()))


def tokenizer_files(folder: Path, component: str, template: Template) -> list[SmallFile]:
    """A CLIP tokenizer as old and new transformers read it: vocabulary, merges and configs."""
    files = []
    if all((folder / name).is_file() for name in _VOCABULARY_FILES):
        _vocabulary(read_json(folder / _VOCABULARY_FILES[0]), component)
        files += [
            SmallFile(f"{component}/{name}", read_small(folder / name))
            for name in _VOCABULARY_FILES
        ]
    else:
        files += _from_one_file(folder, component)
    config = _optional(folder / "tokenizer_config.json")
    usual = template.config(f"{component}/tokenizer_config.json")
    known = {key: config[key] for key in _TOKENIZER_KEYS if key in config}
    length = known.get("model_max_length")
    if not isinstance(length, int) or length > _ABSURD_LENGTH:
        known["model_max_length"] = _MAX_LENGTH
    merged = {**usual, **known, "tokenizer_class": "CLIPTokenizer"}
    special = _optional(folder / "special_tokens_map.json")
    if not special:
        special = template.config(f"{component}/special_tokens_map.json")
        special["pad_token"] = merged["pad_token"]
    chosen = {key: special[key] for key in _SPECIAL_TOKENS if key in special}
    return [
        *files,
        json_file(f"{component}/tokenizer_config.json", merged),
        json_file(f"{component}/special_tokens_map.json", chosen),
    ]


def _from_one_file(folder: Path, component: str) -> list[SmallFile]:
    """Newer transformers save tokenizer.json only, which older ones do not read."""
    tokenizer = _optional(folder / "tokenizer.json")
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{component} has neither vocab.json and merges.txt nor a tokenizer.json of their kind",
        )
    vocabulary = _vocabulary(model.get("vocab"), component)
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or content not in vocabulary:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"{component}/tokenizer.json adds a token to its vocabulary:"
                f" {snippet(str(content))}",
            )
    if vocabulary == parse_json(clip_vocabulary("vocab.json"), "vocab.json"):
        # The very bytes that the repositories of models have.
        contents = [clip_vocabulary(name) for name in _VOCABULARY_FILES]
    else:
        contents = [json.dumps(vocabulary).encode(), _merges(model.get("merges"), component)]
    return [
        SmallFile(f"{component}/{name}", content)
        for name, content in zip(_VOCABULARY_FILES, contents, strict=True)
    ]


def _merges(merges: object, component: str) -> bytes:
    """merges.txt of tokenizer.json's pairs, each of which is a list or, in older files, a line."""
    lines = ["#version: 0.2"]
    for pair in merges if isinstance(merges, list) else [None]:
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or [len(str(part).split()) for part in parts] != [1, 1]:
            raise LoaderError(
                Reason.CONVERSION_FAILED, f"{component}/tokenizer.json: a merge is not two words"
            )
        lines.append(" ".join(str(part) for part in parts))
    return ("\n".join(lines) + "\n").encode(errors="replace")


def _vocabulary(vocabulary: object, component: str) -> dict[str, int]:
    if (
        not isinstance(vocabulary, dict)
        or not vocabulary
        or not all(type(number) is int for number in vocabulary.values())
    ):
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"{component}: the tokenizer's vocabulary is not one"
        )
    return vocabulary


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _data_only(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in _NOT_DATA
    }


def _version(config: Mapping[str, Any]) -> dict[str, str]:
    """Keep it: diffusers adapts configs of old versions."""
    version = config.get("_diffusers_version")
    if isinstance(version, str) and re.fullmatch(r"[0-9A-Za-z.+-]{1,32}", version):
        return {"_diffusers_version": version}
    return {}
