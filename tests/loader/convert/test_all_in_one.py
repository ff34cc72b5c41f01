"""The pipeline of SD 3 or FLUX.1 in one file: what is planned, from names and shapes alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from devkit.layers import Shapes, under
from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.write.files import FolderPlan, WeightsFile
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.allinone import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    T5_PREFIX,
    UNET,
    whole,
)
from tests.support.models.conversions import conversion
from tests.support.models.encoders import CLIP_G, CLIP_L, T5, clip_shapes


def file_of(shapes: Shapes, dtype: Dtype = Dtype.F16) -> TensorFile:
    """Return a file with tensors of these shapes, without their content."""
    tensors = {name: Tensor(-1, dtype, shape, 0) for name, shape in shapes.items()}
    return TensorFile(Path("model"), -1, "safetensors", tensors)


@pytest.fixture
def opened() -> Iterator[OpenFiles]:
    """Keeps open the files that a plan opens; they are closed after the test."""
    with ExitStack() as stack:
        yield OpenFiles(stack)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder with T5's tokenizer, as the fetch stage leaves it."""
    for name in ("tokenizer_2", "tokenizer_3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spiece.model").write_bytes(b"pieces")
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
        (tmp_path / name / "odd.py").write_text("code")
    return tmp_path


def planned(
    opened: OpenFiles, configs: Path | None, shapes: Shapes, dtype: Dtype = Dtype.F16, **fields: Any
) -> FolderPlan:
    """Plan a file of these shapes."""
    return plan_file(file_of(shapes, dtype), conversion(**fields), opened, configs=configs)


def config_of(plan: FolderPlan, path: str) -> Any:
    """Return a planned JSON file."""
    (found,) = (file for file in plan.files if file.path == path)
    assert not isinstance(found, WeightsFile)
    return json.loads(found.content)


def test_whole_sd3_becomes_a_pipeline(opened: OpenFiles, configs: Path) -> None:
    """Sizes in the configs are those of the shapes; the class is that of SD 3."""
    plan = planned(opened, configs, whole("sd-3"))
    assert (plan.base_model, plan.pipeline_class) == ("sd-3", "StableDiffusion3Pipeline")
    assert plan.warnings == ()
    assert {file.path.partition("/")[0] for file in plan.weights} == {
        "transformer",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "vae",
    }
    config = config_of(plan, "transformer/config.json")
    assert config["num_layers"] == 2
    assert config["num_attention_heads"] == 2
    assert (config["pos_embed_max_size"], config["sample_size"]) == (4, 8)
    assert config["qk_norm"] == "rms_norm"
    assert config["dual_attention_layers"] == [0, 1]
    assert config["pooled_projection_dim"] == CLIP_L + CLIP_G
    assert config_of(plan, "text_encoder_3/config.json")["d_kv"] == 64
    assert config_of(plan, "text_encoder/config.json")["torch_dtype"] == "float16"
    assert config_of(plan, "vae/config.json")["latent_channels"] == 16
    paths = {file.path for file in plan.files}
    assert {"tokenizer_3/spiece.model", "tokenizer_2/merges.txt"} <= paths
    assert "tokenizer_3/odd.py" not in paths


def test_encoder_without_a_projection_gets_one_that_changes_nothing(
    opened: OpenFiles, configs: Path
) -> None:
    """SD 3's CLIP-L gets an identity matrix as its projection, which no file has."""
    plan = planned(opened, configs, whole("sd-3"))
    (encoder,) = (file for file in plan.weights if file.path.startswith("text_encoder/"))
    (item,) = (item for item in encoder.items if item.name == "text_projection.weight")
    source = item.source
    assert isinstance(source, Tensor)
    content = os.pread(source.fd, source.nbytes, source.offset)
    one, zero = b"\x00\x3c", b"\x00\x00"
    assert content[:4] == one + zero
    assert content.count(one) == CLIP_L
    assert content[(CLIP_L + 1) * 2 :][:2] == one


