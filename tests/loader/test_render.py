"""A load with spec.verify.render runs the folder as its readers do, and keeps the image."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from PIL import Image

from devkit.fakehub import FakeHub
from sd_api.names import PREVIEW_FILE
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import Progress, Stage
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from sd_loader.render import Rendered, render
from tests.support.loader.loadercli import Containers, failed
from tests.support.loader.loadercli import load_request as job_request
from tests.support.models import tinyrepo
from tests.support.models.checkpoints import save_safetensors, smallest_sd15, smallest_sdxl
from tests.support.models.conversions import conversion, convert_file
from tests.support.models.images import same_png

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"render": True, "steps": 1}
DECODER = "first_stage_model.decoder"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Converted]:
    """The folder of a converted small SD 1.5 checkpoint, and the result of the conversion."""
    root = tmp_path_factory.mktemp("sd-1")
    path = save_safetensors(root / "model.safetensors", smallest_sd15())
    return root / "out", convert_file(path, root / "out")


def refused(folder: Path, converted: Converted) -> str:
    """Render a folder that must fail and return the message."""
    with pytest.raises(LoaderError) as caught:
        render(folder, converted, conversion(verify=QUICK), lambda _: None)
    assert caught.value.reason is Reason.VERIFICATION_FAILED
    return caught.value.message


def converted_of(root: Path, tensors: dict[str, torch.Tensor]) -> tuple[Path, Converted]:
    """Convert a checkpoint with these tensors and return the folder and the result."""
    path = save_safetensors(root / "model.safetensors", tensors)
    return root / "out", convert_file(path, root / "out")


def small(folder: Path, converted: Converted) -> tuple[Path, Converted]:
    """Set a small image size in the UNet's config, for speed. Return both arguments."""
    change(folder / "unet" / "config.json", sample_size=16)
    return folder, converted


def change(path: Path, **values: object) -> None:
    """Change a config in place."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rendered(folder: Path, converted: Converted, **verify: object) -> Rendered:
    """Render a folder and return the result."""
    return render(folder, converted, conversion(verify={**QUICK, **verify}), lambda _: None)


# --- through the command line


@pytest.mark.slow
def test_preview_is_published_with_the_model(containers: Containers, hub: FakeHub) -> None:
    """The digest does not depend on preview.png. A rerun reports the same result."""
    path = save_safetensors(containers.store.parent / "tiny.safetensors", smallest_sd15())
    link = hub.serve_file("/tiny.safetensors", path)
    plain = containers.load(job_request(link, model_id="plain"))
    hub.forget()
    request = job_request(link, verify=QUICK)
    ended = containers.load(request)

    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert plain.result is not None
    assert ended.result.preview
    assert not plain.result.preview
    assert ended.result.artifact is not None
    assert plain.result.artifact is not None
    assert ended.result.artifact.digest == plain.result.artifact.digest
    assert ended.result.artifact.size_bytes == plain.result.artifact.size_bytes
    folder = containers.store / "model"
    with Image.open(folder / PREVIEW_FILE) as image:
        assert image.format == "PNG"
        assert image.size == (512, 512)
    receipt = json.loads((folder / ".sd-receipt.json").read_text())
    assert receipt["files"][PREVIEW_FILE]["size"] == (folder / PREVIEW_FILE).stat().st_size
    stages = [Progress.model_validate_json(line) for line in ended.stdout.splitlines()]
    assert any(
        progress.stage is Stage.VERIFYING and progress.percent is not None for progress in stages
    )
    assert all(request.path == "/tiny.safetensors" for request in hub.requests)
    assert containers.load(request, pod="pod-2").result == ended.result


@pytest.mark.slow
def test_model_that_renders_black_is_not_published(containers: Containers, hub: FakeHub) -> None:
    """The load leaves nothing on the volume."""
    tensors = smallest_sd15()
    tensors[f"{DECODER}.conv_out.weight"].zero_()
    tensors[f"{DECODER}.conv_out.bias"].fill_(-10)
    path = save_safetensors(containers.store.parent / "black.safetensors", tensors)
    request = job_request(hub.serve_file("/black", path), verify=QUICK)
    failed(containers.load(request), Reason.VERIFICATION_FAILED, "black")
    assert list(containers.store.iterdir()) == []


@pytest.mark.usefixtures("slim")
def test_render_is_refused_in_an_image_without_torch(containers: Containers, hub: FakeHub) -> None:
    """The load fails before it downloads anything."""
    request = job_request(f"{hub.url}/none", verify=QUICK)
    failed(containers.fetch(request), Reason.INVALID_SPEC, "spec.verify.render")
    assert hub.requests == []


# --- checks of the image


@pytest.mark.parametrize(
    ("weight", "bias", "why"),
    [
        pytest.param(0, -10, "the image is black", id="black", marks=pytest.mark.slow),
        pytest.param(0, 0.25, "the image has only one colour", id="uniform"),
        pytest.param(
            0,
            float("nan"),
            "the VAE computes NaN from finite latents",
            id="NaN",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_empty_image_is_refused(tmp_path: Path, weight: float, bias: float, why: str) -> None:
    """The decoder's last layer makes the image black, uniform or NaN."""
    tensors = smallest_sd15()
    tensors[f"{DECODER}.conv_out.weight"].fill_(weight)
    tensors[f"{DECODER}.conv_out.bias"].fill_(bias)
    assert refused(*small(*converted_of(tmp_path, tensors))) == f"rendered: {why}"


