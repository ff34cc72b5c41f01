"""Plans the folder of a file that holds the whole pipeline of SD 3 or FLUX.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.convert.conversion import (
    Conversion,
    refuse_contradiction,
    refuse_without_effect,
)
from sd_loader.convert.detect.checkpoint import remedy_of
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.detect.variants import variant_of
from sd_loader.convert.plan.config_rules import check_heads
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.precision import published_items, torch_dtype
from sd_loader.convert.plan.repo_configs import settings_file
from sd_loader.convert.plan.small_files import vocabulary_files
from sd_loader.convert.tables import encoders
from sd_loader.convert.tables.architecture import Component, fill_in, load_templates
from sd_loader.convert.tables.bind import bind, left_out, left_over
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.transformers import TRANSFORMER, load_transformer
from sd_loader.convert.tables.vae_names import current_names
from sd_loader.convert.write.files import (
    FolderPlan,
    Item,
    PlannedFile,
    SmallFile,
    component_files,
    json_file,
)
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype, Tensor, TensorFile

_VAE = "vae"
_VOCABULARIES = ("tokenizer.json", "spiece.model")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_BYTES = 32 << 20
"""Maximum size of T5's tokenizer.json or spiece.model. The usual tokenizer.json has 2.4 MB."""
_PROJECTION = "text_projection.weight"
_SAMPLE = 128
"""Maximum of SD 3's sample_size: the width of the latents of an image of 1024 pixels."""
_PATCH = 2
"""Width of SD 3's patches in latents: each position is a square of 2 x 2 latents."""
_SCHEDULER = "scheduler/scheduler_config.json"
_SCHNELL = {"shift": 1.0, "use_dynamic_shifting": False}
"""The settings of FLUX.1 schnell's scheduler that differ from those of FLUX.1 dev's."""


@dataclass(frozen=True)
class _Layout:
    """The components of a family's pipeline in one file."""

    clips: Mapping[str, Callable[[str], Component]]
    """For each CLIP encoder, by its folder's name: the function that makes it from this name."""

    t5: str
    """Name of T5's folder."""

    t5_is_optional: bool
    """True if the pipeline works without T5."""

    projected: str | None
    """The CLIP encoder that is published with an identity as its projection.

    Its class needs a projection, and the file has none. None if no encoder's class needs one.
    """

    tokenizer_repo: Callable[[Iterable[str]], str]
    """Returns the Hub repo with T5's tokenizer. Takes the names of the file's tensors."""


def _sd3_repo(names: Iterable[str]) -> str:
    names = set(names)
    if any(".joint_blocks.37." in f".{name}" for name in names):
        return "stabilityai/stable-diffusion-3.5-large"
    if any(".x_block.attn2." in name for name in names):
        return "stabilityai/stable-diffusion-3.5-medium"
    return "stabilityai/stable-diffusion-3-medium-diffusers"


def _flux_repo(names: Iterable[str]) -> str:
    is_dev = any("guidance_in." in name for name in names)
    return f"black-forest-labs/FLUX.1-{'dev' if is_dev else 'schnell'}"


_LAYOUTS = {
    "sd-3": _Layout(
        {"text_encoder": encoders.clip_l, "text_encoder_2": encoders.clip_g},
        "text_encoder_3",
        t5_is_optional=True,
        projected="text_encoder",
        tokenizer_repo=_sd3_repo,
    ),
    "flux": _Layout(
        {"text_encoder": encoders.clip_l},
        "text_encoder_2",
        t5_is_optional=False,
        projected=None,
        tokenizer_repo=_flux_repo,
    ),
}