@pytest.mark.parametrize(("dtype", "wo"), [(Dtype.F32, "F32"), (Dtype.F16, "F16")])
def test_module_of_t5_stays_in_fp32_if_fp16_would_narrow_it(
    opened: OpenFiles, configs: Path, dtype: Dtype, wo: str
) -> None:
    """The modules `wo` of T5 are in fp32 if fp16 would narrow them: their results need it.

    The config names the type of T5's other tensors.
    """
    plan = planned(opened, configs, whole("sd-3"), dtype, revision="fp16")
    (encoder,) = (file for file in plan.weights if file.path.startswith("text_encoder_3/"))
    types = {item.name: item.dtype.label for item in encoder.items}
    assert types.pop("encoder.block.0.layer.1.DenseReluDense.wo.weight") == wo
    assert set(types.values()) == {"F16"}
    assert config_of(plan, "text_encoder_3/config.json")["torch_dtype"] == "float16"


def test_sd3_without_t5_is_published_without_it(opened: OpenFiles) -> None:
    """The pipeline works without T5, so a warning is enough; no tokenizer is downloaded."""
    shapes = {name: shape for name, shape in whole("sd-3").items() if "t5xxl" not in name}
    assert needs(file_of(shapes), conversion()) == Needs(family="sd-3")
    plan = planned(opened, None, shapes)
    index = config_of(plan, "model_index.json")
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    assert not any("_3" in file.path for file in plan.files)
    assert plan.warnings[0].startswith("the file has no T5 (text_encoder_3): the pipeline works")


@pytest.mark.parametrize("guidance", [True, False])
def test_whole_flux_becomes_a_pipeline(opened: OpenFiles, configs: Path, *, guidance: bool) -> None:
    """The guidance tells dev from schnell: their schedulers and repos differ."""
    shapes = whole("flux", vae="vae.")
    if not guidance:
        shapes = {name: shape for name, shape in shapes.items() if "guidance_in" not in name}
    name = "dev" if guidance else "schnell"
    wanted = Needs(family="flux", config_repo=f"black-forest-labs/FLUX.1-{name}")
    assert needs(file_of(shapes), conversion()) == wanted
    plan = planned(opened, configs, shapes)
    assert (plan.base_model, plan.pipeline_class) == ("flux", "FluxPipeline")
    config = config_of(plan, "transformer/config.json")
    assert config["guidance_embeds"] is guidance
    assert (config["num_layers"], config["num_single_layers"]) == (2, 2)
    scheduler = config_of(plan, "scheduler/scheduler_config.json")
    assert scheduler["use_dynamic_shifting"] is guidance
    assert "tokenizer_2/spiece.model" in {file.path for file in plan.files}


@pytest.mark.parametrize("prefix", [CLIP_L_PREFIX, CLIP_G_PREFIX])
def test_clip_may_lack_its_prefix(opened: OpenFiles, configs: Path, prefix: str) -> None:
    """The published names are the same with `text_model.` in the file and without."""
    shapes = whole("sd-3")
    flat = {
        name.replace("text_model.", "") if name.startswith(prefix) else name: shape
        for name, shape in shapes.items()
    }
    both = [planned(opened, configs, one) for one in (shapes, flat)]
    one, other = ({file.path: file.header for file in plan.weights} for plan in both)
    assert one == other


