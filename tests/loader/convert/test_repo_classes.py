"""Only known pipelines and classes of a repo are accepted, and its configs are treated as data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_configs import component_config, scheduler_config
from sd_loader.diffusers_repo.index import Pipeline, parse_json, parse_pipeline
from sd_loader.errors import LoaderError
from tests.support.models.conversions import conversion


def index(**changes: Any) -> bytes:
    """A model_index.json of SD 1.5 with these changes."""
    value = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "requires_safety_checker": True,
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **changes,
    }
    return json.dumps({key: item for key, item in value.items() if item != "absent"}).encode()


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", Reason.DAMAGED_FILE, "not valid JSON"),
        (b"[]", Reason.DAMAGED_FILE, "not a JSON object"),
        (b"\xff\xfe", Reason.DAMAGED_FILE, "not valid JSON"),
        (index(_class_name=["my_pipeline", "MyPipeline"]), Reason.UNSAFE_MODEL, "custom pipeline"),
        (
            index(_class_name=None),
            Reason.UNSUPPORTED_FORMAT,
            "_class_name is null; it should be the class of a pipeline",
        ),
        (index(_class_name="absent"), Reason.UNSUPPORTED_FORMAT, "_class_name is null"),
        (index(_class_name=""), Reason.UNSUPPORTED_FORMAT, '_class_name is ""; it should be'),
        (index(_class_name="StableDiffusionPipeline\u200b"), Reason.UNSUPPORTED_FORMAT, "Pipeline"),
        (
            index(**{"../../evil": ["diffusers", "UNet2DConditionModel"]}),
            Reason.UNSUPPORTED_FORMAT,
            "../../evil is a UNet2DConditionModel of diffusers, which is not supported",
        ),
        (
            index(unet=["diffusers.models", "UNet2DConditionModel"]),
            Reason.UNSAFE_MODEL,
            "unet comes from diffusers.models",
        ),
        (
            index(unet=[["diffusers"], "UNet2DConditionModel"]),
            Reason.UNSUPPORTED_FORMAT,
            "unet is",
        ),
        (index(vae=["diffusers", "os.system"]), Reason.UNSUPPORTED_FORMAT, "os.system"),
        (index(vae=["os", "system"]), Reason.UNSAFE_MODEL, "os"),
        (index(vae=["transformers", "AutoencoderKL"]), Reason.UNSUPPORTED_FORMAT, "transformers"),
        (
            index(vae=["diffusers"]),
            Reason.UNSUPPORTED_FORMAT,
            'vae is ["diffusers"]; it should name a library and a class',
        ),
        (
            index(vae=["diffusers", None]),
            Reason.UNSUPPORTED_FORMAT,
            'vae is ["diffusers", null]; it should name a library and a class',
        ),
        (index(vae="absent"), Reason.UNSUPPORTED_FORMAT, "lacks vae"),
        (index(tokenizer="absent"), Reason.UNSUPPORTED_FORMAT, "lacks tokenizer"),
        (index(text_encoder="absent"), Reason.UNSUPPORTED_FORMAT, "lacks text_encoder"),
        (index(safety_checker=["evil", "Checker"]), Reason.UNSAFE_MODEL, "evil"),
        (index(prior=["diffusers", "PriorTransformer"]), Reason.UNSUPPORTED_FORMAT, "prior"),
        (index(requires_safety_checker="x"), Reason.UNSUPPORTED_FORMAT, "requires_safety"),
        (
            index(custom={"a": 1}),
            Reason.UNSUPPORTED_FORMAT,
            'custom is {"a": 1}; it should be a number, true, false or null',
        ),
        (
            index(
                text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
                tokenizer_2=["transformers", "CLIPTokenizer"],
            ),
            Reason.UNSUPPORTED_FORMAT,
            "not two",
        ),
    ],
)
def test_unknown_or_foreign_class_is_refused(content, reason, words):
    """A model_index.json with an unlisted class is refused: diffusers would import the class."""
    with pytest.raises(LoaderError) as caught:
        parse_pipeline(content)
    assert (caught.value.reason, words in caught.value.message) == (reason, True), caught.value


def test_known_pipeline_is_read():
    """The safety checker and the feature extractor are dropped, and options are kept."""
    pipeline = parse_pipeline(index())
    assert set(pipeline.components) == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert pipeline.options == {"requires_safety_checker": True}
    refiner = index(
        _class_name="StableDiffusionXLImg2ImgPipeline",
        text_encoder=[None, None],
        tokenizer=[None, None],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        requires_aesthetics_score=True,
    )
    assert parse_pipeline(refiner).is_sdxl
    assert parse_pipeline(refiner).canonical() == parse_pipeline(refiner)


def test_options_that_the_pipeline_does_not_document_are_left_out():
    """Options that are not listed are dropped: diffusers would pass them on or keep them."""
    options = {"trust_remote_code": True, "custom_pipeline": 1, "torch_dtype": 7}
    pipeline = parse_pipeline(index(image_encoder=5, **options))
    assert pipeline.options == {"requires_safety_checker": True}


def test_lone_second_text_encoder_is_renamed_to_text_encoder_2():
    """The refiner's text encoder is renamed: as `text_encoder`, it fails at the first prompt."""
    pipeline = parse_pipeline(
        index(
            _class_name="StableDiffusionXLImg2ImgPipeline",
            text_encoder=["transformers", "CLIPTextModelWithProjection"],
        )
    )
    assert pipeline.canonical().components.keys() == {
        "scheduler",
        "text_encoder_2",
        "tokenizer_2",
        "unet",
        "vae",
    }
    assert pipeline.origin("text_encoder_2") == "text_encoder"
    assert pipeline.origin("tokenizer_2") == "tokenizer"
    assert pipeline.origin("unet") == "unet"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["_class_name", "unet", "vae", "prediction_type", "auto_map", "quantization_config", "dtype"]
)


@given(st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=6))
def test_any_json_config_is_data_or_refused(value):
    """Untrusted configs raise nothing but a LoaderError and lose their private keys."""
    content = json.dumps(value).encode()
    known = Pipeline(
        "StableDiffusionPipeline", {"unet": "UNet2DConditionModel", "scheduler": "X"}, {}
    )
    options = conversion(model_type="huggingface")
    with pytest.raises(LoaderError):
        parse_pipeline(content)
    try:
        parsed = parse_json(content, "config.json")
        configs = [
            component_config(parsed, "unet", known, options),
            scheduler_config(parsed, known, options),
        ]
    except LoaderError:
        return
    for config in configs:
        assert json.dumps(config)
        private = {key for key in config if key.startswith("_")}
        assert private <= {"_class_name", "_diffusers_version"}
        assert config["_class_name"] in ("UNet2DConditionModel", "X")
