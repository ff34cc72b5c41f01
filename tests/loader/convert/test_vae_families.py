"""VAEs of SD 3 and FLUX.1 as single files are planned from names and shapes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from devkit.layers import Shapes
from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.component import plan_component
from sd_loader.convert.plan.extras import plan_extras
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.write.files import FolderPlan
from sd_loader.errors import LoaderError
from sd_loader.handover import ExtraComponent
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion
from tests.support.models.familyrepos import lay
from tests.support.models.vaeshapes import original_vae, vae_of_diffusers, vae_repo

GUESS = (
    "the file does not say for which base model the VAE is: taken for flux's (scaling_factor"
    " 0.3611); for another set spec.baseModel"
)
SD3_BLOCK = {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (3, 1)}
SDXL_LABEL = {"conditioner.embedders.0.x": (1,)}


@pytest.fixture
def opened() -> Iterator[OpenFiles]:
    """The files that a plan opens. They are closed after the test."""
    with ExitStack() as stack:
        yield OpenFiles(stack)


def planned(
    opened: OpenFiles, shapes: Shapes, metadata: dict[str, str] | None = None, **fields: Any
) -> FolderPlan:
    """Plan a file of these shapes as a VAE."""
    tensors = {name: Tensor(-1, Dtype.BF16, shape, 0) for name, shape in shapes.items()}
    file = TensorFile(Path("ae"), -1, "safetensors", tensors, metadata or {})
    return plan_file(file, conversion(model_type="vae", **fields), opened)


def config_of(plan: FolderPlan) -> dict[str, Any]:
    """Return the planned config."""
    (config,) = (file for file in plan.files if file.path == "config.json")
    content: dict[str, Any] = json.loads(config.content)  # type: ignore[union-attr]
    return content


SHOWN = [
    pytest.param(original_vae(16), None, None, "flux", True, id="nothing shows it"),
    pytest.param(original_vae(16), None, "sd-3", "sd-3", False, id="the spec states it"),
    pytest.param(
        original_vae(16),
        {"modelspec.architecture": "stable-diffusion-3.5-large/vae"},
        None,
        "sd-3",
        False,
        id="the metadata state it",
    ),
    pytest.param(
        {**original_vae(16, "first_stage_model."), **SD3_BLOCK},
        None,
        None,
        "sd-3",
        False,
        id="the transformer beside it shows it",
    ),
    pytest.param(vae_of_diffusers(16), None, "flux", "flux", False, id="diffusers' layout"),
]


@pytest.mark.parametrize(("shapes", "metadata", "given", "family", "guessed"), SHOWN)
def test_a_vae_of_16_channels_gets_the_config_of_its_family(
    opened: OpenFiles,
    shapes: Shapes,
    metadata: dict[str, str] | None,
    given: str | None,
    family: str,
    guessed: bool,
) -> None:
    """The VAEs of SD 3 and FLUX.1 have the same tensors, so a guess causes a warning."""
    plan = planned(opened, shapes, metadata, base_model=given)
    assert (plan.base_model, plan.pipeline_class) == (family, "AutoencoderKL")
    config = config_of(plan)
    factors = {"flux": (0.3611, 0.1159), "sd-3": (1.5305, 0.0609)}[family]
    assert (config["scaling_factor"], config["shift_factor"]) == factors
    assert (config["latent_channels"], config["use_quant_conv"]) == (16, False)
    assert (GUESS in plan.warnings) is guessed
    (weights,) = plan.weights
    assert {item.name: item.source.shape for item in weights.items} == vae_of_diffusers(16)


@pytest.mark.parametrize(
    ("shapes", "given", "reason", "words"),
    [
        pytest.param(
            original_vae(16),
            "sdxl",
            Reason.INVALID_SPEC,
            "spec.baseModel is sdxl, but the file is a VAE of 16 latent channels, as sd-3 and flux"
            " have it",
            id="16 channels, not SDXL's",
        ),
        pytest.param(
            {**original_vae(4), **SDXL_LABEL},
            "flux",
            Reason.INVALID_SPEC,
            "spec.baseModel is flux, but the file is a VAE of 4 latent channels, as",
            id="4 channels, not FLUX's",
        ),
        pytest.param(
            original_vae(32),
            None,
            Reason.UNSUPPORTED_FORMAT,
            "the file is a VAE of 32 latent channels, such as FLUX.2's: use its repo in diffusers'"
            " layout",
            id="FLUX.2's",
        ),
        pytest.param(
            {**original_vae(16), "quant_conv.weight": (32, 32, 1, 1)},
            None,
            Reason.CONVERSION_FAILED,
            "the VAE has a tensor that its architecture does not have: quant_conv.weight",
            id="a convolution that neither has",
        ),
        pytest.param(
            {**vae_of_diffusers(16), "decoder.conv_in.weight": (32, 16, 3, 3, 3)},
            None,
            Reason.UNSUPPORTED_FORMAT,
            "the file is a VAE of another family, such as Wan",
            id="three dimensions",
        ),
        pytest.param(
            {"encoder.downsamples.0.residual.0.gamma": (1,), "decoder.conv1.weight": (1,)},
            None,
            Reason.UNSUPPORTED_FORMAT,
            "the file is a VAE of another family, such as Wan",
            id="Wan's own layout",
        ),
    ],
)
def test_a_vae_of_another_family_is_refused(
    opened: OpenFiles, shapes: Shapes, given: str | None, reason: Reason, words: str
) -> None:
    """The message names the number of channels, the family, or the unknown tensor."""
    with pytest.raises(LoaderError) as caught:
        planned(opened, shapes, base_model=given)
    assert caught.value.reason is reason
    assert words in caught.value.message


@pytest.mark.parametrize(("factor", "family"), [(0.3611, "flux"), (1.5305, "sd-3"), (0.5, None)])
def test_the_config_of_a_repo_shows_the_family(
    opened: OpenFiles, tmp_path: Path, factor: float, family: str | None
) -> None:
    """The family of a repo's VAE is recognised by scaling_factor in its config."""
    repo = lay(vae_repo(16, scaling_factor=factor), tmp_path)
    plan = plan_component(repo, conversion(model_type="vae"), opened)
    assert (plan.base_model, plan.pipeline_class) == (family, "AutoencoderKL")


