"""An embedding becomes a folder that diffusers opens like the file, with a token."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sd_api.reasons import Reason
from sd_api.wire import Source
from sd_loader.convert.plan.embedding import FIRST_FILE, SECOND_FILE, TOKEN_FILE
from sd_loader.convert.run import convert
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from tests.support.models import tinyrepo
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.conversions import conversion, convert_file, identical

UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED
FAMILIES = {"sd1": ("SD 1.x", 768), "sd2": ("SD 2.x", 1024)}
SECOND_WIDTH = 1280
NAME = "charturner"
LEGACY = "pt of before torch 1.6"
BY_MODEL_ID = "<model>"  # the model id that `convert_file` uses


def vectors(width, count=2, dtype=torch.float32, seed=0):
    """Random vectors for a token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, width), generator=generator).to(dtype)


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
    """The content that the paper's own program saves. The vectors are a torch module."""
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
CASES += [Case("sd1", style, LEGACY) for style in ("diffusers", "A1111")]
PAIRS = {
    "clip_l and clip_g": ("clip_l", "clip_g"),
    "pivotal tuning": ("text_encoders_0", "text_encoders_1"),
}
SDXL_CASES = [Case("sdxl", pair, kind) for pair in PAIRS for kind in ("safetensors", "pt", "bin")]
ROWS: tuple[Row, ...] = tuple(case.row for case in (*CASES, *SDXL_CASES))


def save(path: Path, content, *, legacy: bool = False) -> Path:
    """Save the content in the container of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        return save_safetensors(path, content)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def loaded(folder, content, name="x.safetensors", *, legacy=False, **fields):
    """Convert the content. Return the result and the folder."""
    path = save(folder / "origin" / name, content, legacy=legacy)
    return convert_file(path, folder / "out", model_type="embeddings", **fields), folder / "out"


@cache
def tokenizer():
    """A tokenizer that knows only letters.

    A copy of the real one's 49,408 rows for each test would be slow.
    """
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        numbered = {word: index for index, word in enumerate(words)}
        (Path(folder) / "vocab.json").write_text(json.dumps(numbered))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def opened(source, width, kind=CLIPTextModel, **options):
    """The tokens that diffusers adds for an embedding, with their vectors."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        vocab_size=len(tokenizer()),
        projection_dim=64,
    )
    words, encoder = copy.deepcopy(tokenizer()), kind(config)
    tinyrepo.pipeline("sd15").load_textual_inversion(
        source, tokenizer=words, text_encoder=encoder, **options
    )
    weights = encoder.get_input_embeddings().weight
    known = tokenizer().get_vocab()
    added = {word: index for word, index in words.get_vocab().items() if word not in known}
    return {word: weights[index].detach().clone() for word, index in added.items()}


def assert_same(ours, theirs):
    """Assert that tokens and vectors are equal."""
    assert theirs
    assert ours.keys() == theirs.keys()
    assert all(identical(ours[word], vector) for word, vector in theirs.items())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diffusers_opens_the_folder_like_the_file(tmp_path, case):
    """The folder needs no token argument, and a text file shows the token to people."""
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


@pytest.mark.parametrize("case", SDXL_CASES, ids=str)
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


def converted_repo(folder, halves, **fields):
    """Convert a repo of these files. Return the result and the folder."""
    for name, content in halves.items():
        save(folder / "source" / "repo" / name, content)
    (folder / "out").mkdir()
    fetched = Fetched(kind="repo", path="repo", source=Source())
    options = conversion(model_type="embeddings", **fields)
    return convert(fetched, folder / "source", options, folder / "out", lambda _: None)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sdxl_embedding_in_two_files_is_opened_like_its_files(tmp_path, suffix):
    """Diffusers' training script for SDXL writes a file for each text encoder."""
    names = f"learned_embeds.{suffix}", f"learned_embeds_2.{suffix}"
    halves = {"<cat-toy>": vectors(768)}, {"<cat-toy>": vectors(SECOND_WIDTH, seed=1)}
    converted = converted_repo(tmp_path, dict(zip(names, halves, strict=True)))

    assert converted.files.keys() == {FIRST_FILE, SECOND_FILE, TOKEN_FILE}
    assert (converted.base_model, converted.warnings) == ("sdxl", ())
    out, repo = tmp_path / "out", tmp_path / "source" / "repo"
    assert (out / TOKEN_FILE).read_text() == "<cat-toy>"
    assert_same(opened(out, 768), opened(repo, 768, weight_name=names[0]))
    second = CLIPTextModelWithProjection
    assert_same(
        opened(out, SECOND_WIDTH, second, weight_name=SECOND_FILE),
        opened(repo, SECOND_WIDTH, second, weight_name=names[1]),
    )


