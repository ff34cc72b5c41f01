"""Diffusers repos become the canonical folder, whoever saved them, and nothing but data gets in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from catalog import Row
from checkpoints import save_safetensors, tiny_sd15, tiny_sdxl
from conversions import convert_file, load_request
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tinyrepo import copy_repo, pipeline, replace, save_repo

from sd_api.load import Source
from sd_api.reasons import Reason
from sd_loader.convert import Converted, convert
from sd_loader.convert.folder import clip_vocabulary
from sd_loader.convert.repo_configs import component_config, scheduler_config
from sd_loader.errors import LoaderError
from sd_loader.source import Fetched
from sd_loader.source.pipelines import Pipeline, parse_json, parse_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
ROWS = (
    Row("huggingface", "SD 1.x", "diffusers repo", "save_pretrained", "StableDiffusionPipeline"),
    Row(
        "huggingface", "SDXL base", "diffusers repo", "save_pretrained", "StableDiffusionXLPipeline"
    ),
)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 repo in fp32."""
    return save_repo(tmp_path_factory.mktemp("sd15") / "repo")


@pytest.fixture
def repo(sd15: Path, tmp_path: Path) -> Path:
    """The same, whose files may be replaced."""
    return copy_repo(sd15, tmp_path / "repo")


def convert_repo(repo: Path, **fields: Any) -> tuple[Path, Converted]:
    """Convert a repo into a new folder beside it; fields: those of the request."""
    out = repo.parent / "out"
    out.mkdir()
    request = load_request(model_type="huggingface", url="org/name", **fields)
    fetched = Fetched(kind="repo", path=repo.name, source=Source())
    return out, convert(fetched, repo.parent, request, out, lambda _progress: None)


def refusal(repo: Path, **fields: Any) -> LoaderError:
    """The error of a conversion that must fail."""
    with pytest.raises(LoaderError) as caught:
        convert_repo(repo, **fields)
    return caught.value


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replace a JSON file by a changed one."""
    value = json.loads(path.read_text())
    change(value)
    replace(path, json.dumps(value))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Replace a weights file by a changed one."""
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("row", "architecture", "make"),
    [
        pytest.param(ROWS[0], "sd15", tiny_sd15, id=str(ROWS[0])),
        pytest.param(ROWS[1], "sdxl", tiny_sdxl, id=str(ROWS[1])),
    ],
)
def test_a_repo_and_its_checkpoint_become_the_same_weights(tmp_path, row, architecture, make):
    """Byte for byte, prefix of the text encoder included; the whole is described alike."""
    repo = save_repo(tmp_path / "repo", architecture, torch.float16, variant="fp16")
    checkpoint = save_safetensors(tmp_path / "model.safetensors", make(torch.float16))
    out, converted = convert_repo(repo, revision="fp16")
    assert converted.pipeline_class == row.opens_with
    expected = convert_file(checkpoint, tmp_path / "expected")
    names = {name for name in expected.files if name.endswith(".safetensors")}
    assert {name: converted.files[name] for name in names} == {
        name: expected.files[name] for name in names
    }
    assert set(converted.files) == set(expected.files)
    for field in ("base_model", "pipeline_class", "precision", "prediction_type"):
        assert getattr(converted, field) == getattr(expected, field)
    ours = json.loads((out / "model_index.json").read_text())
    theirs = json.loads((tmp_path / "expected" / "model_index.json").read_text())
    assert ours == {name: theirs[name] for name in theirs if name != "add_watermarker"}


def test_files_that_need_no_change_are_linked(repo):
    """Their bytes are not copied; the others are written anew."""
    out, converted = convert_repo(repo)
    for name in (UNET, VAE):
        assert (out / name).samefile(repo / name)
    assert not (out / TEXT).samefile(repo / TEXT)
    assert converted.precision == "fp32"
    for name, digest in converted.files.items():
        assert (out / name).stat().st_size == digest.size
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(
        converted.files
    )


