"""Make the loader's list of diffusers' and transformers' classes from the installed libraries.

The list has every pipeline of diffusers, every class that a component of a pipeline may have, the
keys of their configs, the settings of tokenizers and processors, and the modules that both
libraries keep in single precision. The signatures of the pipelines name most classes of
transformers; `EXTRA_CLASSES` adds the others.
`tests/loader/diffusers_repo/test_classes_made.py` makes the list again and compares.

    python -m tools.make_classes     writes …/sd_loader/diffusers_repo/classes.json
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.guiders.guider_utils import BaseGuidance
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sd_loader.diffusers_repo.classes import PATH
from tools.make_config_keys import json_types, scheduler_class
from tools.processor_settings import read_from_kwargs, settings_by_file

ROOT = Path(__file__).resolve().parent.parent

EXTRA_CLASSES: Mapping[str, str] = {
    "CLIPFeatureExtractor": "the name of CLIPImageProcessor in repos of 2022",
    "Gemma2ForCausalLM": "published by the authors of Sana, whose pipelines name a base class",
    "Gemma2Model": "the text encoder of Lumina 2 and Sana, whose pipelines name a base class",
    "Gemma3Processor": "the processor of LTX-2, whose pipelines name a base class",
    "GemmaForCausalLM": "published by the authors of Lumina, whose pipelines name a base class",
    "GemmaModel": "the text encoder of Lumina, whose pipelines name a base class",
    "GlmForCausalLM": "published by the authors of CogView4, whose pipeline names GlmModel",
    "PixtralImageProcessor": "a part of PixtralProcessor that some repos name alone",
    "PixtralProcessor": "the tokenizer of FLUX.2 dev, whose pipeline names a base class",
    "PreTrainedTokenizerFast": "the name of TokenizersBackend before transformers 5",
    "Qwen2VLImageProcessor": "a part of Qwen2VLProcessor that some repos name alone",
    "T5ForConditionalGeneration": "published by authors who saved the decoder as well",
}
"""Classes of transformers that published repos name, but no pipeline's signature, with reasons."""

EXTRA_KEYS: Mapping[str, list[str]] = {
    "is_encoder_decoder": ["bool"],
    "partial_rotary_factor": ["float"],
    "rope_scaling": ["any"],
    "rope_theta": ["float"],
    "tie_word_embeddings": ["bool"],
}
"""Keys that transformers reads in configs of older versions, although no class documents them."""

FORBIDDEN_KEYS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "backbone",
        "backbone_config",
        "backbone_kwargs",
        "dtype",
        "quantization_config",
        "torch_dtype",
        "use_pretrained_backbone",
        "use_timm_backbone",
    }
)
"""Documented keys that name code, a repo, a quantizer, or the precision of the weights."""

GIVEN_BY_CALLERS: Mapping[str, tuple[str, ...]] = {
    # Llama is gated. HiDream's repos leave it out, and callers of `from_pretrained` pass it.
    "HiDreamImagePipeline": ("text_encoder_4", "tokenizer_4"),
}
"""Components that published repos leave out, by pipeline."""

_ABSTRACT = frozenset(
    {
        "AutoProcessor",
        "AutoTokenizer",
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "ProcessorMixin",
        "PythonBackend",
    }
)
"""Classes of signatures that stand for many others. No repo is saved with their names."""

Keys = dict[str, list[str]]


