"""The key tables of transformers match the installed diffusers and give the same values."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.transformers import TABLES, load_transformer
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor
from tests.support.models.transformershapes import SIZES, original_shapes

FAMILIES = sorted(path.stem for path in TABLES.glob("*.json"))
PREFIX = "model.diffusion_model."


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return tensors without bytes."""
    return {name: Tensor(-1, Dtype.BF16, shape, 0) for name, shape in shapes.items()}


def bound(family: str, shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Any]:
    """Bind a file of these shapes to the family's table; return the published shapes."""
    file = tensors(shapes)
    component = load_transformer(family).component(file, prefix)
    found = bind(component, file, {})
    assert left_over(component, file) == []
    return {name: source.shape for name, source in found.items()}


@pytest.mark.filterwarnings("ignore")  # diffusers uses names of its own that it has deprecated
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_table_is_up_to_date(family: str) -> None:
    """The tool that makes the tables gives the same file with the installed diffusers."""
    made = importlib.import_module("tools.make_transformer_tables").made
    assert made(family) == (TABLES / f"{family}.json").read_text()


def test_each_family_has_a_table() -> None:
    """The tool that makes the tables knows exactly the families that have one."""
    text = (Path(__file__).parents[3] / "tools" / "transformer_families.py").read_text()
    assert all(f'    "{family}": Family(' in text for family in FAMILIES)
    assert text.count(": Family(\n") == len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [(family, prefix) for family in FAMILIES for prefix in ("", PREFIX)],
)
def test_every_tensor_of_a_file_gets_its_place(family: str, prefix: str) -> None:
    """No tensor is left over, with the prefix that ComfyUI writes and without."""
    shapes = original_shapes(family, prefix)
    assert bound(family, shapes, prefix)


def test_rows_and_halves_of_one_tensor_become_several() -> None:
    """Query, key and value are rows of one tensor; scale and shift are swapped."""
    found = bound("flux", original_shapes("flux"))
    inner = SIZES["inner"]
    assert found["single_transformer_blocks.1.attn.to_v.weight"] == (inner, inner)
    assert found["single_transformer_blocks.1.proj_mlp.bias"] == (4 * inner,)
    file = tensors({"final_layer.adaLN_modulation.1.bias": (8,)})
    row = next(
        row
        for row in load_transformer("flux").component(file).rows
        if row.target == "norm_out.linear.bias"
    )
    assert row.op == "swap"


def test_last_layer_of_sd3_has_fewer_tensors_for_the_text() -> None:
    """The last layer has no output for the text, and its modulation has two parts, not six."""
    found = bound("sd-3", original_shapes("sd-3", layers=3))
    inner = SIZES["inner"]
    heights = [
        found[f"transformer_blocks.{layer}.norm1_context.linear.bias"] for layer in (0, 1, 2)
    ]
    assert heights == [(6 * inner,), (6 * inner,), (2 * inner,)]
    assert "transformer_blocks.1.attn.to_add_out.weight" in found
    assert "transformer_blocks.2.attn.to_add_out.weight" not in found


