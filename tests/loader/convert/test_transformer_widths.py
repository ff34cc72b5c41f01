"""The config of a repo and the transformer of a file must describe the same model."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from sd_api.taxonomy import TRANSFORMERS
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.transformer_widths import differences, unknown_value
from sd_loader.convert.tables.transformers import TABLES, load_transformer
from sd_loader.tensors import Dtype, Tensor
from tests.support.models.transformershapes import original_shapes

FAMILIES = sorted(path.stem for path in TABLES.glob("*.json"))
USUAL = ("flux", "sd-3", "wan")
FLUX = {
    "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 6, "attention_head_dim": 8,
    "joint_attention_dim": 24, "pooled_projection_dim": 12, "in_channels": 16, "out_channels": 64,
    "patch_size": 1, "guidance_embeds": True,
}  # fmt: skip


def found(family: str, config: dict[str, Any], shapes: dict[str, Any] | None = None) -> list[Any]:
    """Return the differences between a config and a file of these shapes."""
    given = original_shapes(family) if shapes is None else shapes
    return compared(family, config, given, load_transformer(family))


def compared(family: str, config: dict[str, Any], shapes: dict[str, Any], table: Any) -> list[Any]:
    """Return the differences, with a table that fits the names of the shapes."""
    file = {name: Tensor(-1, Dtype.BF16, shape, 0) for name, shape in shapes.items()}
    component = table.component(file)
    dimensions: dict[str, int] = {}
    published = bind(component, file, dimensions)
    assert left_over(component, file) == []
    dimensions |= load_transformer(family).in_diffusers_layout().layers(published)
    return [
        (difference.key, difference.config, difference.file)
        for difference in differences(family, config, dimensions, published)
    ]


def test_each_table_has_a_name_in_the_contract() -> None:
    """A default repo can be set for each family whose transformer can come alone."""
    assert sorted(family.value for family in TRANSFORMERS) == FAMILIES


def test_config_of_the_same_model_agrees() -> None:
    """If the config does not state the output channels, they equal the input channels."""
    assert found("flux", FLUX) == []
    shapes = original_shapes("flux")
    shapes |= {"final_layer.linear.weight": (16, 48), "final_layer.linear.bias": (16,)}
    assert found("flux", FLUX | {"out_channels": None}, shapes) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"num_layers": 19}, ("num_layers", "19", "2")),
        ({"joint_attention_dim": None}, ("joint_attention_dim", "missing", "24")),
        ({"num_attention_heads": 3}, ("num_attention_heads*attention_head_dim", "24", "48")),
        ({"guidance_embeds": False}, ("guidance_embeds", "not set", "set")),
    ],
)
def test_config_of_another_model_is_named_by_its_keys(
    change: dict[str, Any], difference: tuple[str, str, str]
) -> None:
    """Each key that does not fit is stated with both values."""
    assert found("flux", FLUX | change) == [difference]


KLEIN = {"num_attention_heads": 3, "attention_head_dim": 8, "guidance_embeds": False}


@pytest.mark.parametrize(
    ("family", "config", "sizes"),
    [
        ("z-image", {"dim": 16}, {"time": 16}),
        ("z-image", {"dim": 3840}, {"time": 256}),
        ("lumina2", {"hidden_size": 64}, {"time": 64}),
        ("lumina2", {"hidden_size": 2304}, {"time": 1024}),
        ("flux2", KLEIN | {"mlp_ratio": 2.7}, {"mlp": 64}),
        ("wan", {"out_channels": None, "in_channels": 4, "patch_size": [1, 2, 2]},
         {"outputs": 16}),
        ("sd-3", {"patch_size": 4}, {"patch": 4}),
        ("hidream", {"num_routed_experts": 4}, {"experts": 4}),
        ("krea-2", {"text_hidden_dim": 32, "text_num_attention_heads": 4}, {"text_head": 8}),
    ],
)  # fmt: skip
def test_sizes_follow_from_the_config_as_diffusers_computes_them(
    family: str, config: dict[str, Any], sizes: dict[str, int]
) -> None:
    """The sizes that are computed from a config equal those of diffusers, for any widths."""
    assert [*differences(family, config, sizes, ())] == []
    for name, size in sizes.items():
        assert len([*differences(family, config, {name: size + 1}, ())]) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**99, True, "2.7", None, [3]])
def test_a_factor_that_gives_no_size_counts_as_missing(number: object) -> None:
    """A factor with which no size can be computed counts as absent from the config."""
    [difference] = differences("flux2", KLEIN | {"mlp_ratio": number}, {"mlp": 48}, ())
    assert (difference.config, difference.file) == ("missing", "48")


@pytest.mark.parametrize("number", [1e-305, 0.5, 0, -2])
def test_size_is_not_divided_by_less_than_one(number: float) -> None:
    """A size is not computed by a division by less than one: the quotient could be infinite."""
    [difference] = differences("z-image", {"dim": 3840, "n_heads": number}, {"head": 128}, ())
    assert (difference.config, difference.file) == ("missing", "128")


@pytest.mark.parametrize(
    ("family", "config", "key"),
    [
        ("z-image", {"all_patch_size": [2], "all_f_patch_size": [1], "qk_norm": True}, None),
        ("z-image", {"all_patch_size": [2, 4]}, "all_patch_size"),
        ("z-image", {"siglip_feat_dim": 1152}, "siglip_feat_dim"),
        ("sd-3", {"qk_norm": "layer_norm"}, "qk_norm"),
        ("hidream", {"num_routed_experts": 8}, "num_routed_experts"),
        ("flux", {}, None),
    ],
)
def test_values_that_add_tensors_are_known_or_named(
    family: str, config: dict[str, Any], key: str | None
) -> None:
    """If a value would add tensors that no key table has, its key is returned."""
    assert unknown_value(family, config) == key


def test_config_must_list_the_layers_that_have_a_second_attention_in_the_file() -> None:
    """dual_attention_layers must list the layers with `attn2` tensors, as in SD 3.5 medium.

    qk_norm must fit the file, too.
    """
    config = {
        "num_layers": 2, "num_attention_heads": 6, "attention_head_dim": 8, "qk_norm": "rms_norm",
        "joint_attention_dim": 24, "pooled_projection_dim": 12, "in_channels": 16,
        "out_channels": 16, "patch_size": 2, "pos_embed_max_size": 4,
        "dual_attention_layers": [0, 1],
    }  # fmt: skip
    assert found("sd-3", config) == []
    other = config | {"dual_attention_layers": [0], "qk_norm": None}
    assert found("sd-3", other) == [
        ("qk_norm", "not set", "set"),
        ("dual_attention_layers", "[0]", "[0, 1]"),
    ]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in USUAL else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_file_in_diffusers_layout_has_the_same_sizes(family: str) -> None:
    """The two layouts of a file give the same sizes and the same published names."""
    file = {
        name: Tensor(-1, Dtype.BF16, shape, 0) for name, shape in original_shapes(family).items()
    }
    table = load_transformer(family)
    sizes: dict[str, int] = {}
    published = bind(table.component(file), file, sizes)
    shapes = {name: Tensor(-1, Dtype.BF16, it.shape, 0) for name, it in published.items()}
    own = table.in_diffusers_layout().component(shapes)
    again: dict[str, int] = {}
    assert bind(own, shapes, again).keys() == published.keys()
    assert left_over(own, shapes) == []
    assert again == sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_configs_agree_with_the_models_that_diffusers_makes_of_them(family: str) -> None:
    """Every compared size and number of layers is read from the right keys of the config."""
    import torch

    made = importlib.import_module("tools.transformer_families").FAMILIES[family]
    for config in made.configs:
        with torch.device("meta"):
            model = made.model(**config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        whole = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in model.config.items()
        }
        table = load_transformer(family).in_diffusers_layout()
        assert compared(family, whole, shapes, table) == []