def test_where_links_are_refused_the_bytes_are_copied(repo, monkeypatch):
    """Some volumes have none; the result is the same."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    out, _ = convert_repo(repo)
    assert not (out / UNET).samefile(repo / UNET)
    assert (out / UNET).read_bytes() == (repo / UNET).read_bytes()


def test_pickled_weights_give_the_files_of_safetensors(repo, sd15, tmp_path):
    """The same weights have the same digests, whatever they came in."""
    for path, name in ((UNET, "diffusion_pytorch_model.bin"), (TEXT, "pytorch_model.bin")):
        tensors = load_file(repo / path)
        (repo / path).unlink()
        torch.save(tensors, (repo / path).with_name(name))
    _, pickled = convert_repo(repo)
    (tmp_path / "other").mkdir()
    _, safe = convert_repo(copy_repo(sd15, tmp_path / "other" / "repo"))
    assert pickled.files == safe.files


def test_a_pickle_is_refused_where_safetensors_were_asked_for(repo):
    """With fromSafetensors the content decides, not the name of the repo."""
    torch.save(load_file(repo / UNET), (repo / UNET).with_suffix(".bin"))
    (repo / UNET).unlink()
    error = refusal(repo, from_safetensors=True)
    assert (error.reason, "fromSafetensors" in error.message) == (Reason.UNSAFE_MODEL, True)


@pytest.mark.parametrize(("revision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_precision_asked_for_is_published(repo, revision, dtype):
    """Each weight as torch casts it; the text encoder's config says so."""
    out, converted = convert_repo(repo, revision=revision)
    assert converted.precision == revision
    for name in (UNET, VAE):
        ours, theirs = load_file(out / name), load_file(repo / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].to(dtype)) for key in ours)
    config = json.loads((out / "text_encoder/config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert "dtype" not in config


def test_shards_are_joined(repo):
    """The folder is sharded as diffusers would, not as the repo was."""
    tensors = load_file(repo / UNET)
    names = sorted(tensors)
    (repo / UNET).unlink()
    for number, part in ((1, names[::2]), (2, names[1::2])):
        path = repo / f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path, {"format": "pt"})
    replace(repo / "unet/diffusion_pytorch_model.safetensors.index.json", "{}")
    out, _ = convert_repo(repo)
    ours = load_file(out / UNET)
    assert all(torch.equal(ours[name], tensors[name]) for name in names)
    assert len(ours) == len(names)


def test_the_folder_opens_and_renders_as_the_repo_does(repo):
    """Diffusers, offline, two steps: the same image."""
    from diffusers import StableDiffusionPipeline

    out, _ = convert_repo(repo)
    opened = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    images = []
    for pipe in (opened, pipeline("sd15")):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(
            pipe(
                "a cat",
                num_inference_steps=2,
                height=64,
                width=64,
                generator=generator,
                output_type="np",
            ).images
        )
    assert (images[0] == images[1]).all()


def test_old_names_become_the_current_ones(repo):
    """The attention of old VAEs; position ids and projections that the class does not have."""
    new = load_file(repo / VAE)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for old, current in {
            "query": "to_q",
            "key": "to_k",
            "value": "to_v",
            "proj_attn": "to_out.0",
        }.items():
            for name in [name for name in tensors if f".{current}." in name]:
                tensors[name.replace(f".{current}.", f".{old}.")] = tensors.pop(name)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
        tensors["text_projection.weight"] = torch.zeros(2, 2)
        tensors["logit_scale"] = torch.zeros(1)

    change_weights(repo / VAE, rename)
    change_weights(repo / TEXT, add)
    out, _ = convert_repo(repo)
    assert load_file(out / VAE).keys() == new.keys()
    text = load_file(out / TEXT)
    assert all(name.startswith("text_model.") for name in text)
    assert "text_model.embeddings.position_ids" not in text


def test_a_clip_tokenizer_gets_its_vocabulary_back(repo):
    """The very files that model repositories have, from transformers' single one."""
    from transformers import CLIPTokenizer

    folder = repo / "tokenizer"
    vocabulary = {name: clip_vocabulary(name) for name in ("vocab.json", "merges.txt")}
    for name, content in vocabulary.items():
        replace(folder / name, content)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = CLIPTokenizer.from_pretrained(folder, pad_token="!")
    prompts = ["a photograph of an astronaut riding a horse", "Ünïcödé, 12 cats!"]
    ids = tokenizer(prompts).input_ids
    for name in vocabulary:
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    out, _ = convert_repo(repo)
    for name, content in vocabulary.items():
        assert (out / "tokenizer" / name).read_bytes() == content
    restored = CLIPTokenizer.from_pretrained(out / "tokenizer")
    assert restored(prompts).input_ids == ids
    assert restored.pad_token == "!"
    assert restored.model_max_length == 77


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("{}", "neither vocab.json", id="nothing of a tokenizer"),
        pytest.param('{"model": {"type": "Unigram"}}', "neither vocab.json", id="another kind"),
        pytest.param('{"model": {"type": "BPE"}}', "vocabulary", id="no vocabulary"),
        pytest.param('{"model": {"type": "BPE", "vocab": {"a": "b"}}}', "vocabulary", id="words"),
        pytest.param(
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a b c"]}}',
            "two words",
            id="bad merges",
        ),
        pytest.param(
            '{"model": {"type": "BPE", "vocab": {"a": 1}}, "added_tokens": [{"content": []}]}',
            "adds a token",
            id="bad token",
        ),
        pytest.param("[" * 100_000, "not valid JSON", id="nested too deep to read"),
        pytest.param('{"x":' + "[" * 40 + "]" * 40 + "}", "nested", id="nested too deep"),
    ],
)
def test_tokenizers_that_cannot_be_read_are_refused(repo, content, words):
    """By name, and without a stack trace."""
    replace(repo / "tokenizer/tokenizer.json", content)
    assert words in refusal(repo).message


