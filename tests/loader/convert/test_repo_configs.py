"""A repo's configs are published as diffusers and transformers read them, and hold nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.index import SCHEDULERS
from sd_loader.errors import LoaderError
from tests.support.models.repoconversions import (
    TEXT,
    change_json,
    convert_repo,
    publish_configs,
)
from tests.support.models.tinyrepo import copy_repo, replace

UNET, VAE, TEXT_ENCODER = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
EVIL = {
    "attn_implementation": "evil/kernel",
    "auto_map": {"AutoModel": "evil--payload.Mine"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "transformers_weights": "../../evil/model.safetensors",
}


def changed(repo: Path, name: str, **fields: Any) -> dict[str, Any]:
    """Change these fields in a config of the repo, and return the published config."""
    change_json(repo / name, lambda config: config.update(fields))
    return json.loads((publish_configs(repo) / name).read_text())


LEFT_OUT: list[Any] = [
    pytest.param(TEXT_ENCODER, {"text_config": "own"}, id="nested"),
    pytest.param(TEXT_ENCODER, {"model_type": "clip", "x": "own"}, id="another model type"),
    pytest.param(TEXT_ENCODER, {"model_type": "evil", "architectures": ["Evil"]}, id="its class"),
    pytest.param(
        TEXT_ENCODER, {"transformers_weights": EVIL["transformers_weights"]}, id="other weights"
    ),
    pytest.param(TEXT_ENCODER, {"fusion_config": {"x": {"y": "evil"}}}, id="fusion"),
    pytest.param(
        TEXT_ENCODER,
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "evil/kernel:X"}}},
        id="kernels",
    ),
    pytest.param(TEXT_ENCODER, {"return_dict": False, "id2label": {"0": "evil"}}, id="base"),
    pytest.param(UNET, {"x": {"auto_map": {"AutoModel": "evil.X"}}}, id="nested in a UNet"),
    pytest.param(UNET, {"_name_or_path": "/evil", "name_or_path": "/evil"}, id="paths"),
    pytest.param(UNET, {"_diffusers_version": "evil"}, id="version"),
    pytest.param(VAE, {"quantization_config": {}, "use_evil": True}, id="empty quantization"),
    pytest.param(SCHEDULER, {"evil": {"x": 1}, "tau_func": "evil"}, id="scheduler"),
    pytest.param(
        INDEX,
        {"trust_remote_code": True, "evil": 1, "torch_dtype": 7, "image_encoder": 5},
        id="options",
    ),
    pytest.param(INDEX, {"__class__": ["os", "evil"]}, id="a private component"),
]


@pytest.fixture(scope="module")
def plain(sd15, tmp_path_factory):
    """The folder with the published configs of the unchanged repo."""
    return publish_configs(copy_repo(sd15, tmp_path_factory.mktemp("plain") / "repo"))


@pytest.mark.parametrize(("name", "fields"), LEFT_OUT)
def test_keys_that_no_class_documents_are_left_out(repo, plain, name, fields):
    """The published folder is the same as that of a repo without these keys."""
    own = json.loads((repo / name).read_text())
    nested = {**own, **EVIL, "model_type": "clip_text_model"}
    fields = {key: nested if value == "own" else value for key, value in fields.items()}
    expected = json.loads((plain / name).read_text())
    if "_diffusers_version" in fields:
        del expected["_diffusers_version"]
    assert changed(repo, name, **fields) == expected


REFUSED: list[Any] = [
    (UNET, {"num_class_embeds": 2 * 10**9}, "num_class_embeds is 2000000000"),
    (UNET, {"num_class_embeds": 1000}, "unet lacks the tensor class_embedding.weight"),
    (
        UNET,
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 1 << 20},
        "projection_class_embeddings_input_dim is 1048576",
    ),
    (
        UNET,
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64},
        "unet lacks the tensor class_embedding.linear_1.weight",
    ),
    (
        UNET,
        {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 1 << 31},
        "encoder_hid_dim is 2147483648",
    ),
    (UNET, {"encoder_hid_dim": 64}, "unet lacks the tensor encoder_hid_proj.weight"),
    (UNET, {"time_embedding_dim": 1 << 31}, "time_embedding_dim is 2147483648"),
    (UNET, {"time_embedding_dim": 1 << 16}, "time_embedding.linear_1.weight has the shape"),
    (UNET, {"act_fn": "evil"}, "act_fn is evil; it should be gelu or mish"),
    (UNET, {"dropout": "x"}, "dropout is x; it should be a number from 0 to 1"),
    (UNET, {"mid_block_type": "evil"}, "mid_block_type is evil"),
    (UNET, {"layers_per_block": [64] * 4}, "unet lacks the tensor"),
    (VAE, {"scaling_factor": 0}, "scaling_factor is 0; it should be a number above 0"),
    (VAE, {"act_fn": "evil"}, "act_fn is evil"),
    (VAE, {"sample_size": None}, "sample_size is null"),
    (VAE, {"mid_block_add_attention": "no"}, "mid_block_add_attention is no"),
    (TEXT_ENCODER, {"hidden_act": "evil"}, "hidden_act is evil"),
    (TEXT_ENCODER, {"text_config": {"vocab_size": 1 << 31}}, "vocab_size is 2147483648"),
    (TEXT_ENCODER, {"text_config": {"hidden_size": 65536}}, "hidden_size is 65536"),
    (TEXT_ENCODER, {"num_attention_heads": 65537}, "num_attention_heads is 65537"),
    (SCHEDULER, {"num_train_timesteps": 2 * 10**9}, "num_train_timesteps is 2000000000"),
    (SCHEDULER, {"trained_betas": "x"}, "trained_betas is x"),
    (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 items; it should have 1000"),
    (SCHEDULER, {"beta_schedule": "../../evil"}, "beta_schedule is ../../evil; it should be"),
    (SCHEDULER, {"beta_start": -1}, "beta_start is -1"),
]


@pytest.mark.parametrize(("name", "fields", "words"), REFUSED)
def test_config_that_cannot_be_opened_is_refused(repo, name, fields, words):
    """A value that would take all memory, or with which the folder would not open, is refused."""
    with pytest.raises(LoaderError) as caught:
        changed(repo, name, **fields)
    expected = Reason.UNSUPPORTED_FORMAT if name == SCHEDULER else Reason.CONVERSION_FAILED
    assert caught.value.reason is expected
    assert words in caught.value.message
    assert caught.value.message.startswith(name.partition("/")[0])


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e400", "-1e400"])
def test_other_non_finite_numbers_are_refused_in_a_scheduler(repo, number):
    """NaN and Infinity in a scheduler's config are refused; -Infinity is a setting of diffusers."""
    text = (repo / SCHEDULER).read_text()
    replace(repo / SCHEDULER, text.replace("{", f'{{"lambda_min_clipped": {number},', 1))
    with pytest.raises(LoaderError, match=r"scheduler_config\.json is not valid JSON"):
        convert_repo(repo)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT_ENCODER, INDEX])
