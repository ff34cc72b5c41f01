"""Checkpoints become the folders that diffusers itself makes of them, tensor for tensor."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import save_ckpt, save_safetensors, tiny_configs, tiny_sd15, tiny_sdxl
from conversions import convert_file
from safetensors.torch import load_file

from sd_api.load import Stage
from sd_api.reasons import Reason
from sd_loader.convert import Converted
from sd_loader.errors import LoaderError

MAKERS = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# transformers writes CLIPTextModel without its prefix from 5.6 on, which 4.57 reads as noise.
WITHOUT_PREFIX = "text_encoder/model.safetensors"
PREFIX = "text_model."


@dataclass(frozen=True)
class Case:
    """What is converted. revision: None publishes the source's own precision."""

    architecture: str
    container: str
    precision: str
    revision: str | None = None

    @property
    def published(self) -> str:
        """Precision of the result."""
        return self.revision or self.precision

    def __str__(self) -> str:
        to = f" to {self.revision}" if self.revision else ""
        return f"{self.architecture} {self.precision} {self.container}{to}"


CASES = [
    Case("sd15", "safetensors", "fp16"),
    Case("sd15", "ckpt", "fp16"),
    Case("sd15", "ckpt", "fp32"),
    Case("sd15", "ckpt", "fp32", "fp16"),
    Case("sd15", "safetensors", "fp32", "bf16"),
    Case("sd15", "safetensors", "bf16", "fp32"),
    Case("sdxl", "safetensors", "fp16"),
    Case("sdxl", "ckpt", "fp32", "fp16"),
]


class Workshop:
    """Checkpoints, our folders and diffusers' own, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ours: dict[Case, Converted] = {}

    def file(self, case: Case) -> Path:
        """The checkpoint."""
        folder = self.root / f"{case.architecture} {case.precision} {case.container}"
        path = folder / f"model.{case.container}"
        if not path.exists():
            folder.mkdir()
            save = save_safetensors if case.container == "safetensors" else save_ckpt
            save(path, MAKERS[case.architecture](DTYPES[case.precision]))
        return path

    def ours(self, case: Case) -> tuple[Path, Converted]:
        """What the loader makes of it."""
        out = self.root / f"ours of {case}"
        if case not in self._ours:
            self._ours[case] = convert_file(self.file(case), out, revision=case.revision)
        return out, self._ours[case]

    def theirs(self, case: Case) -> Path:
        """What diffusers makes of it."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        out = self.root / f"theirs of {case}"
        if not out.exists():
            configs = self.root / f"configs {case.architecture}"
            if not configs.exists():
                tiny_configs(configs, case.architecture)
            kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
            kind[case.architecture].from_single_file(
                str(self.file(case)),
                config=str(configs),
                local_files_only=True,
                dtype=DTYPES[case.published],
            ).save_pretrained(out)
        return out


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """One workshop for all tests: they only read what it holds."""
    root = tmp_path_factory.mktemp("workshop")
    yield Workshop(root)
    shutil.rmtree(root)  # a gigabyte


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_weights_are_those_of_diffusers(workshop, case):
    """Byte for byte the files that diffusers saves; the names in one of them differ, see PREFIX."""
    ours, converted = workshop.ours(case)
    theirs = workshop.theirs(case)

    paths = {path.relative_to(theirs).as_posix() for path in theirs.rglob("*.safetensors")}
    assert paths == {path for path in converted.files if path.endswith(".safetensors")}
    for path in paths - {WITHOUT_PREFIX}:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    mine, yours = load_file(ours / WITHOUT_PREFIX), load_file(theirs / WITHOUT_PREFIX)
    assert all(name.startswith(PREFIX) for name in mine)
    assert mine.keys() == {PREFIX + name.removeprefix(PREFIX) for name in yours}
    for name, tensor in yours.items():
        assert identical(mine[PREFIX + name.removeprefix(PREFIX)], tensor), name


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in type, shape and every bit."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