def test_configs_hold_data_only(repo):
    """What transformers would act upon, or what tells of somebody's disk, is left out."""

    def poison(config: dict[str, Any]) -> None:
        config["_name_or_path"] = "/home/somebody"
        config["_attn_implementation"] = "evil/kernels"
        config["attn_implementation"] = "evil/kernels"

    for name in ("unet/config.json", "text_encoder/config.json"):
        change_json(repo / name, poison)
    change_json(repo / "tokenizer/tokenizer_config.json", lambda it: it.update(chat_template="{%"))
    replace(repo / "unet/evil.py", "raise SystemExit")
    replace(repo / "unet/diffusion_pytorch_model.msgpack", "x")
    out, converted = convert_repo(repo)
    text = "".join(path.read_text() for path in out.rglob("*.json"))
    for word in ("somebody", "evil", "chat_template"):
        assert word not in text
    assert all(name.endswith((".json", ".txt", ".safetensors")) for name in converted.files)


def test_the_spec_decides_over_the_config(repo):
    """What the UNet predicts, and the precision of its attention."""
    out, converted = convert_repo(repo, prediction_type="v_prediction", upcast_attention=True)
    assert converted.prediction_type == "v_prediction"
    scheduler = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["_class_name"] == "PNDMScheduler"
    assert json.loads((out / "unet/config.json").read_text())["upcast_attention"] is True


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"weights": "ema"}, Reason.INVALID_SPEC, "spec.weights"),
        ({"original_config": "https://x.example/y"}, Reason.INVALID_SPEC, "spec.originalConfig"),
        ({"base_model": "sdxl"}, Reason.CONVERSION_FAILED, "spec.baseModel"),
    ],
)
def test_wishes_that_a_repo_cannot_fulfil_are_refused(repo, fields, reason, words):
    """Rather than ignored."""
    error = refusal(repo, **fields)
    assert (error.reason, words in error.message) == (reason, True), error.message


def lose_a_tensor(repo: Path) -> None:
    """A UNet without one of its weights."""
    change_weights(repo / UNET, lambda tensors: tensors.pop("conv_in.weight"))


def lose_a_part(repo: Path) -> None:
    """A UNet one of whose weights is but a part of it."""
    name = "mid_block.resnets.0.conv1.weight"
    change_weights(repo / UNET, lambda it: it.update({name: it[name][:1].clone()}))


def be_wider(repo: Path) -> None:
    """A text encoder whose config says another width."""
    change_json(repo / "text_encoder/config.json", lambda it: it.update(hidden_size="x"))


def be_infinite(repo: Path) -> None:
    """A number that is beyond all floats."""
    path = repo / "unet/config.json"
    replace(path, path.read_text().replace('"sample_size": 64', '"sample_size": 1e400'))


def quantize(repo: Path) -> None:
    """A UNet of bytes."""
    change_weights(
        repo / UNET, lambda it: it.update({"conv_in.weight": torch.zeros(2, dtype=torch.uint8)})
    )


def duplicate(repo: Path) -> None:
    """A text encoder with the same tensor with and without its prefix."""
    name = "final_layer_norm.weight"
    change_weights(repo / TEXT, lambda it: it.update({f"text_model.{name}": it[name].clone()}))


def empty_vae(repo: Path) -> None:
    """A VAE of a structure that is not known, without tensors."""
    change_json(repo / "vae/config.json", lambda config: config.update(layers_per_block=1))
    replace(repo / VAE, b"\x08\0\0\0\0\0\0\0{}      ")


def cut_off(repo: Path) -> None:
    """A file that ends too early."""
    replace(repo / UNET, (repo / UNET).read_bytes()[:-1000])


