"""A LoRA for a model with a transformer is checked against the table of the model's family.

Its tensors keep their names, unless diffusers needs other names.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.choices import LoraFormat
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, LoraOptions
from sd_loader.convert.plan.lora_styles import STYLES
from sd_loader.convert.write.files import FolderPlan
from sd_loader.errors import LoaderError
from tests.support.models.transformerloras import (
    EACH_STYLE,
    Shapes,
    control_shapes,
    halves,
    has_alphas,
    lora_shapes,
    plan,
    style_id,
)

KOHYA, COMFY, ONE_TRAINER, XLABS, _, PEFT, BARE, BFL = STYLES["flux"]
PROJECTION = ("double_blocks.0.img_attn.proj", (3072, 3072))


def names(planned: FolderPlan) -> set[str]:
    """The names of the published tensors."""
    return {item.name for item in planned.weights[0].items}


@pytest.mark.parametrize("case", EACH_STYLE, ids=map(style_id, EACH_STYLE))
def test_each_style_that_diffusers_reads_is_published(case):
    """Names are kept, unless diffusers needs another prefix to read them."""
    family, number = case
    style = STYLES[family][number]
    shapes = lora_shapes(family, style)
    planned = plan(shapes)
    assert planned.base_model == family or family in planned.warnings[0].split()
    wanted = {style.published(name) for name in shapes}
    assert names(planned) == wanted
    assert (wanted == shapes.keys()) is (style.published_prefix is None)
    assert planned.lora_rank == 2


def one(style=KOHYA, layer=PROJECTION[0], shape=PROJECTION[1], **options) -> Shapes:
    """A LoRA of one layer."""
    return halves(style, layer, shape, **{"alphas": has_alphas(style), **options})


FLUX_AND_CHROMA = one()
MODULATION = one(layer="double_blocks.0.img_mod.lin", shape=(18432, 3072))


@pytest.mark.parametrize(
    ("shapes", "metadata", "found"),
    [
        (MODULATION, {}, "flux"),
        (FLUX_AND_CHROMA, {}, None),
        (FLUX_AND_CHROMA, {"modelspec.architecture": "Flux-1-dev/lora"}, "flux"),
        (FLUX_AND_CHROMA, {"ss_base_model_version": "chroma"}, "chroma"),
        (FLUX_AND_CHROMA, {"ss_base_model_version": "sdxl_base_v1-0"}, None),
        (MODULATION, {"ss_base_model_version": "chroma"}, "flux"),
        (one(PEFT, "transformer_blocks.59.attn.to_q", alphas=False), {}, "qwen-image"),
        (one(PEFT, "transformer_blocks.0.attn.to_q", alphas=False), {}, None),
        (one(PEFT, "transformer_blocks.0.attn.to_q", (1536, 1536), alphas=False), {}, "sd-3"),
        (one(layer="double_blocks.0.img_mlp.0", shape=(18432, 3072)), {}, "flux2"),
    ],
    ids=[
        *("only FLUX.1 has it", "FLUX.1 or Chroma", "modelspec", "kohya's metadata"),
        *("metadata of another model", "layers before metadata", "only Qwen-Image has so many"),
        *("FLUX.1 or Qwen-Image", "width", "width of the second matrix"),
    ],
)
def test_the_family_is_detected_from_layers_widths_and_metadata(shapes, metadata, found):
    """A LoRA that fits several models is published, because it opens with each of them."""
    planned = plan(shapes, metadata)
    assert planned.base_model == found
    assert any("set spec.baseModel" in warning for warning in planned.warnings) is (found is None)


def test_a_width_of_no_published_model_needs_the_family():
    """A LoRA as wide as no published model is refused, unless spec.baseModel names its family."""
    shapes = one(PEFT, "transformer_blocks.70.attn.to_q", (64, 64), alphas=False)
    with pytest.raises(LoaderError, match=r"wide: set spec\.baseModel if the LoRA is for a model"):
        plan(shapes)
    planned = plan(shapes, base_model=BaseModelName.QWEN_IMAGE)
    assert planned.base_model == "qwen-image"
    assert planned.warnings == ("the layers are 64 wide; no published model of qwen-image is",)


def test_a_control_lora_of_bfl_is_published_whole():
    """All tensors are published, also the norms of queries and keys that the LoRA replaces."""
    shapes = control_shapes()
    planned = plan(shapes)
    assert (planned.base_model, planned.lora_rank) == ("flux", 2)
    assert names(planned) == shapes.keys()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("single_blocks.37.linear2.", "lacks single_blocks.37.linear2"),
        ("vector_in.out_layer.", "lacks vector_in.out_layer"),
        ("guidance_in.out_layer.", "lacks guidance_in.out_layer"),
        ("double_blocks.0.txt_attn.norm.key_norm.scale", "key_norm"),
    ],
    ids=["a block", "a layer", "half of the guidance", "a norm"],
)
def test_a_control_lora_that_is_not_whole_is_refused(removed, message):
    """Diffusers cannot read a control LoRA from which a layer or a norm is missing."""
    shapes = {name: it for name, it in control_shapes().items() if not name.startswith(removed)}
    with pytest.raises(LoaderError, match=f"the file .*{message}.*in BFL's style") as caught:
        plan(shapes)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_control_lora_is_not_an_adapter_of_peft():
    """PEFT has no place for norms. A norm of another shape is refused as well."""
    with pytest.raises(LoaderError, match="also replaces norms of queries and keys") as caught:
        plan(control_shapes(), lora=LoraOptions(format=LoraFormat.PEFT))
    assert caught.value.reason is Reason.INVALID_SPEC
    name = "double_blocks.0.img_attn.norm.key_norm.scale"
    with pytest.raises(LoaderError, match=r"key_norm.scale \[128, 1\] is not a norm of flux"):
        plan(control_shapes() | {name: (128, 1)})


@pytest.mark.parametrize(
    "metadata",
    [{"ss_base_model_version": "hunyuan_video"}, {"modelspec.architecture": "hunyuan-video/lora"}],
)
def test_a_lora_of_hunyuan_video_is_not_taken_for_one_of_flux(metadata):
    """The LoRA is refused as one of HunyuanVideo; with spec.baseModel flux it is one of FLUX.1.

    Both models are equally wide, and musubi gives their attention layers the same names.
    """
    shapes = one(layer="double_blocks.0.img_attn.qkv", shape=(9216, 3072))
    message = r"^the file is a LoRA of HunyuanVideo, as its metadata states; "
    with pytest.raises(LoaderError, match=message):
        plan(shapes, metadata)
    assert plan(shapes, metadata, base_model=BaseModelName.FLUX).base_model == "flux"


def without(shapes: Shapes, ending: str) -> Shapes:
    """The tensors whose names do not have this ending."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(ending)}


