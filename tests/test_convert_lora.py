"""A LoRA becomes a folder that diffusers opens as it opens the file itself, number for number."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import adapters
import pytest
import torch
from adapters import lora, opened, pipeline
from catalog import Row
from checkpoints import save_safetensors
from conversions import convert_file, identical
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError

FAMILIES = {"sd15": ("SD 1.x", "sd1"), "sd2": ("SD 2.x", "sd2"), "sdxl": ("SDXL", "sdxl")}
CONTAINERS = ("safetensors", "bin")
NAME = "pytorch_lora_weights"
UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED


@dataclass(frozen=True)
class Case:
    """A LoRA: for which family, named in which style, in which container."""

    family: str
    style: str
    container: str

    @property
    def row(self) -> Row:
        """It as a line of the catalog."""
        title, _ = FAMILIES[self.family]
        return Row(
            model_type="lora",
            architecture=f"{title}, {self.style} names",
            container=self.container,
            peer="load_lora_weights(file)",
            opens_with="load_lora_weights(folder)",
        )

    def __str__(self) -> str:
        return str(self.row)


CASES = [
    Case(family, style, container)
    for family in FAMILIES
    for style in adapters.STYLES
    for container in CONTAINERS
    if style != "kohya sgm" or family == "sdxl"
]
ROWS: tuple[Row, ...] = tuple(case.row for case in CASES)


def save(folder: Path, tensors, container="safetensors", metadata=None) -> Path:
    """The file under the name by which diffusers finds it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.{container}"
    if container == "safetensors":
        return save_safetensors(path, tensors, metadata)
    torch.save(tensors, path)
    return path


def loaded(tmp_path, tensors, metadata=None, **fields):
    """What the loader makes of these tensors, and the folder."""
    out = tmp_path / "out"
    path = save(tmp_path / "origin", tensors, metadata=metadata)
    return convert_file(path, out, model_type="lora", **fields), out


def refusal(tmp_path, tensors, metadata=None, **fields) -> LoaderError:
    """Why the loader refuses these tensors."""
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, tensors, metadata, **fields)
    assert not list((tmp_path / "out").iterdir())
    assert caught.value.message.isprintable()
    return caught.value


def metadata_of(folder):
    """What the published file says of itself."""
    with safe_open(folder / f"{NAME}.safetensors", "pt") as file:
        return file.metadata()