def test_infinity_is_refused_in_other_configs(repo, name):
    """-Infinity is refused in a config that is not a scheduler's."""
    replace(repo / name, (repo / name).read_text().replace("{", '{"x": -Infinity,', 1))
    with pytest.raises(LoaderError, match="not valid JSON"):
        convert_repo(repo)


def settings(config: Any) -> dict[str, Any]:
    """Return the settings of a scheduler, without private ones."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


INSTALLED = [name for name in SCHEDULERS if "dummy" not in getattr(diffusers, name).__module__]
"""The schedulers whose libraries are installed."""
# What `make test` runs: the usual ones, and those with a setting that is unlike other settings.
QUICK = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)


@pytest.mark.filterwarnings("ignore")  # numpy warns about code of diffusers
@pytest.mark.parametrize(
    "class_name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(INSTALLED)
    ],
)
def test_each_scheduler_is_published_as_diffusers_reads_it(repo, class_name):
    """The published scheduler has the settings that diffusers reads from the repo."""
    kind = getattr(diffusers, class_name)
    pndm = diffusers.PNDMScheduler.from_pretrained(repo, subfolder="scheduler")
    kind.from_config(pndm.config).save_pretrained(repo / "scheduler.new")
    replace(repo / SCHEDULER, (repo / "scheduler.new/scheduler_config.json").read_text())
    change_json(repo / INDEX, lambda index: index.update(scheduler=["diffusers", class_name]))
    out = publish_configs(repo)
    theirs = kind.from_pretrained(repo, subfolder="scheduler").config
    ours = kind.from_pretrained(out, subfolder="scheduler").config
    assert settings(ours) == settings(theirs)
    if class_name == "DPMSolverMultistepScheduler":
        assert ours.lambda_min_clipped == -math.inf
        assert "-Infinity" in (out / SCHEDULER).read_text()


def test_models_are_published_as_diffusers_reads_them(repo):
    """Each setting that the libraries read from the repo is the same in the published folder."""
    out, _ = convert_repo(repo)
    theirs = DiffusionPipeline.from_pretrained(repo)
    ours = DiffusionPipeline.from_pretrained(out)
    for name in ("unet", "vae"):
        assert settings(getattr(ours, name).config) == settings(getattr(theirs, name).config)
    ignored = {"_name_or_path", "architectures", "transformers_version", "dtype"}
    one, other = (it.text_encoder.config.to_dict() for it in (ours, theirs))
    assert {key: it for key, it in one.items() if key not in ignored} == {
        key: it for key, it in other.items() if key not in ignored
    }


def test_config_of_a_whole_clip_model_is_read_as_transformers_reads_it(repo):
    """Of the config of a whole CLIP model, the nested config of the text encoder is read."""
    path = repo / TEXT_ENCODER
    own = json.loads(path.read_text())
    whole = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": 3,
        "text_config": {**own, "hidden_act": "gelu"},
        "vision_config": {"hidden_size": 8},
    }
    replace(path, json.dumps(whole))
    out = publish_configs(repo)
    read, published = (CLIPTextConfig.from_pretrained(it / "text_encoder") for it in (repo, out))
    for key in own.keys() - {"architectures", "torch_dtype", "dtype", "transformers_version"}:
        assert getattr(read, key) == getattr(published, key)
    assert published.hidden_act == "gelu"
    assert json.loads((out / TEXT_ENCODER).read_text())["model_type"] == "clip_text_model"


@pytest.mark.parametrize("layers", [11, 1])
def test_last_layers_of_a_text_encoder_can_be_skipped(repo, layers):
    """With a smaller num_hidden_layers, the output equals that of diffusers with the repo."""
    change_json(repo / TEXT_ENCODER, lambda config: config.update(num_hidden_layers=layers))
    out, _ = convert_repo(repo)
    names = load_file(out / TEXT)
    assert {name.split(".")[3] for name in names if ".layers." in name} == set(
        map(str, range(layers))
    )
    ids = torch.arange(77).unsqueeze(0)
    theirs, ours = (CLIPTextModel.from_pretrained(it / "text_encoder") for it in (repo, out))
    assert ours.config.num_hidden_layers == layers
    with torch.no_grad():
        assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_layers_that_the_file_does_not_have_are_refused(repo):
    """A num_hidden_layers above the file's is refused: the layers would have random numbers."""
    with pytest.raises(LoaderError, match="num_hidden_layers is 13; it should be 12"):
        changed(repo, TEXT_ENCODER, num_hidden_layers=13)