@pytest.mark.parametrize(
    ("first", "second", "reason", "message"),
    [
        ({"<a>": vectors(768)}, {"<b>": vectors(1280)}, CONTRADICTS, "two embeddings: <a> and <b>"),
        ({"<a>": vectors(1280)}, {"<a>": vectors(768)}, CONTRADICTS, "should be equally many"),
        ({"<a>": vectors(768)}, {"<a>": vectors(1280, 3)}, CONTRADICTS, "should be equally many"),
        (
            {"clip_l": vectors(768), "clip_g": vectors(1280)},
            {"<a>": vectors(1280)},
            UNSUPPORTED,
            "a whole embedding of SDXL; link to that file",
        ),
    ],
    ids=["names", "order", "numbers", "whole"],
)
def test_two_files_that_do_not_belong_together_are_refused(
    tmp_path, first, second, reason, message
):
    """Nothing is written."""
    files = {"learned_embeds.safetensors": first, "learned_embeds_2.safetensors": second}
    with pytest.raises(LoaderError, match=message) as caught:
        converted_repo(tmp_path, files)
    assert caught.value.reason is reason
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_spec_revision_sets_the_precision(tmp_path, precision):
    """Without spec.revision the precision stays."""
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
    """Diffusers would refuse the folder, or no prompt could contain the token."""
    converted, out = loaded(tmp_path, {**a1111(vectors(768)), "name": name}, "x.pt")
    assert (out / TOKEN_FILE).read_text() == BY_MODEL_ID
    assert warning in converted.warnings[0]
    assert opened(out, 768).keys() == {BY_MODEL_ID, f"{BY_MODEL_ID}_1"}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_broken_weights_are_always_refused(tmp_path, value):
    """Embeddings are small, so the loader always scans them."""
    tensor = vectors(768)
    tensor[1, 5] = value
    with pytest.raises(LoaderError, match="<x>") as caught:
        loaded(tmp_path, {"<x>": tensor})
    assert caught.value.reason is Reason.VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        pytest.param({"<x>": vectors(64)}, UNSUPPORTED, "64 numbers fit no", id="width"),
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
            "no floating-point",
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
    """Nothing is written."""
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, content)
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["clip_l", "clip_l_out"],
            "the file is an embedding of OneTrainer with vectors for the text encoder's output"
            " (clip_l_out), which diffusers does not read: train it without output embeddings",
        ),
        (
            ["clip_g", "clip_l", "t5"],
            "the file is an embedding of Stable Diffusion 3 (it holds t5), which is not supported",
        ),
        (
            ["clip_l", "t5"],
            "the file is an embedding of FLUX (it holds t5), which is not supported",
        ),
        (
            ["clip_l"],
            "the file is half an embedding of SDXL: it holds clip_l without clip_g; if it is whole"
            " and of another family, set spec.baseModel",
        ),
        (
            ["768.0.linear.0.weight", "768.1.linear.0.weight"],
            "the file is a hypernetwork, which is not supported",
        ),
    ],
)
def test_embedding_that_diffusers_does_not_read_is_named(tmp_path, names, message):
    """The message names the program or model that the file is for."""
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, {name: vectors(768) for name in names})
    assert caught.value.reason is UNSUPPORTED
    assert caught.value.message == message


def test_base_model_decides_about_clip_l_alone(tmp_path):
    """Pivotal tuning of SD 1.x writes the same name as that of SDXL."""
    converted, out = loaded(tmp_path, {"clip_l": vectors(768)}, base_model="sd1")
    assert converted.base_model == "sd1"
    assert_same(opened(out, 768), opened(vectors(768), 768, token=BY_MODEL_ID))


def test_wrong_base_model_is_refused(tmp_path):
    """The width of the vectors shows the base model."""
    with pytest.raises(LoaderError, match=r"spec\.baseModel is sd2.* of sd1") as caught:
        loaded(tmp_path, {"<x>": vectors(768)}, base_model="sd2")
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