def test_a_repo_of_another_family_than_the_spec_is_refused(
    opened: OpenFiles, tmp_path: Path
) -> None:
    """The message names both families."""
    repo = lay(vae_repo(16, scaling_factor=0.3611), tmp_path)
    with pytest.raises(LoaderError) as caught:
        plan_component(repo, conversion(model_type="vae", base_model="sd-3"), opened)
    assert caught.value.message == "spec.baseModel is sd-3, but the repo's vae is of flux"


@pytest.mark.parametrize("kind", ["file", "repo"])
def test_a_vae_of_another_family_cannot_replace_a_checkpoints_own(
    opened: OpenFiles, tmp_path: Path, kind: Literal["file", "repo"]
) -> None:
    """A VAE of 16 channels is refused for a checkpoint of SDXL, whose latents have 4 channels."""
    repo = vae_repo(16, scaling_factor=0.3611)
    lay(repo, tmp_path / "vae/repo")
    (tmp_path / "vae/file").write_bytes(repo["diffusion_pytorch_model.safetensors"])
    extra = ExtraComponent(components=("vae",), kind=kind, path=f"vae/{kind}")
    companions = Companions(tmp_path, extras=(extra,))
    with pytest.raises(LoaderError) as caught:
        plan_extras(companions, BaseModelName.SDXL, conversion(), opened)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    words = {
        "file": "the file is a VAE of 16 latent channels, as sd-3 and flux have it, and not for"
        " sdxl",
        "repo": "it is a VAE of flux, whose latents do not have the 4 channels of sdxl",
    }
    assert caught.value.message == f"vae from elsewhere: {words[kind]}"