@pytest.mark.parametrize(
    ("lacking", "components"),
    [
        ((CLIP_L_PREFIX,), ("text_encoder",)),
        ((CLIP_G_PREFIX,), ("text_encoder_2",)),
        (("first_stage_model.",), ("vae",)),
        (("text_encoders.", "first_stage_model."), ("text_encoder", "text_encoder_2", "vae")),
    ],
)
def test_missing_components_are_named(
    opened: OpenFiles, lacking: tuple[str, ...], components: tuple[str, ...]
) -> None:
    """A repo can give the components; without one, the message names the missing ones."""
    shapes = {name: s for name, s in whole("sd-3").items() if not name.startswith(lacking)}
    needed = needs(file_of(shapes), conversion())
    assert needed.family == "sd-3"
    assert needed.transformer is not None
    assert needed.whole_file
    words = " and ".join(components) if len(components) == 1 else "text encoders and VAE"
    with pytest.raises(LoaderError, match=rf"of Stable Diffusion 3\.5, without its {words}: name"):
        planned(opened, None, shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            under(CLIP_L_PREFIX, clip_shapes(2 * CLIP_L)),
            "the file mixes components of different models",
            id="CLIP of another width",
        ),
        pytest.param(
            {f"{T5_PREFIX}encoder.block.1.layer.0.layer_norm.weight": (T5,)},
            "a tensor is missing: text_encoders.t5xxl.transformer.encoder.block.1.",
            id="half a layer of T5",
        ),
        pytest.param(
            {f"{UNET}joint_blocks.1.x_block.attn.proj.bias": (3,)}, "[3]; as ", id="a width"
        ),
        pytest.param(
            {name: (32,) for name in whole("sd-3") if ".ln_" in name},
            "the attention heads of the transformer are 32 wide; those of sd-3 are 64",
            id="heads of another width",
        ),
    ],
)
def test_contradicting_components_are_refused(
    opened: OpenFiles, change: Shapes, message: str
) -> None:
    """The file is refused: diffusers could not open a folder with these components."""
    with pytest.raises(LoaderError) as caught:
        planned(opened, None, whole("sd-3") | change)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"inner": 96}, "is 96 wide, which is not a multiple of 64"),
        ({"patch": 4}, "reads patches of 4 latents; sd-3 reads patches of 2"),
    ],
    ids=["a width between two numbers of heads", "patches"],
)
def test_sizes_that_give_no_config_need_a_repo(
    opened: OpenFiles, sizes: dict[str, int], message: str
) -> None:
    """The file has no config. If its sizes do not determine one, a repo must have it."""
    with pytest.raises(LoaderError) as caught:
        planned(opened, None, whole("sd-3", **sizes))
    assert message in caught.value.message
    assert "spec.components.from" in caught.value.message


def test_tokenizer_that_names_code_is_refused(opened: OpenFiles, configs: Path) -> None:
    """A tokenizer's setting that names code is refused: the repo may come from a mirror."""
    (configs / "tokenizer_3/tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(LoaderError, match="asks for code") as caught:
        planned(opened, configs, whole("sd-3"))
    assert caught.value.reason is Reason.UNSAFE_MODEL


def test_tokenizer_keeps_its_known_settings_only(opened: OpenFiles, configs: Path) -> None:
    """Unknown settings of T5's tokenizer are not published."""
    known = {"extra_ids": 100, "tokenizer_class": "T5Tokenizer"}
    unknown = {"vocab_file": "/etc/passwd", "sp_model_kwargs": {"model_file": "/etc/passwd"}}
    name = "tokenizer_3/tokenizer_config.json"
    (configs / name).write_text(json.dumps(known | unknown))
    files = {file.path: file for file in planned(opened, configs, whole("sd-3")).files}
    assert json.loads(files[name].content) == known


def test_repo_without_the_tokenizer_is_refused(opened: OpenFiles, tmp_path: Path) -> None:
    """The message names the repo and the folder."""
    with pytest.raises(LoaderError, match=r"stable-diffusion-3\.5-medium has neither") as caught:
        planned(opened, tmp_path, whole("sd-3"))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_spec_that_names_another_family_is_refused(opened: OpenFiles, configs: Path) -> None:
    """A spec.baseModel of another family is refused; the file's own family is accepted."""
    found = planned(opened, configs, whole("sd-3"), base_model=BaseModelName.SD3)
    assert (found.base_model, found.variant) == ("sd-3", "3.5_medium")
    with pytest.raises(LoaderError) as caught:
        planned(opened, configs, whole("sd-3"), base_model=BaseModelName.FLUX)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message == (
        "spec.baseModel is flux, but the file is the pipeline of Stable Diffusion 3.5 in one file"
    )


def test_field_without_effect_is_refused(opened: OpenFiles, configs: Path) -> None:
    """The message names the field and the file."""
    with pytest.raises(LoaderError) as caught:
        planned(opened, configs, whole("sd-3"), prediction_type="v_prediction")
    assert caught.value.message == (
        "spec.predictionType does not apply: the file is the pipeline of Stable Diffusion 3.5 in"
        " one file"
    )