def make_list() -> dict[str, Any]:
    """Return the list: versions, pipelines, components, kept modules, settings, configs and keys.

    `optional` has the parameters of each pipeline that an index may leave out.
    """
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))  # imported, but not used here
    transformers.logging.set_verbosity_error()
    pipelines = dict(_exported(DiffusionPipeline))
    named = [kind for pipeline in pipelines.values() for kind in _signature_classes(pipeline)]
    of_diffusers = _classes_of_diffusers()
    of_modules = {kind for kind in named if _pipeline_module(kind)}
    of_transformers = _classes_of_transformers(named)
    entries = {name: {"keys": parameter_keys(kind)} for name, kind in of_diffusers.items()}
    entries |= {name: {"keys": parameter_keys(kind)} for name, kind in pipelines.items()}
    configs: dict[str, str] = {}
    components: dict[str, dict[str, str]] = {
        "diffusers": {name: _role(kind) for name, kind in of_diffusers.items()},
        "transformers": {name: _role(kind) for name, kind in of_transformers.items()},
    }
    for kind in of_modules:
        components.setdefault(_pipeline_module(kind), {})[kind.__name__] = _role(kind)
        if not issubclass(kind, PreTrainedModel):
            entries[kind.__name__] = {"keys": parameter_keys(kind)}
    for kind in (*of_transformers.values(), *of_modules):
        if kind is not None and issubclass(kind, PreTrainedModel):
            configs[kind.__name__] = kind.config_class.__name__
            entries |= config_entries(kind.config_class)
    weighted = (*of_diffusers.values(), *of_transformers.values(), *of_modules)
    kept = {kind.__name__: _kept_in_fp32(kind) for kind in weighted if kind is not None}
    return {
        "versions": {"diffusers": diffusers.__version__, "transformers": transformers.__version__},
        "pipelines": {name: _parameters(kind) for name, kind in sorted(pipelines.items())},
        "optional": {name: found for name, kind in sorted(pipelines.items())
                     if (found := _optional(kind))},
        "components": {library: dict(sorted(components[library].items())) for library in
                       sorted(components)},
        "kept_in_fp32": {name: modules for name, modules in sorted(kept.items()) if modules},
        "settings": settings_by_file(of_transformers),
        "configs": dict(sorted(configs.items())),
        "keys": dict(sorted(entries.items())),
    }  # fmt: skip


def _exported(base: type) -> Iterator[tuple[str, Any]]:
    """Yield diffusers' classes below `base` with their names. Stand-ins are left out."""
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name)
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base:
            yield name, kind


def _classes_of_diffusers() -> dict[str, Any]:
    schedulers = (name for name in dir(diffusers) if name.endswith("Scheduler"))
    found = {
        **dict(_exported(ModelMixin)),
        **dict(_exported(BaseGuidance)),
        **{name: kind for name in schedulers if (kind := scheduler_class(name)) is not None},
    }
    return dict(sorted(found.items()))


def _classes_of_transformers(named: list[Any]) -> dict[str, Any]:
    """Return the classes of transformers by name.

    A name of an older version, of an image processor, or of an extra class that is not a model has
    None instead of a class.
    """
    found: dict[str, Any] = {
        kind.__name__: kind for kind in named if kind.__module__.startswith("transformers.")
    }
    found = {
        name: kind
        for name, kind in found.items()
        if name not in _ABSTRACT and not name.endswith("PreTrainedModel")
    }
    for name in list(found):
        # Older versions had a second class for most tokenizers and image processors. Which class of
        # an image processor is exported depends on whether torchvision is installed.
        if name.endswith("Tokenizer"):
            found[f"{name}Fast"] = None
        if (plain := name.removesuffix("Pil")).endswith("ImageProcessor"):
            found |= dict.fromkeys((plain, f"{plain}Pil", f"{plain}Fast"))
    for name in EXTRA_CLASSES:
        kind = getattr(transformers, name, None)
        is_model = inspect.isclass(kind) and issubclass(kind, PreTrainedModel)
        found[name] = kind if is_model else None
    return dict(sorted(found.items()))


def _signature_classes(pipeline: Any) -> list[Any]:  # noqa: ANN401 - a class
    """The classes that a pipeline's constructor names, in the order of their names."""
    found = {
        kind
        for kinds in pipeline._get_signature_types().values()
        for kind in kinds
        if inspect.isclass(kind)
        and kind.__module__.partition(".")[0] in ("diffusers", "transformers")
    }
    return sorted(found, key=lambda kind: str(kind.__name__))


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("diffusers", "transformers")


def _pipeline_module(kind: Any) -> str:  # noqa: ANN401 - a class
    """Return the library that model_index.json names for a class of a pipeline's own module.

    Empty for all other classes.
    """
    module = kind.__module__.split(".")
    is_inside = module[:2] == ["diffusers", "pipelines"] and len(module) > 3
    is_loadable = issubclass(kind, ModelMixin | PreTrainedModel)
    return (
        module[-2] if is_inside and is_loadable and hasattr(diffusers.pipelines, module[-2]) else ""
    )


def _role(kind: Any) -> str:  # noqa: ANN401 - a class
    """Return the kind of component that the class is, which decides what its folder holds."""
    if kind is None or not issubclass(kind, ConfigMixin | PreTrainedModel):
        return "processor"
    if issubclass(kind, PreTrainedModel):
        return "encoder"
    if issubclass(kind, ModelMixin):
        return "model"
    return "guider" if issubclass(kind, BaseGuidance) else "scheduler"