def test_nan_from_the_unet_is_not_blamed_on_the_vae(tmp_path: Path) -> None:
    """The latents show that the UNet computes NaN."""
    tensors = smallest_sd15()
    tensors["model.diffusion_model.out.2.bias"].fill_(float("nan"))
    assert "the latents are not finite" in refused(*small(*converted_of(tmp_path, tensors)))


@pytest.mark.slow
def test_vae_overflow_in_half_precision_is_detected_on_a_cpu(tmp_path: Path) -> None:
    """SDXL's own VAE overflows in this way unless its config sets force_upcast."""
    tensors = smallest_sdxl()
    tensors[f"{DECODER}.mid.block_1.conv2.weight"] *= 1e5 / 4
    folder, converted = small(*converted_of(tmp_path, tensors))
    change(folder / "vae" / "config.json", force_upcast=False)
    message = refused(folder, converted)
    assert "the latents are finite, but the VAE overflows in fp16" in message
    assert "spec.vae: {url: madebyollin/sdxl-vae-fp16-fix}" in message

    change(folder / "vae" / "config.json", force_upcast=True)
    assert rendered(folder, converted).preview is not None


def test_folder_that_does_not_open_fails_verification(
    sd1: tuple[Path, Converted], tmp_path: Path
) -> None:
    """The failure is permanent, not a crash that the Job retries."""
    folder = shutil.copytree(sd1[0], tmp_path / "folder")
    change(folder / "unet" / "config.json", cross_attention_dim=96)
    message = refused(folder, sd1[1])
    assert message.startswith("diffusers cannot open or run the converted model: ")


@pytest.mark.slow
def test_same_load_renders_the_same_image(sd1: tuple[Path, Converted], tmp_path: Path) -> None:
    """The seed is fixed. The spec sets the prompt and the number of steps."""
    folder = small(shutil.copytree(sd1[0], tmp_path / "folder"), sd1[1])[0]
    first, again, *others = (
        rendered(folder, sd1[1], **verify).preview
        for verify in ({}, {}, {"prompt": "a cat"}, {"steps": 2})
    )
    assert same_png(first, again)
    for one, other in itertools.combinations([first, *others], 2):
        assert not same_png(one, other)


@pytest.mark.parametrize(
    ("kind", "channels"),
    [
        pytest.param(
            StableDiffusionImg2ImgPipeline, 4, id="image to image", marks=pytest.mark.slow
        ),
        pytest.param(
            StableDiffusionInpaintPipeline, 4, id="inpainting, 4 channels", marks=pytest.mark.slow
        ),
        pytest.param(
            StableDiffusionInpaintPipeline, 9, id="inpainting, 9 channels", marks=pytest.mark.slow
        ),
        pytest.param(StableDiffusionInstructPix2PixPipeline, 8, id="instruct-pix2pix"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # warnings from save_pretrained
def test_image_pipelines_get_an_input_image(tmp_path: Path, kind: type, channels: int) -> None:
    """Inpainting pipelines also get a mask that covers the whole image."""
    parts = dict(tinyrepo.pipeline("sd15").components)
    # Private entries list the options that have their default value.
    config = {key: value for key, value in parts["unet"].config.items() if key[0] != "_"}
    parts["unet"] = UNet2DConditionModel.from_config(
        {**config, "in_channels": channels, "sample_size": 16}
    )
    kind(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    assert rendered(tmp_path, Converted({}, precision="fp32")).preview is not None


@pytest.mark.filterwarnings("ignore")  # warnings from save_pretrained
def test_video_pipeline_is_published_unrendered_with_a_warning(tmp_path: Path) -> None:
    """Rendering a video would take minutes, so the loader only opens the folder."""
    parts = tinyrepo.pipeline("sd15").components
    unet = UNet3DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    kept = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    TextToVideoSDPipeline(unet=unet, **kept).save_pretrained(tmp_path)
    made = rendered(tmp_path, Converted({}, precision="fp32"))
    assert made.preview is None
    assert made.warning == "not rendered: TextToVideoSDPipeline also takes num_frames"