# diffusers 0.42 has not caught up with numpy 2 and torch 2.13.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_opens_the_folder_and_renders(workshop, architecture, container):
    """Offline, without a warning about the weights, configured as the reference is."""
    from diffusers import DiffusionPipeline

    case = Case(architecture, container, "fp16")
    folder, converted = workshop.ours(case)

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images

    assert type(pipeline).__name__ == converted.pipeline_class
    assert images.shape == (1, 64, 64, 3)
    assert images.std() > 0.01
    reference = DiffusionPipeline.from_pretrained(workshop.theirs(case), local_files_only=True)
    for name in ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2"):
        if hasattr(pipeline, name):
            mine, yours = public_config(pipeline, name), public_config(reference, name)
            # The published scheduler configs hold a few entries for other schedulers.
            assert {key: mine.get(key) for key in yours} == yours, name


def public_config(pipeline, component):
    """A component's config without what says where and when it was written."""
    config = getattr(pipeline, component).config
    values = config if isinstance(config, dict) else config.to_dict()
    bookkeeping = ("_", "transformers_version", "dtype", "torch_dtype")
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if not key.startswith(bookkeeping) and value not in (None, False)
    }


def test_the_container_does_not_matter(workshop):
    """The same weights give the same files and digests, whatever they came in."""
    for architecture in MAKERS:
        _, one = workshop.ours(Case(architecture, "safetensors", "fp16"))
        _, other = workshop.ours(Case(architecture, "ckpt", "fp16"))
        assert one == other


@pytest.mark.parametrize("case", CASES[:3] + CASES[6:7], ids=str)
def test_the_result_describes_the_folder(workshop, case):
    """Digests and sizes are those of the files, and no file is left out."""
    import hashlib

    folder, converted = workshop.ours(case)

    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    assert converted.files.keys() == found.keys()
    for name, path in found.items():
        content = path.read_bytes()
        assert converted.files[name].sha256 == hashlib.sha256(content).hexdigest()
        assert converted.files[name].size == len(content)
        assert path.stat().st_mode & 0o777 == 0o644
    assert converted.precision == case.published
    assert converted.base_model == {"sd15": "sd1", "sdxl": "sdxl"}[case.architecture]
    assert converted.prediction_type == "epsilon"
    assert converted.warnings == ()


def test_progress_is_reported_up_to_the_end(tmp_path):
    """Converting counts the bytes of the output, then verifying begins."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    progress = []
    converted = convert_file(path, tmp_path / "out", progress)
    last = [entry for entry in progress if entry.stage is Stage.CONVERTING][-1]
    assert last.bytes_done == last.bytes_total == sum(f.size for f in converted.files.values())
    assert progress[-1].stage is Stage.VERIFYING


def test_a_mixed_checkpoint_stays_mixed(tmp_path):
    """Without a revision each tensor keeps its own precision."""
    tensors = tiny_sd15(torch.float16)
    for name in tensors:
        if name.startswith("first_stage_model."):
            tensors[name] = tensors[name].float()
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    converted = convert_file(path, tmp_path / "out")
    vae = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    text = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert converted.precision == "mixed"
    assert {tensor.dtype for tensor in vae.values()} == {torch.float32}
    assert text["torch_dtype"] == "float16"


def test_the_averaged_weights_are_taken_when_asked_for(tmp_path):
    """`weights: ema` replaces the UNet and nothing else; diffusers' own option does the same."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tensors = tiny_sd15(ema=True)
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    standard = convert_file(path, tmp_path / "standard").files
    averaged = convert_file(path, tmp_path / "averaged", weights="ema").files

    unet = "unet/diffusion_pytorch_model.safetensors"
    assert {name for name in standard if standard[name] != averaged[name]} == {unet}
    expected = convert_ldm_unet_checkpoint(tensors, {"layers_per_block": 2}, extract_ema=True)
    found = load_file(tmp_path / "averaged" / unet)
    assert found.keys() == expected.keys()
    assert all(identical(found[name], expected[name]) for name in found)


