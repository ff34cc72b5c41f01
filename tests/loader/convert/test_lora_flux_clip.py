"""A LoRA of FLUX.1 may also change CLIP, in the styles that diffusers reads for CLIP."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_loader.convert.plan.lora_styles import STYLES, LoraStyle
from sd_loader.errors import LoaderError
from tests.support.models.transformerloras import Shapes, clip_shapes, halves, has_alphas, plan

KOHYA, ONE_TRAINER, PEFT = (STYLES["flux"][number] for number in (0, 2, 5))
WITH_CLIP = [
    pytest.param(KOHYA, "lora_te1_", id="kohya"),
    pytest.param(KOHYA, "lora_te_", id="kohya, other prefix"),
    pytest.param(ONE_TRAINER, "lora_te1_", id="OneTrainer"),
    pytest.param(PEFT, "text_encoder.", id="PEFT"),
]


def transformer(style: LoraStyle) -> Shapes:
    """Return a layer that FLUX.1 and Chroma have."""
    layer = "transformer_blocks.0.attn.to_q"
    if style is KOHYA:
        layer = "double_blocks.0.img_attn.proj"
    return halves(style, layer, (3072, 3072), alphas=has_alphas(style))


@pytest.mark.parametrize(("style", "prefix"), WITH_CLIP)
def test_the_layers_of_clip_are_published(style: LoraStyle, prefix: str) -> None:
    """The layers of CLIP are published. They show the base model flux: Chroma has no CLIP."""
    shapes = transformer(style) | clip_shapes(style, prefix)
    planned = plan(shapes)
    assert {item.name for item in planned.weights[0].items} == shapes.keys()
    assert planned.base_model == "flux"
    assert not planned.warnings


def test_names_of_clip_without_text_model_get_it() -> None:
    """`text_model.` is added to names that lack it: older versions of transformers need it."""
    shapes = transformer(PEFT) | {
        name.replace("text_model.", ""): shape
        for name, shape in clip_shapes(PEFT, "text_encoder.").items()
    }
    (weights,) = plan(shapes).weights
    found = {item.name for item in weights.items if item.name.startswith("text_encoder.")}
    assert found == clip_shapes(PEFT, "text_encoder.").keys()


REFUSED = [
    pytest.param(
        transformer(KOHYA) | clip_shapes(KOHYA, "lora_te1_", width=1024),
        Reason.CONVERSION_FAILED,
        "change a layer of shape [1024, 1024], but in CLIP-L, the text encoder of flux, the layer",
        id="another width",
    ),
    pytest.param(
        transformer(KOHYA) | clip_shapes(KOHYA, "lora_te1_", layer=12),
        Reason.CONVERSION_FAILED,
        "CLIP-L, the text encoder of flux, has no layer for lora_te1_",
        id="a layer too many",
    ),
    pytest.param(
        transformer(KOHYA) | clip_shapes(KOHYA, "lora_te3_"),
        Reason.UNSUPPORTED_FORMAT,
        "the file has layers of flux in kohya's style, and others, such as lora_te3_",
        id="T5",
    ),
    pytest.param(
        {
            name: shape
            for name, shape in (transformer(KOHYA) | clip_shapes(KOHYA, "lora_te1_")).items()
            if "out_proj" not in name
        },
        Reason.UNSUPPORTED_FORMAT,
        "diffusers does not read these layers of the text_encoder without others",
        id="names that diffusers does not recognise",
    ),
    pytest.param(
        {
            name: shape
            for name, shape in (
                transformer(ONE_TRAINER) | clip_shapes(ONE_TRAINER, "lora_te1_")
            ).items()
            if not name.startswith("lora_te1_") or "alpha" not in name
        },
        Reason.UNSUPPORTED_FORMAT,
        "diffusers needs an alpha for each layer in OneTrainer's style",
        id="no alphas",
    ),
]


@pytest.mark.parametrize(("shapes", "reason", "words"), REFUSED)
def test_layers_of_clip_that_do_not_fit_are_refused(
    shapes: Shapes, reason: Reason, words: str
) -> None:
    """Layers of CLIP with which diffusers would fail, or which it would leave out, are refused."""
    with pytest.raises(LoaderError) as caught:
        plan(shapes)
    assert caught.value.reason is reason
    assert words in caught.value.message