def page(repo: Path) -> None:
    """A page in a weights file's place."""
    replace(repo / UNET, "<html><title>Sign in</title>" + " " * 100)


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        pytest.param(lose_a_tensor, Reason.CONVERSION_FAILED, "conv_in.weight", id="lost tensor"),
        pytest.param(
            lose_a_part,
            Reason.CONVERSION_FAILED,
            "mid_block.resnets.0.conv1",
            id="part of a tensor",
        ),
        pytest.param(be_wider, Reason.CONVERSION_FAILED, "hidden_size is x", id="other width"),
        pytest.param(be_infinite, Reason.NOT_A_MODEL, "not valid JSON", id="infinite number"),
        pytest.param(quantize, Reason.UNSUPPORTED_FORMAT, "quantized", id="quantized weights"),
        pytest.param(duplicate, Reason.CONVERSION_FAILED, "two tensors", id="doubled tensor"),
        pytest.param(empty_vae, Reason.NOT_A_MODEL, "without tensors", id="no tensors"),
        pytest.param(cut_off, Reason.NOT_A_MODEL, "diffusion_pytorch_model", id="cut off"),
        pytest.param(page, Reason.NOT_A_MODEL, "HTML", id="HTML page"),
    ],
)
def test_damaged_weights_are_refused(repo, damage, reason, words):
    """Diffusers would fill gaps with random numbers, and say so in a warning."""
    damage(repo)
    error = refusal(repo)
    assert (error.reason, words in error.message) == (reason, True), error.message


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, Reason.UNSAFE_MODEL),
        ("unet/config.json", {"quantization_config": {"x": 1}}, Reason.UNSUPPORTED_FORMAT),
        ("scheduler/scheduler_config.json", {"prediction_type": []}, Reason.UNSUPPORTED_FORMAT),
        ("scheduler/scheduler_config.json", {"auto_map": {}}, Reason.UNSAFE_MODEL),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}, Reason.UNSAFE_MODEL),
        ("model_index.json", {"_class_name": "FluxPipeline"}, Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_configs_are_checked_again(repo, name, change, reason):
    """The converter does not rely on what the download checked."""
    change_json(repo / name, lambda value: value.update(change))
    assert refusal(repo).reason is reason


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
        (b"", Reason.NOT_A_MODEL, "not valid JSON"),
        (b"[]", Reason.NOT_A_MODEL, "not a JSON object"),
        (b"\xff\xfe", Reason.NOT_A_MODEL, "not valid JSON"),
        (index(_class_name=None), Reason.UNSAFE_MODEL, "custom pipeline"),
        (index(vae=["diffusers", "os.system"]), Reason.UNSUPPORTED_FORMAT, "os.system"),
        (index(vae=["os", "system"]), Reason.UNSAFE_MODEL, "os"),
        (index(vae=["transformers", "AutoencoderKL"]), Reason.UNSUPPORTED_FORMAT, "transformers"),
        (index(vae=["diffusers"]), Reason.UNSUPPORTED_FORMAT, "vae"),
        (index(vae=["diffusers", None]), Reason.UNSUPPORTED_FORMAT, "vae"),
        (index(vae="absent"), Reason.UNSUPPORTED_FORMAT, "lacks vae"),
        (index(tokenizer="absent"), Reason.UNSUPPORTED_FORMAT, "lacks tokenizer"),
        (index(text_encoder="absent"), Reason.UNSUPPORTED_FORMAT, "lacks text_encoder"),
        (index(safety_checker=["evil", "Checker"]), Reason.UNSAFE_MODEL, "evil"),
        (index(prior=["diffusers", "PriorTransformer"]), Reason.UNSUPPORTED_FORMAT, "prior"),
        (index(requires_safety_checker="x"), Reason.UNSUPPORTED_FORMAT, "requires_safety"),
        (index(custom={"a": 1}), Reason.UNSUPPORTED_FORMAT, "custom"),
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
def test_only_known_classes_get_through(content, reason, words):
    """What model_index.json names, diffusers imports."""
    with pytest.raises(LoaderError) as caught:
        parse_pipeline(content)
    assert (caught.value.reason, words in caught.value.message) == (reason, True), caught.value


def test_known_pipelines_are_read():
    """Dropped components are not loaded; options are kept."""
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


def test_a_second_text_encoder_alone_gets_its_name():
    """Under the first one's diffusers opens the refiner, and fails at the first prompt."""
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


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=6))
def test_any_json_is_taken_as_data_or_refused(value):
    """Untrusted configs raise nothing but a LoaderError, and come out without private keys."""
    content = json.dumps(value).encode()
    known = Pipeline(
        "StableDiffusionPipeline", {"unet": "UNet2DConditionModel", "scheduler": "X"}, {}
    )
    request = load_request(model_type="huggingface", url="org/name")
    with pytest.raises(LoaderError):
        parse_pipeline(content)
    try:
        parsed = parse_json(content, "config.json")
        configs = [
            component_config(parsed, "unet", known, request),
            scheduler_config(parsed, known, request),
        ]
    except LoaderError:
        return
    for config in configs:
        assert json.dumps(config)
        private = {key for key in config if key.startswith("_")}
        assert private <= {"_class_name", "_diffusers_version"}
        assert config["_class_name"] in ("UNet2DConditionModel", "X")