def assert_same(ours, theirs):
    """The same adapter: layers, parameters and scales."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        same = identical(ours[name], value) if name[-5:] != "scale" else ours[name] == value
        assert same, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diffusers_opens_the_folder_as_it_opens_the_file(tmp_path, case):
    """All layers of UNet and text encoders, bit for bit, at the same scale."""
    tensors = lora(case.family, case.style)
    path = save(tmp_path / "origin", tensors, case.container)

    # Attention alone is built alike in SD 1 and 2; of these widths neither has any.
    said = FAMILIES[case.family][1] if case.style == "old diffusers" else None
    converted = convert_file(path, tmp_path / "out", model_type="lora", base_model=said)

    assert converted.files.keys() == {f"{NAME}.safetensors"}
    assert converted.base_model == FAMILIES[case.family][1]
    assert (converted.precision, converted.pipeline_class) == ("fp16", None)
    assert converted.warnings == ()
    published = load_file(tmp_path / "out" / f"{NAME}.safetensors")
    assert published.keys() == tensors.keys()
    assert all(identical(published[name], tensor) for name, tensor in tensors.items())
    ours = opened(case.family, tmp_path / "out", local_files_only=True)
    assert_same(ours, opened(case.family, path.parent, local_files_only=True))
    halves = [name for name in tensors if name.endswith(("down.weight", "lora_A.weight"))]
    assert len([name for name in ours if name.endswith("scale")]) == len(halves)


def test_alphas_of_kohya_are_in_effect(tmp_path):
    """The scale is alpha by rank, for matrices and for convolutions, in every component."""
    _, out = loaded(tmp_path, lora("sdxl", "kohya sgm"))
    found = opened("sdxl", out)
    scales = {name: scale for name, scale in found.items() if name.endswith("scale")}
    for name, scale in scales.items():
        half = found[name.removesuffix("scale") + "lora_A.x.weight"]
        alpha = 2.0 if half.ndim == 2 else 1.0
        assert scale == alpha / half.shape[0], name
    assert len(set(scales.values())) == 3


@pytest.mark.parametrize("style", ["old diffusers", "diffusers", "peft"])
def test_a_unet_alone_is_named_so_that_diffusers_finds_it(tmp_path, style):
    """Of names without `unet.` load_lora_weights loads nothing, and only warns."""
    tensors = {
        name.removeprefix("unet."): tensor
        for name, tensor in lora("sd15", style, text=False).items()
    }
    _, out = loaded(tmp_path, tensors)
    pipe = pipeline("sd15")
    try:
        pipe.unet.load_lora_adapter(tensors, prefix=None, adapter_name="x")
        theirs = adapters.adapter_of(pipe)
    finally:
        pipe.unload_lora_weights()
    assert theirs
    assert_same(opened("sd15", out), theirs)


def test_two_styles_as_diffusers_own_training_writes_them_are_read(tmp_path):
    """Its export renames the attention layers only, and its import then goes by the first name."""
    peft, diffusers = lora("sd15", "peft", text=False), lora("sd15", "diffusers", text=False)
    mixed = {name: tensor for name, tensor in peft.items() if "attn" not in name}
    mixed |= {name: tensor for name, tensor in diffusers.items() if "attn" in name}
    _, out = loaded(tmp_path, mixed)
    assert_same(opened("sd15", out), opened("sd15", peft))


def trained(**options):
    """The UNet's LoRA as PEFT keeps it, with its configuration."""
    pipe = pipeline("sd15")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k"], **options)
    try:
        pipe.unet.add_adapter(config, adapter_name="x")
        generator = torch.Generator().manual_seed(0)
        for name, parameter in pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
        return pipe, get_peft_model_state_dict(pipe.unet, adapter_name="x"), config.to_dict()
    finally:
        pipe.unload_lora_weights()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_the_scale_in_pefts_metadata_is_kept(tmp_path, options):
    """Diffusers keeps it beside the tensors; without it the scale would be another."""
    pipe, layers, config = trained(**options)
    pipe.save_lora_weights(
        tmp_path / "origin", unet_lora_layers=layers, unet_lora_adapter_metadata=config
    )
    path = tmp_path / "origin" / f"{NAME}.safetensors"
    convert_file(path, tmp_path / "out", model_type="lora")
    theirs = opened("sd15", path.parent)
    assert {theirs[name] for name in theirs if name.endswith("scale")} == {2.0}
    assert any("magnitude" in name for name in theirs) == bool(options)
    assert_same(opened("sd15", tmp_path / "out"), theirs)


def test_the_metadata_of_a_unet_alone_is_named_like_its_layers(tmp_path):
    """As `unet.save_lora_adapter` writes it: neither names nor metadata say whose they are."""
    _, layers, config = trained()
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({key: value for key, value in config.items() if key != "peft_type"})
    converted, out = loaded(tmp_path, layers, {"lora_adapter_metadata": text})
    found = opened("sd15", out)
    assert {found[name] for name in found if name.endswith("scale")} == {2.0}
    # Self attention and the cross attention's query: nothing here is as wide as a family's text.
    assert converted.base_model is None or converted.base_model == "sd1"


def test_metadata_is_kept_and_bounded(tmp_path):
    """Kohya says there how it was trained; what would not fit a header is left out by name."""
    tensors = lora("sd15", "kohya", text=False)
    said = {"ss_network_dim": "4", "modelspec.title": "Fish", "ss_tag_frequency": "x" * (5 << 20)}
    converted, out = loaded(tmp_path, tensors, said)
    kept = {key: text for key, text in said.items() if key != "ss_tag_frequency"}
    assert metadata_of(out) == {"format": "pt", **kept}
    assert converted.warnings == ("metadata too long to publish: ss_tag_frequency",)