def test_a_text_encoder_of_other_depth_is_recognised(tmp_path):
    """Layers that are not there at all are no contradiction."""
    tensors = {name: value for name, value in tiny_sd15().items() if ".layers.11." not in name}
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    convert_file(path, tmp_path / "out")
    config = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert config["num_hidden_layers"] == 11


def test_old_names_of_the_text_encoder_are_understood(tmp_path):
    """Early fine-tunes leave `text_model.` out."""
    tensors = tiny_sd15()
    renamed = {
        name.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): v
        for name, v in tensors.items()
    }
    one = convert_file(save_safetensors(tmp_path / "new.safetensors", tensors), tmp_path / "new")
    old = convert_file(save_safetensors(tmp_path / "old.safetensors", renamed), tmp_path / "old")
    assert one.files == old.files


SCHEDULERS = [
    pytest.param({}, {}, {"prediction_type": "epsilon"}, id="nothing said"),
    pytest.param(
        {"v_pred": torch.tensor([])}, {}, {"prediction_type": "v_prediction"}, id="marked"
    ),
    pytest.param(
        {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
        {},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "_class_name": "DDIMScheduler",
        },
        id="marked, zero terminal SNR",
    ),
    pytest.param(
        {"v_pred": torch.tensor([])},
        {"prediction_type": "epsilon"},
        {"prediction_type": "epsilon"},
        id="the spec decides",
    ),
]


@pytest.mark.parametrize(("marks", "fields", "expected"), SCHEDULERS)
def test_the_scheduler_knows_what_the_unet_predicts(tmp_path, marks, fields, expected):
    """Marker tensors count, spec.predictionType counts more; diffusers builds that scheduler."""
    from diffusers import DDIMScheduler, PNDMScheduler

    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15() | marks)
    converted = convert_file(path, tmp_path / "out", **fields)
    folder = tmp_path / "out"
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    assert expected.items() <= config.items()
    assert converted.prediction_type == config["prediction_type"]
    assert index["scheduler"] == ["diffusers", config["_class_name"]]
    kind = {"DDIMScheduler": DDIMScheduler, "PNDMScheduler": PNDMScheduler}
    loaded = kind[config["_class_name"]].from_pretrained(folder, subfolder="scheduler")
    assert loaded.config.prediction_type == config["prediction_type"]


def test_upcast_attention_goes_into_the_unets_config(tmp_path):
    """spec.upcastAttention; absent, the config does not speak of it."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    convert_file(path, tmp_path / "as is")
    convert_file(path, tmp_path / "upcast", upcast_attention=True)
    assert "upcast_attention" not in (tmp_path / "as is/unet/config.json").read_text()
    config = json.loads((tmp_path / "upcast/unet/config.json").read_text())
    assert config["upcast_attention"] is True


UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
EMA_BIAS = "model_ema.diffusion_modelout0bias"
CONTRADICTIONS = [
    pytest.param("first_stage_model.", {}, {}, "no VAE", id="no VAE"),
    pytest.param("cond_stage_model.", {}, {}, "no text encoder", id="no text encoder"),
    pytest.param(
        f"{UNET}middle_block.1.norm.bias",
        {},
        {},
        f"missing: {UNET}middle_block.1.norm.bias",
        id="a tensor is missing",
    ),
    pytest.param(
        None,
        {f"{UNET}out.0.weight": torch.zeros(48)},
        {},
        f"{UNET}out.0.weight has the shape [48]; as conv_norm_out.weight it should be [32]",
        id="a shape contradicts the others",
    ),
    pytest.param(
        None,
        {f"{UNET}out.0.weight": torch.zeros(32, dtype=torch.int64)},
        {},
        f"{UNET}out.0.weight holds no floating-point numbers",
        id="integers for weights",
    ),
    pytest.param(
        None,
        {f"{UNET}input_blocks.12.0.op.weight": torch.zeros(1)},
        {},
        f"does not have: {UNET}input_blocks.12.0.op.weight",
        id="a level more than the architecture has",
    ),
    pytest.param(
        None,
        {f"{TEXT}encoder.layers.12.x": torch.zeros(1)},
        {},
        f"does not have: {TEXT}encoder.layers.12.x",
        id="a text layer more",
    ),
    pytest.param("model_ema.", {}, {"weights": "ema"}, "no EMA weights", id="no averages"),
    pytest.param(
        EMA_BIAS, {}, {"weights": "ema"}, f"missing: {EMA_BIAS}", id="an average is missing"
    ),
]


@pytest.mark.parametrize(("without", "extra", "fields", "message"), CONTRADICTIONS)
def test_a_contradiction_is_named(tmp_path, without, extra, fields, message):
    """The first tensor that does not fit, and how; nothing is written."""
    tensors = {
        name: value
        for name, value in tiny_sd15(ema=True).items()
        if without is None or not name.startswith(without)
    }
    path = save_safetensors(tmp_path / "model.safetensors", tensors | extra)
    with pytest.raises(LoaderError, match=re.escape(message)) as caught:
        convert_file(path, tmp_path / "out", **fields)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert list((tmp_path / "out").iterdir()) == []


def test_what_has_no_place_is_left_out_and_said(tmp_path):
    """A VAE's training loss is not part of the pipeline."""
    tensors = tiny_sd15() | {"first_stage_model.loss.discriminator.main.0.bias": torch.zeros(2)}
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    (warning,) = convert_file(path, tmp_path / "out").warnings
    assert "1 tensors have no place" in warning
    assert "first_stage_model.loss.discriminator.main.0.bias" in warning