SCHEDULER_RULES: list[tuple[str, dict[str, Any], str]] = [
    (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "use_exponential_sigmas": True},
        "use_exponential_sigmas and use_karras_sigmas are true; only one of them can be",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver"},
        "algorithm_type is dpmsolver; it needs final_sigmas_type: sigma_min",
    ),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "deis"},
        "algorithm_type is deis; it needs final_sigmas_type: sigma_min",
    ),
    (
        "UniPCMultistepScheduler",
        {"shift_terminal": 0.1},
        "shift_terminal is set; it needs use_flow_sigmas: true",
    ),
]


@pytest.mark.filterwarnings("ignore")  # diffusers warns of deprecated algorithms
@pytest.mark.parametrize(("class_name", "fields", "words"), SCHEDULER_RULES)
def test_scheduler_whose_settings_exclude_each_other_is_refused(repo, class_name, fields, words):
    """Settings with which diffusers could not make the scheduler are refused."""
    with pytest.raises((ValueError, ImportError)):
        getattr(diffusers, class_name)(**fields)
    change_json(repo / INDEX, lambda index: index.update(scheduler=["diffusers", class_name]))
    with pytest.raises(LoaderError) as caught:
        changed(repo, SCHEDULER, **fields)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == f"{SCHEDULER}: {words}"
