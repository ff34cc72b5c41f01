"""The configs of a repo, read as data and written again with the keys that are allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_api.choices import PredictionType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.quantized import refuse_quantized_config
from sd_loader.convert.plan.config_rules import check_scheduler
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.convert.write.files import SmallFile, json_file
from sd_loader.diffusers_repo.config_keys import (
    allowed_config,
    allowed_scheduler,
    known_classes,
)
from sd_loader.diffusers_repo.index import (
    CONFIG_NAME,
    INDEX_NAME,
    MAX_JSON_BYTES,
    Pipeline,
    parse_json,
)
from sd_loader.diffusers_repo.settings_files import known_settings
from sd_loader.errors import LoaderError, prefixing
from sd_loader.snippet import snippet

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){0,3}(\.?(a|b|rc|dev|post)\d{1,4})?", re.ASCII)


def bundled_templates(pipeline: Pipeline) -> Mapping[str, Any]:
    """The bundled JSON files of a pipeline, by path. They complete a repo's own files.

    Their `$expressions` are not filled in.
    """
    known = load_architecture("sdxl" if pipeline.is_sdxl else "sd-1")
    for name, variant in known.variants.items():
        if variant.patches.get(INDEX_NAME, {}).get("_class_name") == pipeline.class_name:
            known = known.varied(name)
    return known.templates


def read_small(path: Path) -> bytes:
    """Read a file of at most MAX_JSON_BYTES. Refuse a larger one."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise LoaderError(Reason.TOO_LARGE, f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
    return content


def read_json(path: Path, *, infinite: bool = False, rewritten: bool = False) -> dict[str, Any]:
    """Return a JSON object of the repo. infinite, rewritten: see `parse_json`."""
    name = f"{path.parent.name}/{path.name}"
    return parse_json(read_small(path), name, infinite=infinite, rewritten=rewritten)


def settings_file(file: Path, path: str) -> SmallFile:
    """Plan a file of a tokenizer, a processor or text generation, with its known settings only.

    If all settings are known and the file is plain UTF-8, its bytes stay the same. path: its path
    in the published folder.
    """
    content = read_small(file)
    settings = parse_json(content, path)
    kept = known_settings(file.name, settings, path)
    # Unlike `json`, transformers does not read UTF-16 or a byte order mark.
    is_plain_utf8 = content.lstrip().startswith(b"{") and b"\0" not in content
    return SmallFile(path, content) if kept == settings and is_plain_utf8 else json_file(path, kept)


def component_config(
    config: Mapping[str, Any], component: str, pipeline: Pipeline, conversion: Conversion
) -> dict[str, Any]:
    """A component's config, with the class that model_index.json names."""
    with prefixing(component):
        refuse_quantized_config(config)
    class_name = pipeline.components[component]
    kept = allowed_config(config, class_name, f"{component}/{CONFIG_NAME}")
    if component.startswith("text_encoder"):
        model_type = known_classes()[class_name]["model_type"]
        return {**kept, "architectures": [class_name], "model_type": model_type}
    if component == "unet" and conversion.upcast_attention is not None:
        kept["upcast_attention"] = conversion.upcast_attention
    return {"_class_name": class_name, **version_entry(config), **kept}


def scheduler_config(
    config: Mapping[str, Any], pipeline: Pipeline, conversion: Conversion
) -> dict[str, Any]:
    """The scheduler's config, with the spec's prediction type if the spec has one."""
    class_name = pipeline.components["scheduler"]
    kept = allowed_scheduler(config, class_name, SCHEDULER_CONFIG)
    check_scheduler(class_name, kept, SCHEDULER_CONFIG)
    if conversion.prediction_type is not None:
        kept["prediction_type"] = conversion.prediction_type.value
    return {"_class_name": class_name, **version_entry(config), **kept}


def prediction_type(scheduler: Mapping[str, Any]) -> str:
    """What the UNet predicts according to the scheduler's config. The default is epsilon."""
    value = scheduler.get("prediction_type", PredictionType.EPSILON.value)
    try:
        return PredictionType(value).value
    except ValueError:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the scheduler's prediction_type {snippet(str(value))} is not supported",
        ) from None


def pipeline_index(pipeline: Pipeline, templates: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical model_index.json. Components that are not published are null in it."""
    usual = templates[INDEX_NAME]
    index: dict[str, Any] = {
        "_class_name": pipeline.class_name,
        "_diffusers_version": usual["_diffusers_version"],
        **pipeline.options,
        # Null as well: the text encoder that the SDXL refiner lacks.
        **{name: [None, None] for name, value in usual.items() if isinstance(value, list)},
    }
    if not pipeline.is_sdxl:
        index["requires_safety_checker"] = False
    for name, class_name in pipeline.components.items():
        library = "transformers" if name.startswith(("text", "token")) else "diffusers"
        published = "CLIPTokenizer" if name.startswith("token") else class_name
        index[name] = [library, published]
    return dict(sorted(index.items()))


def version_entry(config: Mapping[str, Any]) -> dict[str, str]:
    """The entry with the version of diffusers that wrote the config. Empty if it is not valid.

    diffusers adapts configs that old versions wrote.
    """
    version = config.get("_diffusers_version")
    if isinstance(version, str) and _VERSION.fullmatch(version):
        return {"_diffusers_version": version}
    return {}
