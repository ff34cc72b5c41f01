"""A LoRA becomes a folder that diffusers opens like the file, number for number."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.models import adapters
from tests.support.models.adapters import (
    LEGACY,
    NAME,
    loaded,
    lora,
    opened,
    pipeline,
    save,
    trained,
    without_text_model,
)
from tests.support.models.catalog import Row
from tests.support.models.conversions import convert_file, identical

FAMILIES = {"sd15": ("SD 1.x", "sd-1"), "sd-2": ("SD 2.x", "sd-2"), "sdxl": ("SDXL", "sdxl")}
CONTAINERS = ("safetensors", "bin")


@dataclass(frozen=True)
class Case:
    """A LoRA by family, naming style and container."""

    family: str
    style: str
    container: str

    @property
    def row(self) -> Row:
        """The case as a row of the catalog."""
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
CASES.append(Case("sd15", "kohya", LEGACY))
ROWS: tuple[Row, ...] = tuple(case.row for case in CASES)


# `make test` runs each family, and each style but "kohya sgm", which the test of alphas covers.
# test_checkpoint.py covers the format of .bin files. `make test-all` runs all cases.
QUICK = (
    Case("sd15", "kohya", LEGACY),
    Case("sd15", "peft", "safetensors"),
    Case("sd-2", "old diffusers", "safetensors"),
    Case("sdxl", "diffusers", "safetensors"),
)


def each(cases: list[Case], quick: tuple[Case, ...] = QUICK) -> pytest.MarkDecorator:
    """Run a test once for each of the cases; the cases that are not in `quick` are slow tests."""
    rows = [
        pytest.param(case, id=str(case), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize("case", rows)


def metadata_of(folder):
    """The metadata of the published file."""
    with safe_open(folder / f"{NAME}.safetensors", "pt") as file:
        return file.metadata()


def assert_same(ours, theirs):
    """Assert that layers, parameters and scales are equal."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        same = identical(ours[name], value) if name[-5:] != "scale" else ours[name] == value
        assert same, name


@each(CASES)
def test_diffusers_opens_the_folder_like_the_file(tmp_path, case):
    """All layers of the UNet and the text encoders are equal and have the same scale."""
    tensors = lora(case.family, case.style)
    path = save(tmp_path / "origin", tensors, case.container)

    # The spec must name the family: SD 1 and SD 2 have the same attention layers, which differ
    # only in width, and these tiny widths fit neither.
    base_model = FAMILIES[case.family][1] if case.style == "old diffusers" else None
    converted = convert_file(path, tmp_path / "out", model_type="lora", base_model=base_model)

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


WITHOUT_TEXT_MODEL = [case for case in CASES if case.container == "safetensors"]


@each(WITHOUT_TEXT_MODEL, quick=QUICK[2:3])
def test_names_without_text_model_are_read_and_published_with_it(tmp_path, case):
    """Since 5.6, transformers leaves `text_model` out of a CLIPTextModel's names.

    Older versions expect it, and so does the second text encoder of SDXL in every version.
    """
    tensors = lora(case.family, case.style)
    flat = {without_text_model(name): tensor for name, tensor in tensors.items()}
    assert flat.keys() != tensors.keys()
    base_model = FAMILIES[case.family][1]

    converted, out = loaded(tmp_path, flat, base_model=base_model)

    assert (converted.base_model, converted.warnings) == (base_model, ())
    published = load_file(out / f"{NAME}.safetensors")
    assert published.keys() == tensors.keys()
    assert all(identical(published[name], tensor) for name, tensor in tensors.items())
    assert_same(opened(case.family, out), opened(case.family, tensors))
    if case.family != "sdxl":  # diffusers cannot read these names of a second text encoder
        assert_same(opened(case.family, out), opened(case.family, flat))


@pytest.mark.parametrize(
    "style",
    ["kohya", *(pytest.param(style, marks=pytest.mark.slow) for style in ("diffusers", "peft"))],
)
def test_names_without_text_model_of_the_first_text_encoder_are_read_as_diffusers_reads_them(
    tmp_path, style
):
    """The layers of SDXL's first text encoder load with the same values as from the file.

    transformers leaves out `text_model` only in this text encoder.
    """
    flat = {
        name if "_2." in name or "te2_" in name else without_text_model(name): tensor
        for name, tensor in lora("sdxl", style).items()
    }
    converted, out = loaded(tmp_path, flat)
    assert converted.base_model == "sdxl"
    assert_same(opened("sdxl", out), opened("sdxl", flat))


def test_scale_in_the_metadata_of_a_text_encoder_without_text_model_is_kept(tmp_path):
    """The scale is kept if the metadata names layers by their last part only, such as `fc1`."""
    pipe, layers, config = trained(component="text_encoder", target_modules=["q_proj", "fc1"])
    pipe.save_lora_weights(
        tmp_path / "origin",
        text_encoder_lora_layers=layers,
        text_encoder_lora_adapter_metadata=config,
    )
    path = tmp_path / "origin" / f"{NAME}.safetensors"
    assert not any("text_model" in name for name in load_file(path))
    convert_file(path, tmp_path / "out", model_type="lora")
    theirs = opened("sd15", path.parent)
    assert {theirs[name] for name in theirs if name.endswith("scale")} == {2.0}
    assert_same(opened("sd15", tmp_path / "out"), theirs)


