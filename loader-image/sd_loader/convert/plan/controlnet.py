"""Plans the folder of a ControlNet that came as a single file.

ControlNets of SD 1 and SD 2 come in the original layout (alone, or with the whole checkpoint that
they were trained on) or in diffusers' layout. Those of SDXL come in diffusers' layout only, and
some lack transformer blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import refuse_patterns, wrong_type
from sd_loader.convert.plan.config_rules import check_heads
from sd_loader.convert.plan.precision import published_items
from sd_loader.convert.tables.architecture import (
    Architecture,
    Component,
    fill_in,
    load_architecture,
)
from sd_loader.convert.tables.bind import bind, left_out, left_over, not_of
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.families import CONTEXT_WIDTHS
from sd_loader.convert.write.files import FolderPlan, component_files, json_file
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor, TensorFile

_CLASS = "ControlNetModel"

_ORIGINAL = "control_model."
_TIME = "time_embed.0.weight"
_OUTPUT = "zero_convs.0.0.weight"
_DIFFUSERS = "controlnet_cond_embedding.conv_in.weight"
_SIZE_EMBEDDINGS = ("add_embedding.linear_1.weight", "label_emb.0.0.weight")
_PROJECTIONS = (
    "down_blocks.0.attentions.0.proj_in.weight",
    "input_blocks.1.1.proj_in.weight",
)

# Models that are named or used like ControlNets, but that diffusers' class does not read.
_OTHERS = {
    r"difference$": "a ControlNet stored as its difference to Stable Diffusion 1.5: use the version"
    " that was not reduced to it",
    r"lora_controlnet$": "a ControlNet-LoRA, which is not a complete ControlNet",
    r"lllite_": "a ControlNet-LLLite, which diffusers does not read",
    r"(control_model\.)?(control_add_embedding\.|task_embedding$)": "a union ControlNet"
    " (ControlNetUnionModel), which is not supported",
    r"(adapter\.)?body\.\d+\.": "a T2I adapter (T2IAdapter), which is not a ControlNet",
    r"control_(layers|all_x_embedder)\.": "a ControlNet of Z-Image, which is not supported",
    r"(.*\.)?motion_modules\.": "a sparse ControlNet of AnimateDiff, which is not supported",
}
_BLOCK = re.compile(
    r"(?P<level>down_blocks\.\d+|mid_block)\.attentions\.\d+\.(transformer_blocks\.(?P<block>\d{1,4})\.)?"
)
_MID = "mid_block"
_AFTER_MID_ATTENTION = "mid_block.resnets.1."


def plan_controlnet(file: TensorFile, conversion: Conversion) -> FolderPlan:
    """Plan the folder of a ControlNet. Reads no weights and writes nothing."""
    prefix = _prefix(file.tensors)
    family = _family(file.tensors, prefix)
    if conversion.base_model is not None and conversion.base_model is not family:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {conversion.base_model.value}, but the file is a ControlNet of"
            f" {family.value}",
        )
    known = load_family(family)
    component, template = existing(known, file.tensors)
    component = component.in_diffusers_layout() if prefix is None else component.under(prefix)
    dimensions: Dimensions = {}
    bound = bind(component, file.tensors, dimensions)
    left_over(component, file.tensors)
    items = published_items(bound, conversion.precision)
    config = fill_in(template, dimensions)
    check_heads(CONFIG_NAME, config)
    if conversion.upcast_attention is not None:
        config["upcast_attention"] = conversion.upcast_attention
    return FolderPlan(
        files=(*component_files("", component.stem, items), json_file(CONFIG_NAME, config)),
        base_model=family.value,
        pipeline_class=_CLASS,
        warnings=left_out(not_of(component, file.tensors), "do not belong to the ControlNet"),
    )


def load_family(family: BaseModelName) -> Architecture:
    """Key table and config template of a family's ControlNets."""
    return load_architecture(f"controlnet-{family.value}")


def existing(known: Architecture, names: Iterable[str]) -> tuple[Component, dict[str, Any]]:
    """Return key table and config template without the transformer blocks that a ControlNet lacks.

    names: the names of the ControlNet's tensors, in diffusers' layout. A level may lack all of its
    transformer blocks. A gap within a level is an error, which `bind` reports.
    """
    (component,) = known.components
    template = dict(known.templates[CONFIG_NAME])
    if "transformer_layers_per_block" not in template:
        return component, template
    blocks: dict[str, set[int]] = {}
    for name in names:
        if found := _BLOCK.match(name):
            numbers = blocks.setdefault(found["level"], set())
            if found["block"] is not None:
                numbers.add(int(found["block"]))
    rows = tuple(row for row in component.rows if _exists(row.target, blocks))
    depths, kinds = [], []
    for level, (depth, kind) in enumerate(
        zip(template["transformer_layers_per_block"], template["down_block_types"], strict=True)
    ):
        found_blocks = blocks.get(f"down_blocks.{level}")
        depths.append(depth if found_blocks is None else len(found_blocks))
        kinds.append("DownBlock2D" if found_blocks is None else kind)
    if _MID not in blocks:
        template["mid_block_type"] = "UNetMidBlock2D"
    elif f"down_blocks.{len(kinds) - 1}" not in blocks or len(blocks[_MID]) != depths[-1]:
        raise LoaderError(
            Reason.CONVERSION_FAILED,
            "the ControlNet's middle has other transformers than its last level",
        )
    if not blocks:
        # Without cross attention, the width of its input has no effect, and no tensor shows it.
        template["cross_attention_dim"] = CONTEXT_WIDTHS[BaseModelName.SDXL]
    template |= {"transformer_layers_per_block": depths, "down_block_types": kinds}
    return replace(component, rows=rows), template


def _exists(target: str, blocks: Mapping[str, set[int]]) -> bool:
    found = _BLOCK.match(target)
    if found is None:
        return _MID in blocks or not target.startswith(_AFTER_MID_ATTENTION)
    if found["level"] not in blocks:
        return False
    return found["block"] is None or int(found["block"]) < len(blocks[found["level"]])


def _prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """Prefix of the names in the original layout. None for diffusers' layout."""
    refuse_patterns(tensors, _OTHERS)
    if f"{_ORIGINAL}{_TIME}" in tensors:
        return _ORIGINAL
    if _DIFFUSERS in tensors:
        return None
    if _TIME in tensors and _OUTPUT in tensors:
        return ""
    raise wrong_type(tensors, ModelType.CONTROLNET, f"{_ORIGINAL}{_TIME} or {_DIFFUSERS}")


def _family(tensors: Mapping[str, Tensor], prefix: str | None) -> BaseModelName:
    start = prefix or ""
    if any(start + name in tensors for name in _SIZE_EMBEDDINGS):
        if prefix is not None:
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                "the file is an SDXL ControlNet in the original layout, which diffusers does not"
                " read: use its diffusers version",
            )
        return BaseModelName.SDXL
    for name in _PROJECTIONS:
        if start + name in tensors:
            is_matrix = len(tensors[start + name].shape) == 2
            return BaseModelName.SD2 if is_matrix else BaseModelName.SD1
    return BaseModelName.SD1
