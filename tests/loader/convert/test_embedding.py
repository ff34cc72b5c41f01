"""An embedding becomes a folder from which diffusers reads the same token and vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from sd_api.reasons import Reason
from sd_loader.convert.plan.embedding import FIRST_FILE, SECOND_FILE, TOKEN_FILE
from sd_loader.errors import LoaderError
from tests.support.models.catalog import Row
from tests.support.models.conversions import convert_file, identical
from tests.support.models.embeddings import assert_same, opened, save, vectors

UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED
FAMILIES = {"sd-1": ("SD 1.x", 768), "sd-2": ("SD 2.x", 1024)}
SECOND_WIDTH = 1280
NAME = "charturner"
LEGACY = "pt of before torch 1.6"
BY_MODEL_ID = "<model>"  # the model id that `convert_file` uses


def a1111(tensor):
    """The content that A1111's training saves."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": tensor},
        "name": NAME,
        "step": 500,
        "sd_checkpoint": "4bdfc29c",
        "sd_checkpoint_name": "v1-5-pruned",
    }


def early(tensor):
    """The content that the textual inversion paper's program saves, with vectors in a module."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(tensor)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}


STYLES = {
    "diffusers": (lambda tensor: {"<cat-toy>": tensor}, "<cat-toy>"),
    "A1111": (a1111, NAME),
    "textual_inversion": (early, BY_MODEL_ID),
    "emb_params": (lambda tensor: {"emb_params": tensor}, BY_MODEL_ID),
    "a tensor alone": (lambda tensor: tensor, BY_MODEL_ID),
    "one vector": (lambda tensor: {"<cat-toy>": tensor[0].clone()}, "<cat-toy>"),
}


@dataclass(frozen=True)
class Case:
    """An embedding by family, style and container."""

    family: str
    style: str
    container: str

    @property
    def row(self) -> Row:
        """The case as a row of the catalog."""
        title = "SDXL" if self.family == "sdxl" else FAMILIES[self.family][0]
        return Row(
            model_type="embeddings",
            architecture=f"{title}, {self.style}",
            container=self.container,
            peer="load_textual_inversion(file)",
            opens_with="load_textual_inversion(folder)",
        )

    def __str__(self) -> str:
        return str(self.row)


CASES = [
    Case(family, style, container)
    for family in FAMILIES
    for style in STYLES
    for container in ("safetensors", "pt", "bin")
    if container != "safetensors" or style not in ("A1111", "textual_inversion", "a tensor alone")
]
CASES += [Case("sd-1", style, LEGACY) for style in ("diffusers", "A1111")]
# What `make test` runs: each family, style and container. `make test-all` runs all cases.
QUICK = (
    Case("sd-1", "diffusers", LEGACY),
    Case("sd-1", "A1111", "pt"),
    Case("sd-1", "textual_inversion", "pt"),
    Case("sd-1", "emb_params", "bin"),
    Case("sd-1", "a tensor alone", "bin"),
    Case("sd-1", "one vector", "safetensors"),
    Case("sd-2", "diffusers", "safetensors"),
    Case("sd-2", "A1111", "pt"),
    Case("sdxl", "clip_l and clip_g", "safetensors"),
    Case("sdxl", "pivotal tuning", "pt"),
)
NEWER, OLDER = ("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")
PAIRS = {"clip_l and clip_g": NEWER, "pivotal tuning": OLDER}
SDXL_CASES = [Case("sdxl", pair, kind) for pair in PAIRS for kind in ("safetensors", "pt", "bin")]
ROWS: tuple[Row, ...] = tuple(case.row for case in (*CASES, *SDXL_CASES))


def each(cases):
    """Run a test once for each of the cases; the cases that are not in QUICK are slow tests."""
    rows = [
        pytest.param(case, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize("case", rows)


def loaded(folder, content, name="x.safetensors", *, legacy=False, **fields):
    """Convert the content. Return the result and the folder."""
    path = save(folder / "origin" / name, content, legacy=legacy)
    return convert_file(path, folder / "out", model_type="embeddings", **fields), folder / "out"


@each(CASES)
def test_diffusers_opens_the_folder_like_the_file(tmp_path, case):
    """Diffusers reads token and vectors from the folder as from the file, without a `token`.

    A text file shows the token to people.
    """
    make, token = STYLES[case.style]
    width = FAMILIES[case.family][1]
    content = make(vectors(width))
    name = f"x.{case.container.partition(' ')[0]}"
    converted, out = loaded(tmp_path, content, name, legacy=case.container == LEGACY)

    assert converted.files.keys() == {FIRST_FILE, TOKEN_FILE}
    assert (converted.base_model, converted.precision) == (case.family, "fp32")
    assert converted.warnings == ()
    assert (out / TOKEN_FILE).read_text() == token
    origin = tmp_path / "origin" / name
    # diffusers refuses to unpickle the early format, so compare with the plain vectors.
    source = {token: vectors(width)} if case.style == "textual_inversion" else str(origin)
    theirs = opened(source, width, token=token)
    assert_same(opened(out, width, local_files_only=True), theirs)


@each(SDXL_CASES)
def test_sdxl_embedding_has_a_file_for_each_encoder(tmp_path, case):
    """Diffusers opens each file by a call that its documentation describes."""
    first, second_vectors = vectors(768), vectors(SECOND_WIDTH, seed=1)
    content = dict(zip(PAIRS[case.style], (first, second_vectors), strict=True))
    converted, out = loaded(tmp_path, content, f"x.{case.container}")

    assert converted.files.keys() == {FIRST_FILE, SECOND_FILE, TOKEN_FILE}
    assert converted.base_model == "sdxl"
    token = (out / TOKEN_FILE).read_text()
    assert token == BY_MODEL_ID
    assert_same(opened(out, 768), opened(first, 768, token=token))
    second = CLIPTextModelWithProjection
    assert_same(
        opened(out, SECOND_WIDTH, second, weight_name=SECOND_FILE),
        opened(second_vectors, SECOND_WIDTH, second, token=token),
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_spec_revision_sets_the_precision(tmp_path, precision):
    """The vectors get the precision of spec.revision; without it, they keep theirs."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    converted, out = loaded(tmp_path / "a", {"<x>": vectors(768)}, revision=precision)
    assert converted.precision == precision
    assert identical(load_file(out / FIRST_FILE)["<x>"], vectors(768).to(dtype))
    converted, out = loaded(tmp_path / "b", {"<x>": vectors(768, dtype=dtype)})
    assert converted.precision == precision
    assert identical(load_file(out / FIRST_FILE)["<x>"], vectors(768, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("cat", "the file's own name, cat, is a word of the tokenizer"),
        ("a toy", "cannot be used in prompts"),
        ("x" * 65, "cannot be used in prompts"),
    ],
)
def test_model_id_replaces_an_unusable_token(tmp_path, name, warning):
    """A token that diffusers would refuse, or that no prompt could contain, is replaced.

    The new token is the model id, and a warning states this.
    """
    converted, out = loaded(tmp_path, {**a1111(vectors(768)), "name": name}, "x.pt")
    assert (out / TOKEN_FILE).read_text() == BY_MODEL_ID
    assert warning in converted.warnings[0]
    assert opened(out, 768).keys() == {BY_MODEL_ID, f"{BY_MODEL_ID}_1"}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_broken_weights_are_always_refused(tmp_path, value):
    """NaN and infinite values are refused even without verify.weights: embeddings are small."""
    tensor = vectors(768)
    tensor[1, 5] = value
    with pytest.raises(LoaderError, match="<x>") as caught:
        loaded(tmp_path, {"<x>": tensor})
    assert caught.value.reason is Reason.VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        pytest.param({"<x>": vectors(64)}, UNSUPPORTED, "64 numbers do not fit", id="width"),
        pytest.param({"<x>": vectors(1280)}, UNSUPPORTED, "clip_l and clip_g", id="second alone"),
        pytest.param({"clip_g": vectors(1280)}, UNSUPPORTED, "without clip_l", id="no clip_l"),
        pytest.param({"clip_l": vectors(768)}, UNSUPPORTED, "without clip_g", id="no clip_g"),
        pytest.param(
            {"clip_l": vectors(768), "clip_g": vectors(1280, 3)},
            CONTRADICTS,
            "equally many",
            id="another number of vectors",
        ),
        pytest.param(
            {"clip_l": vectors(1280), "clip_g": vectors(768)},
            CONTRADICTS,
            "clip_l [2, 1280]",
            id="encoders exchanged",
        ),
        pytest.param(
            {"<x>": vectors(768), "<y>": vectors(768, seed=1)},
            UNSUPPORTED,
            "a file for each",
            id="two concepts",
        ),
        pytest.param(
            {"<x>": torch.zeros(2, 768, dtype=torch.int64)},
            CONTRADICTS,
            "should hold floating-point numbers",
            id="integers",
        ),
        pytest.param({"<x>": torch.zeros(76, 768)}, UNSUPPORTED, "1 to 75", id="too many"),
        pytest.param({"<x>": torch.zeros(0, 768)}, UNSUPPORTED, "1 to 75", id="no vectors"),
        pytest.param({"<x>": torch.zeros(1, 1, 768)}, UNSUPPORTED, "1 to 75", id="rank"),
        pytest.param({"<x>": torch.tensor(1.0)}, UNSUPPORTED, "1 to 75", id="a number"),
        pytest.param(
            {"lora_unet_x.lora_down.weight": vectors(768)},
            UNSUPPORTED,
            "a LoRA: it needs spec.modelType: lora",
            id="a LoRA",
        ),
        pytest.param(
            {"model.diffusion_model.input_blocks.0.0.weight": vectors(768)},
            UNSUPPORTED,
            "a checkpoint: it needs spec.modelType: custom_ckpt",
            id="a checkpoint",
        ),
        pytest.param(
            {"first_stage_model.encoder.conv_in.weight": vectors(768)},
            UNSUPPORTED,
            "it needs spec.modelType: vae",
            id="a VAE",
        ),
    ],
)
def test_faulty_embedding_is_refused(tmp_path, content, reason, message):
    """The error has this reason and message, and nothing is written."""
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, content)
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_base_model_decides_about_clip_l_alone(tmp_path):
    """A file with clip_l only is half of an SDXL embedding, unless spec.baseModel is sd-1."""
    converted, out = loaded(tmp_path, {"clip_l": vectors(768)}, base_model="sd-1")
    assert converted.base_model == "sd-1"
    assert_same(opened(out, 768), opened(vectors(768), 768, token=BY_MODEL_ID))


def test_wrong_base_model_is_refused(tmp_path):
    """A spec.baseModel is refused if the vectors have the width of another base model."""
    with pytest.raises(LoaderError, match=r"spec\.baseModel is sd-2.* of sd-1") as caught:
        loaded(tmp_path, {"<x>": vectors(768)}, base_model="sd-2")
    assert caught.value.reason is Reason.INVALID_SPEC


@settings(max_examples=10, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["<x>", "*", "clip_l", "clip_g", "emb_params", "string_to_param.*"])
        | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9),
        st.lists(st.sampled_from([0, 1, 2, 75, 768, 1024, 1280]), max_size=3).filter(
            lambda shape: math.prod(shape) <= 2**21
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_file_is_converted_or_refused(tmp_path_factory, shapes):
    """An error message is short and printable."""
    folder = tmp_path_factory.mktemp("hostile")
    message = None
    try:
        loaded(folder, {name: torch.ones(shape) for name, shape in shapes.items()})
    except LoaderError as error:
        message = error.message
    assert message is None or (message.isprintable() and len(message) < 512)
    assert message is not None or (folder / "out" / TOKEN_FILE).exists()