WAN, LUMINA = STYLES["wan"][0], STYLES["lumina2"][0]
UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED
REFUSED = {
    "width": (one(shape=(3000, 3000)), CONTRADICTS, "they are 3000 wide"),
    "not square": (one(shape=(3072, 1536)), CONTRADICTS, "change a layer of [3072, 1536]"),
    "fused rows": (
        one(layer="double_blocks.0.img_attn.qkv", shape=(3072 * 2, 3072)),
        CONTRADICTS,
        "change a layer of [6144, 3072]",
    ),
    "feed-forward": (
        one(STYLES["flux2"][1], "double_blocks.0.img_mlp.0", (20000, 3072)),
        CONTRADICTS,
        "change a layer of [20000, 3072]",
    ),
    "block": (one(layer="double_blocks.19.img_attn.proj"), CONTRADICTS, "has 19 double_blocks"),
    "two widths": (
        one() | one(layer="double_blocks.1.img_attn.proj", shape=(6144, 6144)),
        CONTRADICTS,
        "change a layer of",
    ),
    "half a layer": (without(one(), "up.weight"), CONTRADICTS, "lacks its lora_B.weight"),
    "an alpha alone": ({"lora_unet_double_blocks_0_img_mlp_0.alpha": ()}, CONTRADICTS, "lacks its"),
    "ranks": (
        {**one(), "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": (3072, 3)},
        CONTRADICTS,
        "do not form a matrix of low rank",
    ),
    "no rank": (one(rank=0), CONTRADICTS, "do not form a matrix of low rank"),
    "two families": (
        one() | one(layer="joint_blocks.0.x_block.mlp.fc1", shape=(6144, 1536)),
        UNSUPPORTED,
        "joint_blocks_0_x_block_mlp_fc1",
    ),
    "two styles": (
        one() | one(PEFT, "transformer_blocks.0.attn.to_q"),
        UNSUPPORTED,
        "only the layers of its transformer are supported",
    ),
    "a UNet's layer": (
        one() | one(layer="mid_block.attentions.0.proj_in", shape=(3072, 3072)),
        UNSUPPORTED,
        "mid_block_attentions_0_proj_in",
    ),
    "a layer that diffusers leaves out": (
        one() | one(layer="vector_in.in_layer", shape=(3072, 768)),
        UNSUPPORTED,
        "diffusers does not read lora_unet_vector_in_in_layer",
    ),
    "OneTrainer without alphas": (
        one(ONE_TRAINER, "transformer_blocks.0.attn.to_q", alphas=False),
        UNSUPPORTED,
        "needs an alpha for each layer in OneTrainer's style",
    ),
    "alphas in PEFT's style": (
        {"transformer.transformer_blocks.0.img_mod.1.alpha": ()}
        | one(PEFT, "transformer_blocks.0.img_mod.1", (18432, 3072), alphas=False),
        UNSUPPORTED,
        "does not read alphas in PEFT's style",
    ),
    "kohya's names of SD 3": (
        one(layer="joint_blocks.0.x_block.mlp.fc1", shape=(6144, 1536)),
        UNSUPPORTED,
        "the file is a LoRA of Stable Diffusion 3",
    ),
    "musubi without alphas": (
        without(lora_shapes("wan", WAN), ".alpha"),
        UNSUPPORTED,
        "needs an alpha for each layer in musubi's style",
    ),
    "a part of a block": (
        {k: v for k, v in lora_shapes("wan", WAN).items() if "ffn_2" not in k},
        UNSUPPORTED,
        "the file lacks blocks.0.ffn.2",
    ),
    "not the first block": (
        {k.replace("_0_", "_1_", 1): v for k, v in lora_shapes("wan", WAN).items()},
        UNSUPPORTED,
        "the file lacks blocks.0.",
    ),
    "a part of Lumina 2": (
        {k: v for k, v in lora_shapes("lumina2", LUMINA).items() if "feed_forward.w2" not in k},
        UNSUPPORTED,
        "feed_forward.w2",
    ),
    "T5": (
        one() | one(layer="te3_x", shape=(4096, 4096)) | {"lora_te3_x.alpha": ()},
        UNSUPPORTED,
        "only the layers of its transformer are supported",
    ),
    "a number with many digits": (
        one() | one(layer=f"double_blocks.{'9' * 5000}.img_attn.proj"),
        UNSUPPORTED,
        "only the layers of its transformer are supported",
    ),
    "a number of another script": (
        one() | one(layer="double_blocks.\u0663.img_attn.proj"),
        UNSUPPORTED,
        "only the layers of its transformer are supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_faulty_lora_is_refused(case):
    """The message states the cause, is printable and has at most 512 characters."""
    shapes, reason, message = REFUSED[case]
    with pytest.raises(LoaderError) as caught:
        plan(shapes)
    assert message in caught.value.message
    assert caught.value.reason is reason
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 512


@pytest.mark.parametrize(
    ("family", "version"),
    [("flux", None), ("flux", "flux1"), ("flux", "chroma"), ("chroma", "flux1")],
)
def test_the_spec_decides_between_families_that_a_lora_fits(family, version):
    """If a LoRA fits several families, spec.baseModel decides, even against the metadata."""
    metadata = {"ss_base_model_version": version} if version else {}
    planned = plan(FLUX_AND_CHROMA, metadata, base_model=BaseModelName(family))
    assert planned.base_model == family
    assert not planned.warnings


@pytest.mark.parametrize(
    ("shapes", "given", "families"),
    [
        (MODULATION, "sdxl", "flux"),
        (FLUX_AND_CHROMA, "sd-3", "flux and chroma and flux2"),
    ],
)
def test_a_spec_that_names_another_family_is_refused(shapes, given, families):
    """A spec.baseModel whose family the layers do not fit is refused."""
    with pytest.raises(LoaderError) as caught:
        plan(shapes, base_model=BaseModelName(given))
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message == (
        f"spec.baseModel is {given}, but the file is a LoRA of {families}"
    )


PARTS = st.sampled_from(
    [
        *("lora_unet_", "transformer.", "diffusion_model.", "double_blocks", "single_blocks"),
        *(".", "_", "0", "18", "{}", "img_attn", "linear1", "attn.to_q", "processor.qkv_lora1"),
        *(".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".alpha", ".up.weight"),
    ]
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3072, 9216]), max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.lists(PARTS, min_size=1, max_size=8).map("".join) | st.sampled_from([*MODULATION]),
        SHAPES,
        max_size=6,
    ),
    st.booleans(),
)
def test_any_file_is_planned_or_refused(shapes, with_a_lora):
    """No names or shapes make the loader crash."""
    message = None
    try:
        plan(FLUX_AND_CHROMA | shapes if with_a_lora else shapes)
    except LoaderError as error:
        message = error.message
    assert message is None or (message.isprintable() and len(message) <= 512)
