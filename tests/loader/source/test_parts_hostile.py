"""Any tensor names, shapes and configs of ControlNets and VAEs give a plan or a LoaderError."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devkit.controlnet_layouts import TINY, config, controlnet_shapes
from devkit.ldm_layouts import TINY_SD15, vae_shapes
from sd_api.default_parts import format_default_parts, parse_default_parts
from sd_loader.convert.plan.controlnet_check import checked_controlnet
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.convert.tables.dimensions import evaluate
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion

Shapes = dict[str, tuple[int, ...]]


def own_layout(family: str) -> Shapes:
    """The shapes of a family's ControlNet in diffusers' layout, from its key table."""
    net = TINY[family]
    dimensions = {f"unet_{level}": width for level, width in enumerate(net.levels[:3])}
    dimensions |= {f"hint_{level}": width for level, width in enumerate(net.hints)}
    dimensions |= {"inputs": 4, "hint_inputs": 3, "context": net.context, "added": net.added}
    (component,) = load_architecture(f"controlnet-{family}").components
    return {
        row.target: tuple(evaluate(size, dimensions) for size in row.shape.split())
        for row in component.rows
    }


WHOLE: dict[str, tuple[str, Shapes]] = {
    "original ControlNet": ("controlnet", controlnet_shapes(TINY["sd-1"])),
    "ControlNet": ("controlnet", own_layout("sd-2")),
    "SDXL ControlNet": ("controlnet", own_layout("sdxl")),
    "VAE": ("vae", vae_shapes(TINY_SD15)),
}
NAMES = st.one_of(
    st.text(max_size=20),
    st.builds(
        "down_blocks.{}.attentions.{}.transformer_blocks.{}.norm1.weight".format,
        *(st.one_of(st.integers(0, 12), st.integers(10**20, 10**21), st.just("٣")),) * 3,
    ),
    st.sampled_from(
        (
            "add_embedding.linear_1.weight",
            "control_model.label_emb.0.0.weight",
            "decoder.conv_in.weight",
            "encoder.conv_in.weight",
            "first_stage_model.encoder.conv_in.weight",
            "mid_block.attentions.0.transformer_blocks.11.norm1.weight",
            "time_embed.0.weight",
            "zero_convs.0.0.weight",
        )
    ),
)
SHAPES = st.lists(st.integers(0, 64), max_size=5).map(tuple)


def planned(model_type: str, shapes: Shapes) -> Any:
    """Plan a file that holds tensors of these shapes."""
    tensors = {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}
    file = TensorFile(Path("file"), -1, "safetensors", tensors)
    with ExitStack() as stack:
        return plan_file(file, conversion(model_type=model_type), OpenFiles(stack))


@pytest.mark.parametrize(("model_type", "shapes"), WHOLE.values(), ids=WHOLE)
def test_complete_model_is_planned(model_type: str, shapes: Shapes) -> None:
    """The plan needs only the names and shapes."""
    assert len(planned(model_type, shapes).files) == 2


@given(data=st.data())
@pytest.mark.parametrize(
    ("model_type", "shapes"),
    [
        pytest.param(*row, id=name, marks=() if name == "VAE" else pytest.mark.slow)
        for name, row in WHOLE.items()
    ],
)
def test_any_file_is_planned_or_refused(model_type: str, shapes: Shapes, data: Any) -> None:
    """Missing, reshaped and added tensors raise nothing but a LoaderError."""
    changed = dict(shapes)
    for name in data.draw(st.lists(st.sampled_from(sorted(shapes)), max_size=3)):
        changed.pop(name, None)
    changed |= data.draw(st.dictionaries(st.sampled_from(sorted(shapes)), SHAPES, max_size=3))
    changed |= data.draw(st.dictionaries(NAMES, SHAPES, max_size=3))
    with suppress(LoaderError):
        planned(model_type, changed)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2000) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@given(data=st.data())
@pytest.mark.parametrize("family", ["sd-1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_any_config_is_completed_or_refused(family: str, data: Any) -> None:
    """Missing fields and fields of a wrong type or value raise nothing but a LoaderError."""
    usual = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config(TINY[family]).items()
    }
    more = ("mid_block_type", "num_attention_heads", "transformer_layers_per_block")
    keys = st.sampled_from([*sorted(usual), *more])
    changed = usual | data.draw(st.dictionaries(keys, VALUES, max_size=3))
    for key in data.draw(st.lists(keys, max_size=2)):
        changed.pop(key, None)
    tensors = {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in own_layout(family).items()}
    with suppress(LoaderError):
        checked_controlnet(changed, tensors)


@given(text=st.text(alphabet="sdxl12-=,/ org", max_size=40))
def test_default_parts_setting_survives_a_round_trip(text: str) -> None:
    """Formatting the parsed setting gives a text that parses to the same value."""
    try:
        parts = parse_default_parts(text)
    except ValueError:
        return
    assert parse_default_parts(format_default_parts(parts)) == parts