@pytest.mark.parametrize(("revision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_is_for_weights_not_for_scales(tmp_path, revision, dtype):
    """Only spec.revision changes a type, and never that of an alpha."""
    tensors = lora("sd15", "kohya", text=False)
    converted, out = loaded(tmp_path, tensors, revision=revision)
    published = load_file(out / f"{NAME}.safetensors")
    assert converted.precision == revision
    for name, tensor in tensors.items():
        wanted = tensor if name.endswith("alpha") else tensor.to(dtype)
        assert identical(published[name], wanted), name


def test_any_precision_passes_through(tmp_path):
    """Even one that nothing computes in, since nobody asked for another."""
    tensors = {
        name: tensor.to(torch.float64) for name, tensor in lora("sd15", "peft", text=False).items()
    }
    _, out = loaded(tmp_path, tensors)
    published = load_file(out / f"{NAME}.safetensors")
    assert all(identical(published[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_always_found(tmp_path, value):
    """Such files are small: nobody needs to ask for the scan."""
    tensors = lora("sd15", "kohya", text=False)
    name = next(name for name in tensors if "attn2_to_k.lora_up" in name)
    tensors[name][0, 0] = value
    with pytest.raises(LoaderError, match="attn2_to_k") as caught:
        loaded(tmp_path, tensors)
    assert caught.value.reason is Reason.VERIFICATION_FAILED


def changed(tensors, ending, make):
    """The tensors with one of that ending replaced, or left out, by a function."""
    name = next(name for name in tensors if name.endswith(ending))
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    return rest | make(name, tensors[name])


def kohya():
    """A sound LoRA of one component."""
    return lora("sd15", "kohya", text=False)


ATTENTION = "attn2_to_k.lora_down.weight"
ZERO = torch.zeros(4, 4)

REFUSED = [
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda _n, _t: {}), CONTRADICTS, "lacks", id="no down"
    ),
    pytest.param(
        lambda: changed(kohya(), "attn2_to_k.lora_up.weight", lambda _n, _t: {}),
        CONTRADICTS,
        "lacks its lora_B.weight (or lora_up)",
        id="no up",
    ),
    pytest.param(
        lambda: kohya() | {"lora_unet_mid_block_attentions_9_proj_in.alpha": torch.tensor(1.0)},
        CONTRADICTS,
        "alpha alone",
        id="an alpha alone",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t[:-1]}),
        CONTRADICTS,
        "no two halves",
        id="ranks",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t[:, 1:].clone()}),
        CONTRADICTS,
        "in sd1 down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v is [32, 63]",
        id="width",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t.to(torch.int32)}),
        CONTRADICTS,
        "no floating-point numbers",
        id="integers",
    ),
    pytest.param(
        lambda: changed(kohya(), ".alpha", lambda n, _t: {n: torch.ones(2)}),
        CONTRADICTS,
        "should be one number",
        id="two alphas",
    ),
    pytest.param(
        lambda: kohya() | dict.fromkeys(["lora_unet_x.lora_down.weight"], ZERO),
        CONTRADICTS,
        "lacks",
        id="half a layer of nothing",
    ),
    pytest.param(
        lambda: (
            kohya()
            | {f"lora_unet_x.lora_{half}.weight": torch.zeros(4, 4) for half in ("down", "up")}
        ),
        CONTRADICTS,
        "the UNet of sd1 has no layer for lora_unet_x",
        id="unknown layer",
    ),
    pytest.param(lambda: kohya() | {"x": ZERO}, UNSUPPORTED, "named like x", id="unknown key"),
    pytest.param(
        lambda: kohya() | lora("sd15", "peft", text=False), UNSUPPORTED, "mixes", id="mixed styles"
    ),
    pytest.param(
        lambda: lora("sdxl", "kohya") | lora("sdxl", "kohya sgm"),
        UNSUPPORTED,
        "in two ways",
        id="two namings",
    ),
    pytest.param(
        lambda: {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": ZERO},
        UNSUPPORTED,
        "LoHa",
        id="LoHa",
    ),
    pytest.param(lambda: kohya() | {"lora_unet_x.lokr_w1": ZERO}, UNSUPPORTED, "LoKr", id="LoKr"),
    pytest.param(
        lambda: kohya() | {"lora_unet_x.dora_scale": ZERO}, UNSUPPORTED, "dora_scale", id="DoRA"
    ),
    pytest.param(
        lambda: kohya() | {"bundle_emb.x.string_to_param.*": ZERO},
        UNSUPPORTED,
        "embeddings in it",
        id="bundle",
    ),
    pytest.param(
        lambda: {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": ZERO},
        CONTRADICTS,
        "lacks",
        id="half of FLUX",
    ),
    pytest.param(
        lambda: {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ZERO},
        UNSUPPORTED,
        "a LoRA of FLUX",
        id="FLUX",
    ),
    pytest.param(
        lambda: {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": ZERO},
        UNSUPPORTED,
        "a LoRA of another model",
        id="another transformer",
    ),
    pytest.param(
        lambda: {"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": ZERO},
        UNSUPPORTED,
        "adapter_config.json",
        id="PEFT alone",
    ),
    pytest.param(
        lambda: (
            lora("sd15", "diffusers", text=False)
            | {"unet.mid_block.attentions.0.proj_in.alpha": torch.tensor(1.0)}
        ),
        UNSUPPORTED,
        "alphas in diffusers' style",
        id="alphas that diffusers leaves out",
    ),
    pytest.param(
        lambda: {"model.diffusion_model.input_blocks.0.0.weight": ZERO},
        UNSUPPORTED,
        "a checkpoint: it needs spec.modelType: custom_ckpt",
        id="a checkpoint",
    ),
    pytest.param(
        lambda: {"<cat>": torch.zeros(1, 768)},
        UNSUPPORTED,
        "it needs spec.modelType: embeddings",
        id="an embedding",
    ),
    pytest.param(
        lambda: {"control_model.time_embed.0.weight": ZERO},
        UNSUPPORTED,
        "it needs spec.modelType: controlnet",
        id="a ControlNet",
    ),
    pytest.param(
        lambda: {
            name: tensor
            for name, tensor in lora("sd15", "kohya").items()
            if name.startswith("lora_te_") and "q_proj" in name
        },
        UNSUPPORTED,
        "does not read these layers of the text_encoder",
        id="text layers that diffusers takes for none",
    ),
]


@pytest.mark.parametrize(("make", "reason", "message"), REFUSED)
def test_what_is_wrong_is_refused_by_name(tmp_path, make, reason, message):
    """Before anything is written, with the tensor's name."""
    error = refusal(tmp_path, make())
    assert error.reason is reason
    assert message in error.message


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"unet.megatron_core": "os"}, Reason.UNSAFE_MODEL, "megatron_core"),
        ({"unet.init_lora_weights": "eva"}, Reason.UNSAFE_MODEL, "init_lora_weights"),
        ({"unet.target_modules": "(a+)+$"}, Reason.UNSAFE_MODEL, "target_modules"),
        ({"unet.rank_pattern": {"(a+)+$": 4}}, Reason.UNSAFE_MODEL, "rank_pattern"),
        ({"unet.lora_alpha": math.inf}, Reason.UNSAFE_MODEL, "lora_alpha"),
        ({"unet.r": 16}, CONTRADICTS, "the rank 16"),
    ],
    ids=["a module to import", "files to read", "pattern", "patterns", "no number", "another rank"],
)
def test_metadata_must_be_harmless(tmp_path, change, reason, message):
    """Whoever loads the LoRA makes PEFT's configuration of it."""
    _, layers, config = trained()
    layers = {f"unet.{name}": tensor for name, tensor in layers.items()}
    config["target_modules"] = sorted(config["target_modules"])
    plain = {f"unet.{key}": value for key, value in config.items() if key != "peft_type"}
    assert loaded(tmp_path / "good", layers, {"lora_adapter_metadata": json.dumps(plain)})
    text = json.dumps({**plain, **change})
    error = refusal(tmp_path / "bad", layers, {"lora_adapter_metadata": text})
    assert error.reason is reason
    assert message in error.message


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000], ids=["cut", "[]", "x", "deep"])
def test_metadata_that_is_no_object_is_refused(tmp_path, text):
    """It would fail in the hands of whoever loads the LoRA."""
    error = refusal(tmp_path, lora("sd15", "peft", text=False), {"lora_adapter_metadata": text})
    assert error.reason is CONTRADICTS