def without(shapes: dict[str, tuple[int, ...]], part: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes whose names do not contain this part."""
    return {name: shape for name, shape in shapes.items() if part not in name}


OPTIONAL = [
    pytest.param("flux", "guidance_in.", id="FLUX.1 schnell has no guidance"),
    pytest.param("flux2", "guidance_in.", id="FLUX.2 Klein has no guidance"),
    pytest.param("wan", "img", id="Wan from text has no image"),
    pytest.param("sd-3", "attn.ln_", id="SD 3 medium has no norms of query and key"),
    pytest.param("sana", "cfg_embedder.", id="only Sana Sprint has guidance"),
]


@pytest.mark.parametrize(("family", "part"), OPTIONAL)
def test_variants_differ_in_groups_of_tensors(family: str, part: str) -> None:
    """A group that a variant does not have may be absent, but only as a whole."""
    shapes = without(original_shapes(family), "emb_pos")
    assert len(bound(family, without(shapes, part))) < len(bound(family, shapes))
    group = [name for name in shapes if part in name]
    for lacking in (group[0], group[-1]):
        with pytest.raises(LoaderError, match="a tensor is missing") as caught:
            bound(family, {name: shapes[name] for name in shapes if name != lacking})
        assert caught.value.reason is Reason.CONVERSION_FAILED


def test_wan_for_two_images_has_their_positions() -> None:
    """The model for a first and a last frame has one tensor more than that for an image."""
    shapes = original_shapes("wan")
    added = bound("wan", shapes).keys() - bound("wan", without(shapes, "emb_pos")).keys()
    assert added == {"condition_embedder.image_embedder.pos_embed"}


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_queries_of_lumina_are_as_wide_as_the_model(heads: int) -> None:
    """The keys and values share the other rows, however many heads they have."""
    sizes = SIZES | {"inner": 32, "keys": heads * 8}
    found = bound("lumina2", original_shapes("lumina2", sizes=sizes))
    widths = [found[f"layers.0.attn.to_{part}.weight"][0] for part in "qkv"]
    assert widths == [32, heads * 8, heads * 8]


def test_dual_attention_of_sd3_widens_the_modulation_of_its_layer() -> None:
    """Layers of SD 3.5 medium with a second attention have nine parts of modulation, not six."""
    shapes = without(original_shapes("sd-3", layers=3), "joint_blocks.1.x_block.attn2.")
    inner = SIZES["inner"]
    for part in ("weight", "bias"):
        name = f"joint_blocks.1.x_block.adaLN_modulation.1.{part}"
        shapes[name] = (6 * inner, *shapes[name][1:])
    found = bound("sd-3", shapes)
    heights = [found[f"transformer_blocks.{layer}.norm1.linear.bias"][0] for layer in (0, 1, 2)]
    assert heights == [9 * inner, 6 * inner, 9 * inner]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"joint_blocks.0.x_block.attn.qkv.weight": (143, 48)},
            "has the shape [143, 48]",
            id="rows that are not three parts",
        ),
        pytest.param(
            {"final_layer.adaLN_modulation.1.bias": (97,)},
            "has the shape [97]",
            id="rows that are not two halves",
        ),
        pytest.param(
            {"joint_blocks.7.x_block.attn.qkv.weight": (144, 48)},
            "the transformer has a tensor that its architecture does not have: joint_blocks.7.",
            id="a layer after a gap",
        ),
        pytest.param(
            {"joint_blocks.999999999999999999999.x": (1,)},
            "does not have: joint_blocks.9999",
            id="a layer of a very large number",
        ),
        pytest.param({"y_embedder.mlp.0.weight": (48,)}, "[48]; as ", id="too few dimensions"),
        pytest.param(
            {"x_embedder.proj.weight": (48, 16, 2, 3)}, "[48, 16, 2, 3]; as ", id="uneven patches"
        ),
    ],
)
def test_contradicting_tensors_are_refused(
    change: dict[str, tuple[int, ...]], message: str
) -> None:
    """The message names the tensor and its shape."""
    with pytest.raises(LoaderError) as caught:
        bound("sd-3", original_shapes("sd-3") | change)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert message in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_values_equal_those_of_diffusers_converter(family: str, tmp_path: Path) -> None:
    """Every published tensor has the bits that diffusers' converter gives it."""
    import torch
    from safetensors.torch import load_file, save_file

    from sd_loader.convert.tables.architecture import take
    from sd_loader.convert.write.files import Item, weights_file
    from sd_loader.convert.write.writer import write_folder
    from sd_loader.formats import open_tensor_file
    from tools.transformer_families import FAMILIES as MADE

    # Some converters work only with the published number of rows. To save memory, matrices have
    # two columns, except those of Lumina 2, whose queries have as many rows as columns.
    shapes = {
        name: shape if len(shape) < 2 or family == "lumina2" else (shape[0], 2)
        for name, shape in original_shapes(family, sizes=MADE[family].sizes).items()
    }
    shapes |= dict.fromkeys(load_transformer(family).unused, (1,))
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, path)
    with open_tensor_file(path) as file:
        items = []
        for row in load_transformer(family).component(file.tensors).rows:
            source = take(file.tensors[row.source], row.op)
            assert source is not None
            items.append(Item(row.target, source, source.dtype))
        (tmp_path / "out").mkdir()
        write_folder(tmp_path / "out", [weights_file("model.safetensors", items)], lambda _: None)
    mine = load_file(tmp_path / "out" / "model.safetensors")
    yours = {
        name: tensor
        for name, tensor in MADE[family].converter(load_file(path)).items()
        if tensor is not None
    }
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