def test_an_impossible_width_is_refused(tmp_path):
    """Groups of 32 must divide a width, which no shape says: the folder would not open."""
    from checkpoints import random_tensors
    from ldm_layouts import Widths, sd15_shapes

    widths = Widths("sd15", unet=40, vae=32, text=(64,), text_layers=(1,), vocabulary=300)
    tensors = random_tensors(sd15_shapes(widths), torch.float16)
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(LoaderError, match="unet: a width of 40 does not divide into 32") as caught:
        convert_file(path, tmp_path / "out")
    assert caught.value.reason is Reason.CONVERSION_FAILED


UNAVAILABLE = [
    pytest.param({"verify": {"render": True}}, "spec.verify.render", id="render"),
    pytest.param({"vae": {"url": "stabilityai/sd-vae-ft-mse"}}, "spec.vae", id="another VAE"),
    pytest.param({"original_config": "https://x.y/z.yaml"}, "spec.originalConfig", id="config"),
]


@pytest.mark.parametrize(("fields", "message"), UNAVAILABLE)
def test_what_this_version_cannot_do_is_not_ignored(tmp_path, fields, message):
    """A field that would have no effect is refused by its name."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    with pytest.raises(LoaderError, match=message) as caught:
        convert_file(path, tmp_path / "out", **fields)
    assert caught.value.reason is Reason.INVALID_SPEC


def test_a_pickle_is_refused_where_safetensors_are_asked_for(tmp_path):
    """spec.fromSafetensors: true; false lets content decide."""
    path = save_ckpt(tmp_path / "model.ckpt", tiny_sd15())
    with pytest.raises(LoaderError, match=r"spec\.fromSafetensors") as caught:
        convert_file(path, tmp_path / "refused", from_safetensors=True)
    assert caught.value.reason is Reason.UNSAFE_MODEL
    assert convert_file(path, tmp_path / "taken", from_safetensors=False).files


def test_a_lightning_checkpoint_converts_too(tmp_path):
    """Diffusers refuses the pickle of a training program; its weights are as good as others."""
    tensors = tiny_sd15()
    plain = save_safetensors(tmp_path / "plain.safetensors", tensors)
    lightning = save_ckpt(tmp_path / "lightning.ckpt", tensors, lightning=True)
    one = convert_file(plain, tmp_path / "one")
    assert convert_file(lightning, tmp_path / "other").files == one.files