def missing_of(found: TransformerFile, tensors: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """The components of its pipeline that a file lacks. None if this module cannot plan it."""
    layout = _LAYOUTS.get(found.family.table or "")
    if layout is None or found.is_in_diffusers_layout:
        return None
    wanted: dict[str, tuple[str, ...]] = {
        name: (make(name).prefix,) for name, make in layout.clips.items()
    }
    if not layout.t5_is_optional:
        wanted[layout.t5] = (encoders.T5,)
    wanted[_VAE] = encoders.VAE_PREFIXES
    return tuple(
        component
        for component, prefixes in wanted.items()
        if not any(name.startswith(prefixes) for name in tensors)
    )


def tokenizer_repo(found: TransformerFile, tensors: Mapping[str, Tensor]) -> str | None:
    """The Hub repo with T5's tokenizer. None if the file has no T5."""
    layout = _LAYOUTS[found.family.table or ""]
    return layout.tokenizer_repo(tensors) if _has_t5(tensors) else None


def plan_all_in_one(
    file: TensorFile,
    found: TransformerFile,
    missing: tuple[str, ...],
    conversion: Conversion,
    configs: Path | None,
    opened: OpenFiles,
) -> FolderPlan:
    """Plan the folder of a file. Reads no weights and writes nothing.

    missing: the components that the file lacks. If there are any, the file is refused. configs: the
    folder with the tokenizer of T5. If it is None, the plan lacks the tokenizer: such a plan is
    shown, but not carried out.
    """
    if missing:
        refuse_incomplete(found, file.tensors)
    family = found.family.table or ""
    refuse_contradiction(conversion.base_model, [family], f"the file is {found}")
    refuse_without_effect(str(found), conversion)
    layout = _LAYOUTS[family]
    tensors = _canonical(file.tensors)
    has_t5 = _has_t5(tensors)
    dimensions: Dimensions = {}
    files: list[PlannedFile] = []
    unused: list[str] = []
    dtypes: dict[str, set[Dtype]] = {}
    components = _components(layout, found, tensors)
    for component in components:
        items = published_items(bind(component, tensors, dimensions), conversion.precision)
        unused += left_over(component, tensors)
        if component.name == layout.projected:
            items.append(_identity(dimensions[component.name], items[0].dtype, opened))
        if component.name == layout.t5:
            items = [_kept(item) for item in items]
        dtypes[component.name] = {item.dtype for item in items if not _is_kept(item)}
        files += component_files(component.name, component.stem, items)
    _learn(dimensions, found, tensors, has_t5=has_t5)
    contents = _contents(family, layout, tensors, dimensions)
    for path, config in contents.items():
        folder, _, name = path.partition("/")
        if name == CONFIG_NAME and folder.startswith("text_encoder"):
            config |= torch_dtype(dtypes[folder])
        files.append(json_file(path, config))
        if name == "tokenizer_config.json":
            files += vocabulary_files(folder)
    if has_t5 and configs is not None:
        files += _tokenizer(configs, _tokenizer_folder(layout), layout.tokenizer_repo(tensors))
    known = tuple(component.prefix for component in components)
    unused += [name for name in tensors if not name.startswith(known)]
    class_name = contents[INDEX_NAME]["_class_name"]
    return FolderPlan(
        files=tuple(files),
        base_model=family,
        variant=variant_of(family, class_name, contents[f"{TRANSFORMER}/{CONFIG_NAME}"]),
        pipeline_class=class_name,
        warnings=_warnings(layout, unused, has_t5=has_t5),
    )


def refuse_incomplete(found: TransformerFile, tensors: Mapping[str, Tensor]) -> NoReturn:
    """Refuse a file that lacks components of its pipeline. The message names the remedy."""
    missing = missing_of(found, tensors)
    what = str(found)
    if missing and not found.is_alone:
        what = f"a file of {found.name}, without its {' and '.join(missing)}"
    raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the file is {what}: {remedy_of(found)}")


def _has_t5(names: Iterable[str]) -> bool:
    return any(name.startswith(encoders.T5) for name in names)


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the names that the key tables use."""
    named: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        name = old
        for prefix in (encoders.CLIP_L, encoders.CLIP_G):
            if old.startswith(prefix):
                name = prefix + with_prefix(old.removeprefix(prefix))
        if name in named:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"the file has two tensors {snippet(name)}: with and without text_model.",
            )
        named[name] = tensor
    return current_names(named, _vae_prefix(named))


def _vae_prefix(names: Iterable[str]) -> str:
    present = {
        prefix for name in names for prefix in encoders.VAE_PREFIXES if name.startswith(prefix)
    }
    return next((prefix for prefix in encoders.VAE_PREFIXES if prefix in present), "vae.")


def _components(
    layout: _Layout, found: TransformerFile, tensors: Mapping[str, Tensor]
) -> list[Component]:
    others = ("text_encoders.", *encoders.VAE_PREFIXES)
    own = [name for name in tensors if not name.startswith(others)]
    transformer = load_transformer(found.family.table or "").component(own, found.prefix)
    components = [transformer, *(make(name) for name, make in layout.clips.items())]
    if _has_t5(tensors):
        components.append(encoders.t5(layout.t5, tensors))
    return [*components, encoders.vae(_vae_prefix(tensors))]


def _identity(width: int, dtype: Dtype, opened: OpenFiles) -> Item:
    """An identity as the projection of CLIP-L, which was trained without a projection."""
    return Item(_PROJECTION, opened.identity(width, dtype), dtype)


def _is_kept(item: Item) -> bool:
    return encoders.KEPT_IN_FP32 in item.name.split(".")


def _kept(item: Item) -> Item:
    """Return the item, in fp32 if it would be narrowed to fp16 and T5 needs it in fp32.

    An item that the file already has in fp16 stays in fp16.
    """
    is_narrowed = item.dtype is Dtype.F16 and item.source.dtype in (Dtype.BF16, Dtype.F32)
    return replace(item, dtype=Dtype.F32) if is_narrowed and _is_kept(item) else item


def _learn(
    dimensions: Dimensions,
    found: TransformerFile,
    tensors: Mapping[str, Tensor],
    *,
    has_t5: bool,
) -> None:
    """Add numbers of layers and derived dimensions. Refuse components of different models."""
    table = load_transformer(found.family.table or "")
    dimensions.update(table.layers(tensors, found.prefix))
    if "positions" in dimensions:
        side = math.isqrt(dimensions["positions"])
        dimensions["positions_side"] = side
        dimensions["sample"] = min(_SAMPLE, _PATCH * side)
    pooled = dimensions["text_encoder"] + dimensions.get("text_encoder_2_projection", 0)
    _agree("pooled", dimensions["pooled"], pooled, "the CLIP encoders give")
    if has_t5:
        dimensions["t5_layers"] = encoders.t5_layers(tensors)
        dimensions["t5_head"] = dimensions["t5_inner"] // dimensions["t5_heads"]
        _agree("context", dimensions["context"], dimensions["t5"], "T5 gives")


def _agree(what: str, wanted: int, given: int, giver: str) -> None:
    if wanted != given:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            f"the transformer reads a {what} embedding of {wanted} numbers, and {giver} {given}:"
            " the file mixes components of different models",
        )


def _contents(
    family: str, layout: _Layout, tensors: Mapping[str, Tensor], dimensions: Dimensions
) -> dict[str, Any]:
    """The contents of the JSON files, without those of T5 if the file does not have it."""
    templates = dict(load_templates(family))
    if not _has_t5(tensors):
        del templates[f"{layout.t5}/{CONFIG_NAME}"]
        absent = (layout.t5, _tokenizer_folder(layout))
        templates[INDEX_NAME] = templates[INDEX_NAME] | {name: [None, None] for name in absent}
    contents = {path: fill_in(template, dimensions) for path, template in templates.items()}
    _refuse_other_sizes(family, contents[f"{TRANSFORMER}/{CONFIG_NAME}"], dimensions)
    _complete(contents, family, tensors)
    for path, config in contents.items():
        check_heads(path, config)
    return contents


def _refuse_other_sizes(family: str, config: Mapping[str, Any], dimensions: Dimensions) -> None:
    """Refuse a transformer whose sizes contradict the family's config."""
    head, patch = config["attention_head_dim"], config["patch_size"]
    if dimensions.get("head", head) != head:
        problem = (
            f"the attention heads of the transformer are {dimensions['head']} wide; those of"
            f" {family} are {head}"
        )
    elif dimensions["inner"] % head:
        problem = (
            f"the transformer is {dimensions['inner']} wide, which is not a multiple of {head}, the"
            f" width of an attention head of {family}"
        )
    elif dimensions.get("patch", patch) != patch:
        problem = (
            f"the transformer reads patches of {dimensions['patch']} latents; {family} reads"
            f" patches of {patch}"
        )
    else:
        return
    raise LoaderError(
        Reason.CONVERSION_FAILED,
        f"{problem}: name a repo with the model's configs in spec.components.from",
    )


def _tokenizer_folder(layout: _Layout) -> str:
    """Name of the folder of T5's tokenizer."""
    return layout.t5.replace("text_encoder", "tokenizer")


def _complete(configs: dict[str, Any], family: str, tensors: Mapping[str, Tensor]) -> None:
    """Set the values in the configs that the presence of tensors decides."""
    config = configs[f"{TRANSFORMER}/{CONFIG_NAME}"]
    if family == "flux":
        config["guidance_embeds"] = any("guidance_in." in name for name in tensors)
        if not config["guidance_embeds"]:
            configs[_SCHEDULER] |= _SCHNELL
        return
    if any(".x_block.attn.ln_q." in name for name in tensors):
        config["qk_norm"] = "rms_norm"
    dual = {
        int(name.partition("joint_blocks.")[2].partition(".")[0])
        for name in tensors
        if ".x_block.attn2.qkv.weight" in name
    }
    if dual:
        config["dual_attention_layers"] = sorted(dual)


def _tokenizer(configs: Path, folder: str, repo: str) -> list[SmallFile]:
    """The files of T5's tokenizer: its vocabulary byte for byte, and its known settings."""
    vocabularies = []
    for name in _VOCABULARIES:
        path = configs / folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > _TOKENIZER_BYTES:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT, f"{repo}: {folder}/{name} is larger than 32 MiB"
            )
        vocabularies.append(SmallFile(f"{folder}/{name}", path.read_bytes()))
    if not vocabularies:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{repo} has neither tokenizer.json nor spiece.model in {folder}",
        )
    settings = [
        settings_file(configs / folder / name, f"{folder}/{name}")
        for name in _SETTINGS
        if (configs / folder / name).is_file()
    ]
    return vocabularies + settings


def _warnings(layout: _Layout, unused: list[str], *, has_t5: bool) -> tuple[str, ...]:
    warnings = []
    if not has_t5:
        warnings.append(
            f"the file has no T5 ({layout.t5}): the pipeline works without it, and follows long"
            " prompts less closely"
        )
    return (*warnings, *left_out(unused))
