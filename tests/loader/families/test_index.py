"""A model_index.json may name only the components and classes that are listed for its pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_loader.diffusers_repo import classes
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.index import Pipeline
from sd_loader.diffusers_repo.listed import Component, ListedPipeline, read_pipeline, title
from sd_loader.errors import LoaderError
from sd_loader.source.ref import SourceRef, refuse_unsuitable
from tests.support.models import familyrepos
from tests.support.models.modelindex import INDEX

DIFFUSERS, TRANSFORMERS = "it knows diffusers 0.42.1", "it knows transformers 5.23.0"
FLUX = "a FLUX pipeline (FluxPipeline): model_index.json: "


def flux(**changes: Any) -> bytes:
    """Return the model_index.json of FLUX with these entries changed."""
    return json.dumps({**json.loads(familyrepos.flux()["model_index.json"]), **changes}).encode()


def listed(content: bytes) -> ListedPipeline:
    """Read an index of another family than Stable Diffusion."""
    pipeline = read_pipeline(content)
    assert isinstance(pipeline, ListedPipeline)
    return pipeline


def test_components_have_roles_by_their_classes():
    """Each component of FLUX has the role that its class decides."""
    pipeline = listed(flux())
    assert {name: component.role for name, component in pipeline.components.items()} == {
        "scheduler": Role.SCHEDULER,
        "text_encoder": Role.ENCODER,
        "text_encoder_2": Role.ENCODER,
        "tokenizer": Role.PROCESSOR,
        "tokenizer_2": Role.PROCESSOR,
        "transformer": Role.MODEL,
        "vae": Role.MODEL,
    }


def test_an_index_may_lack_components_that_callers_pass():
    """An index of HiDream is read without Llama, which callers pass to `from_pretrained`."""
    given = {"text_encoder_4", "tokenizer_4"}
    names = set(classes.parameters("HiDreamImagePipeline") or ()) - given
    entries = {name: ["diffusers", "AutoencoderKL"] for name in names}
    pipeline = listed(json.dumps({"_class_name": "HiDreamImagePipeline", **entries}).encode())
    assert pipeline.components.keys() == names


def test_a_pipeline_of_stable_diffusion_is_read_by_its_own_lists():
    """It is read as a Pipeline, not as a ListedPipeline."""
    assert isinstance(read_pipeline(json.dumps(INDEX).encode()), Pipeline)


@pytest.mark.parametrize(
    ("class_name", "shown"),
    [
        ("FluxPipeline", "a FLUX pipeline (FluxPipeline)"),
        ("Flux2KleinPipeline", "a FLUX.2 pipeline (Flux2KleinPipeline)"),
        ("StableDiffusion3Pipeline", "a Stable Diffusion 3 pipeline (StableDiffusion3Pipeline)"),
        ("AuraFlowPipeline", "an AuraFlow pipeline (AuraFlowPipeline)"),
        ("MochiPipeline", "a Mochi pipeline (MochiPipeline)"),
    ],
)
def test_messages_name_the_pipeline(class_name, shown):
    """The family comes first, in the words that its users know."""
    assert title(class_name) == shown


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        pytest.param(
            flux(_class_name="FluxNextPipeline"),
            Reason.UNSUPPORTED_FORMAT,
            "model_index.json names the pipeline FluxNextPipeline, which is newer than this loader"
            f" ({DIFFUSERS}) or is code of the repo's own",
            id="newer pipeline",
        ),
        *(
            pytest.param(
                flux(_class_name=name),
                Reason.UNSUPPORTED_FORMAT,
                f"model_index.json names the pipeline {name}: the repo holds the model for"
                f" {runtime}; use the repo of the same model for diffusers and PyTorch",
                id=name,
            )
            for name, runtime in (
                ("FlaxStableDiffusionPipeline", "Flax"),
                ("OnnxStableDiffusionPipeline", "ONNX Runtime"),
                ("ORTStableDiffusionXLPipeline", "ONNX Runtime"),
                ("OVStableDiffusionPipeline", "OpenVINO"),
            )
        ),
        pytest.param(
            flux(transformer=["diffusers", "FluxNextModel"]),
            Reason.UNSUPPORTED_FORMAT,
            f"{FLUX}transformer is a FluxNextModel of diffusers, which is newer than this loader"
            f" ({DIFFUSERS})",
            id="newer model",
        ),
        pytest.param(
            flux(text_encoder_2=["transformers", "T6EncoderModel"]),
            Reason.UNSUPPORTED_FORMAT,
            f"{FLUX}text_encoder_2 is a T6EncoderModel of transformers, which is newer than this"
            f" loader ({TRANSFORMERS})",
            id="newer encoder",
        ),
        pytest.param(
            flux(vae=["ltx2", "AutoencoderKL"]),
            Reason.UNSUPPORTED_FORMAT,
            f"{FLUX}vae is a AutoencoderKL of ltx2, which is newer than this loader ({DIFFUSERS})",
            id="class of another module",
        ),
        pytest.param(
            flux(reranker=["transformers", "T5EncoderModel"]),
            Reason.UNSUPPORTED_FORMAT,
            f"{FLUX}the component reranker is newer than this loader ({DIFFUSERS})",
            id="newer component",
        ),
        pytest.param(
            flux(transformer=["modeling", "Mine"]),
            Reason.UNSAFE_MODEL,
            f"{FLUX}transformer comes from modeling, which is code of the repo's own or of an"
            " unknown library",
            id="code of the repo",
        ),
        pytest.param(
            flux(vae=["diffusers.utils", "os.system"]),
            Reason.UNSAFE_MODEL,
            f"{FLUX}vae comes from diffusers.utils, which is code of the repo's own or of an"
            " unknown library",
            id="module with dots",
        ),
        pytest.param(
            flux(vae=["diffusers", None]),
            Reason.UNSUPPORTED_FORMAT,
            f'{FLUX}vae is ["diffusers", null]; it should name a library and a class',
            id="no class",
        ),
        pytest.param(
            flux(_class_name=["pipeline", "Mine"]),
            Reason.UNSAFE_MODEL,
            'model_index.json names a custom pipeline: ["pipeline", "Mine"]',
            id="custom pipeline",
        ),
        pytest.param(
            flux(transformer=["diffusers", "FluxTransformer2DModel"], x={"auto_map": {}}),
            Reason.UNSAFE_MODEL,
            "model_index.json asks for code of the repo (auto_map)",
            id="auto_map inside",
        ),
    ],
)
def test_an_index_with_other_classes_is_refused(content, reason, message):
    """Each index has its reason and message; diffusers would import the classes that it names."""
    with pytest.raises(LoaderError) as caught:
        read_pipeline(content)
    assert (caught.value.reason, caught.value.message) == (reason, message)


@pytest.mark.parametrize(
    "class_name", ["PreTrainedModel", "AutoModel", "AutoTokenizer", "Trainer", "pipeline"]
)
def test_a_class_that_stands_for_many_is_refused(class_name):
    """The class of an encoder must be that of one model: AutoModel, Trainer and others are refused.

    An Auto class would import what a config names.
    """
    with pytest.raises(LoaderError, match="newer than this loader"):
        read_pipeline(flux(text_encoder=["transformers", class_name]))


def test_options_may_be_lists_and_unknown_ones_are_left_out():
    """Krea 2's list of layers is kept, and options and components that it does not have are not."""
    content = familyrepos.index(
        "Krea2Pipeline",
        scheduler=familyrepos.FLOW,
        text_encoder=["transformers", "Qwen3VLModel"],
        tokenizer=["transformers", "Qwen2Tokenizer"],
        transformer=["diffusers", "Krea2Transformer2DModel"],
        text_encoder_select_layers=[2, 5, 8],
        is_distilled=True,
        trust_remote_code=True,
        future_component=[None, None],
        vae=[None, None],
    )
    pipeline = listed(content)
    assert pipeline.options == {"text_encoder_select_layers": [2, 5, 8], "is_distilled": True}
    assert pipeline.nulls == ("vae",)