def _parameters(pipeline: Any) -> list[str]:  # noqa: ANN401 - a class
    return [name for name in inspect.signature(pipeline.__init__).parameters if name != "self"]


def _optional(pipeline: Any) -> list[str]:  # noqa: ANN401 - a class
    """Return the parameters that model_index.json may lack, as `from_pretrained` lets them."""
    given = GIVEN_BY_CALLERS.get(pipeline.__name__, ())
    return [
        name
        for name, parameter in inspect.signature(pipeline.__init__).parameters.items()
        if name != "self"
        and (
            parameter.default is not parameter.empty
            or name in pipeline._optional_components
            or name in given
        )
    ]


def _kept_in_fp32(kind: Any) -> dict[str, list[str]]:  # noqa: ANN401 - a class
    """Return the names of modules that a library keeps in fp32, by the requested precision."""
    always = set(getattr(kind, "_keep_in_fp32_modules_strict", None) or ())
    names = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    # transformers keeps `_keep_in_fp32_modules` in fp32 only if fp16 is asked for.
    in_bf16 = always if issubclass(kind, PreTrainedModel) else names | always
    found = {"fp16": sorted(names | always), "bf16": sorted(in_bf16)}
    return {precision: modules for precision, modules in found.items() if modules}


def parameter_keys(kind: Any) -> Keys:  # noqa: ANN401 - a class
    """Return the keys of a diffusers class: the allowed parameters that are not components."""
    try:
        hints = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):
        hints = {}
    return {
        name: _types(hints.get(name), parameter.default)
        for name, parameter in sorted(inspect.signature(kind.__init__).parameters.items())
        if name != "self"
        and name not in FORBIDDEN_KEYS
        and parameter.kind is not parameter.VAR_KEYWORD
        and not _is_component(hints.get(name))
    }


def _is_component(hint: Any) -> bool:  # noqa: ANN401 - an annotation
    """Whether a parameter takes an object of a library: a component with a folder of its own."""
    if inspect.isclass(hint):
        return _is_of_library(hint)
    return any(_is_component(argument) for argument in typing.get_args(hint))


def config_entries(config: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - a class
    """The entries of a config class of transformers and of the configs nested in it."""
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    nested = {name: kind for name in config.sub_configs if (kind := _nested(config, name))}
    keys: Keys = {name: ["any"] for name in read_from_kwargs(config)} | EXTRA_KEYS
    entries: dict[str, dict[str, Any]] = {}
    for inner in nested.values():
        entries |= config_entries(inner)
    if "text_config" in nested:
        # Older versions wrote the keys of the language model beside those of the whole model.
        keys = entries[nested["text_config"].__name__]["keys"] | keys
    documented = {field.name: field.type for field in dataclasses.fields(config)}
    keys |= {
        name: _types(hint)
        for name, hint in documented.items()
        if name not in base and name not in EXTRA_KEYS
    }
    keys |= {alias: keys.get(name, ["any"]) for alias, name in config.attribute_map.items()}
    keys |= {name: [f"config {inner.__name__}"] for name, inner in nested.items()}
    allowed = {name: keys[name] for name in sorted(keys) if name not in FORBIDDEN_KEYS}
    entry: dict[str, Any] = {"model_type": config.model_type, "keys": allowed}
    if config.base_config_key:
        entry["nested_as"] = config.base_config_key
    return {**entries, config.__name__: entry}


def _nested(config: Any, name: str) -> Any:  # noqa: ANN401 - classes
    """Return the class of a nested config. None if it is not a config class.

    If the declared class is AutoConfig, it is the class of the default value.
    """
    declared = config.sub_configs[name]
    found = declared if declared is not AutoConfig else type(getattr(config(), name))
    return found if issubclass(found, PreTrainedConfig) else None


def _types(hint: Any, default: object = None) -> list[str]:  # noqa: ANN401 - an annotation
    """Return the JSON types of an annotation and a default; `any` if the annotation has none.

    Some annotations contradict their defaults, such as `force_upcast: float = True`.
    """
    found = set(json_types(hint))
    if found <= {"null"}:
        return ["any"]
    if isinstance(default, bool | int | float | str):
        found |= set(json_types(type(default)))
    return sorted(found)


def render(entries: Mapping[str, Any]) -> str:
    """Return the list as JSON with one class per line."""
    parts = [f"{json.dumps(part)}: {_rendered(content)}" for part, content in entries.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rendered(content: Mapping[str, Any]) -> str:
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def main() -> None:
    """Write the list."""
    PATH.write_text(render(make_list()))
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