def test_kohya_alphas_set_the_scale(tmp_path):
    """The scale is alpha divided by rank for matrices and convolutions in every component."""
    _, out = loaded(tmp_path, lora("sdxl", "kohya sgm"))
    found = opened("sdxl", out)
    scales = {name: scale for name, scale in found.items() if name.endswith("scale")}
    for name, scale in scales.items():
        half = found[name.removesuffix("scale") + "lora_A.x.weight"]
        alpha = 2.0 if half.ndim == 2 else 1.0
        assert scale == alpha / half.shape[0], name
    assert len(set(scales.values())) == 3


@pytest.mark.parametrize(
    "style",
    [
        *(pytest.param(style, marks=pytest.mark.slow) for style in ("old diffusers", "diffusers")),
        "peft",
    ],
)
def test_layers_of_a_unet_alone_get_their_prefix(tmp_path, style):
    """Names without `unet.`, which load_lora_weights ignores with a warning, get this prefix."""
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


def test_mixed_styles_of_diffusers_training_are_read(tmp_path):
    """All layers are read from a file whose attention layers alone have diffusers' old names.

    diffusers' training scripts write such files, and diffusers detects one style by the first name.
    """
    peft, diffusers = lora("sd15", "peft", text=False), lora("sd15", "diffusers", text=False)
    mixed = {name: tensor for name, tensor in peft.items() if "attn" not in name}
    mixed |= {name: tensor for name, tensor in diffusers.items() if "attn" in name}
    _, out = loaded(tmp_path, mixed)
    assert_same(opened("sd15", out), opened("sd15", peft))


# Two other tests check the scale of a plain LoRA: in metadata of a text encoder, and of a UNet
# alone.
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="LoRA", marks=pytest.mark.slow),
        pytest.param({"use_dora": True}, id="DoRA"),
    ],
)
def test_scale_in_peft_metadata_is_kept(tmp_path, options):
    """The metadata with the scale is published, so diffusers loads the LoRA with this scale."""
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


def test_metadata_of_a_unet_alone_gets_the_prefix(tmp_path):
    """Layers and metadata without a prefix get `unet.` as theirs.

    `unet.save_lora_adapter` writes them without one.
    """
    _, layers, config = trained()
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({key: value for key, value in config.items() if key != "peft_type"})
    converted, out = loaded(tmp_path, layers, {"lora_adapter_metadata": text})
    found = opened("sd15", out)
    assert {found[name] for name in found if name.endswith("scale")} == {2.0}
    # These layers have no width of a family's text encoder, so the family may remain unknown.
    assert converted.base_model is None or converted.base_model == "sd-1"


def test_metadata_is_kept_up_to_a_limit(tmp_path):
    """Kohya stores its training options in the metadata. A warning names a too long entry."""
    tensors = lora("sd15", "kohya", text=False)
    metadata = {
        "ss_network_dim": "4",
        "modelspec.title": "Fish",
        "ss_tag_frequency": "x" * (7 << 19),
    }
    converted, out = loaded(tmp_path, tensors, metadata)
    kept = {key: text for key, text in metadata.items() if key != "ss_tag_frequency"}
    assert metadata_of(out) == {"format": "pt", **kept}
    assert converted.warnings == ("metadata too long to publish: ss_tag_frequency",)


def test_a_lora_with_eight_megabytes_of_metadata_is_read_like_one_without(tmp_path):
    """Kohya writes the tags of every image of a data set into one entry, which is not published."""
    tensors = lora("sd15", "kohya", text=False)
    counts = ", ".join([f'"tag {number}": {number}' for number in range(400_000)])
    tags = f'{{"images": {{{counts}}}}}'
    assert len(tags) > 8_000_000
    metadata = {"ss_tag_frequency": tags, "ss_base_model_version": "sd_v1", "ss_network_dim": "4"}
    converted, out = loaded(tmp_path, tensors, metadata)
    assert converted.warnings == ("metadata too long to publish: ss_tag_frequency",)
    kept = {key: text for key, text in metadata.items() if key != "ss_tag_frequency"}
    assert metadata_of(out) == {"format": "pt", **kept}
    assert_same(opened("sd15", out), opened("sd15", tmp_path / "origin"))


@pytest.mark.parametrize(("revision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_applies_to_weights_but_not_to_alphas(tmp_path, revision, dtype):
    """Weights get the type that spec.revision names. Alphas keep their own type."""
    tensors = lora("sd15", "kohya", text=False)
    converted, out = loaded(tmp_path, tensors, revision=revision)
    published = load_file(out / f"{NAME}.safetensors")
    assert converted.precision == revision
    for name, tensor in tensors.items():
        wanted = tensor if name.endswith("alpha") else tensor.to(dtype)
        assert identical(published[name], wanted), name


def test_precision_is_kept_without_a_revision(tmp_path):
    """Without spec.revision, weights keep their type, even double precision."""
    tensors = {
        name: tensor.to(torch.float64) for name, tensor in lora("sd15", "peft", text=False).items()
    }
    _, out = loaded(tmp_path, tensors)
    published = load_file(out / f"{NAME}.safetensors")
    assert all(identical(published[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_always_refused(tmp_path, value):
    """NaN and infinite values are refused even without verify.weights: LoRAs are small."""
    tensors = lora("sd15", "kohya", text=False)
    name = next(name for name in tensors if "attn2_to_k.lora_up" in name)
    tensors[name][0, 0] = value
    with pytest.raises(LoaderError, match="attn2_to_k") as caught:
        loaded(tmp_path, tensors)
    assert caught.value.reason is Reason.VERIFICATION_FAILED