def test_a_safety_checker_is_left_out():
    """The index is read with `safety_checker` null, although it names the checker's class."""
    content = familyrepos.index(
        "StableDiffusionControlNetPipeline",
        controlnet=["diffusers", "ControlNetModel"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        scheduler=["diffusers", "DDIMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
    )
    assert listed(content).nulls == ("safety_checker",)


def test_an_old_name_of_a_class_and_a_module_of_a_pipeline_are_known():
    """An index may name a tokenizer class by its old name, and a class of a pipeline's module."""
    others = ("audio_vae", "scheduler", "text_encoder", "transformer", "vae", "vocoder")
    content = familyrepos.index(
        "LTX2Pipeline",
        **{name: [None, None] for name in others},
        tokenizer=["transformers", "GemmaTokenizerFast"],
        connectors=["ltx2", "LTX2TextConnectors"],
    )
    assert listed(content).components == {
        "tokenizer": Component("transformers", "GemmaTokenizerFast", Role.PROCESSOR),
        "connectors": Component("ltx2", "LTX2TextConnectors", Role.MODEL),
    }


def test_fields_for_stable_diffusion_are_refused_before_the_download():
    """spec.vae and spec.predictionType are refused for FLUX, which would ignore them."""
    ref = SourceRef(
        "org/x", "spec.url", ModelType.HUGGINGFACE, only_for_sd=("spec.vae", "spec.predictionType")
    )
    refuse_unsuitable(read_pipeline(json.dumps(INDEX).encode()), ref)
    with pytest.raises(LoaderError) as caught:
        refuse_unsuitable(read_pipeline(flux()), ref)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message == (
        "spec.vae, spec.predictionType: for pipelines of Stable Diffusion 1, 2 and XL only, but the"
        " repo is a FLUX pipeline (FluxPipeline); remove it from the spec"
    )


def test_a_pipeline_of_another_family_is_refused_before_the_download():
    """A spec that names the pipeline's own family is accepted."""
    pipeline = read_pipeline(flux())
    ref = SourceRef("org/x", "spec.url", ModelType.HUGGINGFACE, base_model=BaseModelName.FLUX)
    refuse_unsuitable(pipeline, ref)
    for base_model in (BaseModelName.SD3, BaseModelName.SDXL):
        with pytest.raises(LoaderError) as caught:
            refuse_unsuitable(pipeline, replace(ref, base_model=base_model))
        assert caught.value.reason is Reason.INVALID_SPEC
        assert caught.value.message == (
            f"spec.baseModel is {base_model}, but the repo is a FLUX pipeline (FluxPipeline)"
        )
