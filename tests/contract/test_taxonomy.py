"""The families of models, and how people write their names."""

from __future__ import annotations

import re

import pytest

from sd_api.choices import ArtifactFormat, BaseModelName, LoraFormat, ModelType
from sd_api.taxonomy import FAMILIES, LOADED, canonical, listed, published_format

SPELLINGS = {
    "sd-1": "sd1, SD1, sd15, SD 1.5, SD 1.4, SD 1.x, sd-1.5, stable-diffusion-v1-5, SD 1.5 LCM,"
    " SD 1.5 Hyper, Stable Diffusion 1.5, stable_diffusion_v1",
    "sd-2": "SD2, SD 2.0, SD 2.1, SD 2.x, SD 2.1 768, SD 2.0 768, stable-diffusion-2-1-base,"
    " stable-diffusion-v2-768-v",
    "sdxl": "SDXL, sd-xl, SDXL 1.0, SDXL 0.9, SDXL 1.0 LCM, SDXL Turbo, SDXL Lightning, SDXL Hyper,"
    " SDXL Distilled, stable-diffusion-xl-base-1.0, stable_diffusion_xl, Stable Diffusion XL, Pony,"
    " Pony Diffusion V6 XL, Illustrious, NoobAI, Illustrious XL",
    "sdxl-refiner": "SDXL Refiner, sdxl_refiner, stable-diffusion-xl-refiner-1.0, SDXL 1.0 refiner",
    "sd-3": "SD3, sd3.5, SD 3, SD 3.5, SD 3.5 Medium, SD 3.5 Large, SD 3.5 Large Turbo,"
    " stable-diffusion-3-medium, Stable Diffusion 3.x",
    "flux": "FLUX, Flux.1 D, Flux.1 S, FLUX.1, FLUX.1-dev, flux1-schnell, FLUX.1-Fill-dev,"
    " Flux.1 Krea, Flux.1 Kontext, FLUX.1-Kontext-dev",
    "flux2": "FLUX.2, flux-2, Flux.2 D, FLUX.2-dev, Flux.2 Klein 9B, Flux.2 Klein 9B-base,"
    " Flux.2 Klein 4B, FLUX.2-klein-base",
    "flux3": "FLUX.3, flux-3",
    "chroma": "Chroma, Chroma1-HD, Chroma1-Base",
    "qwen-image": "Qwen, Qwen-Image, qwen_image, Qwen-Image-Edit, Qwen-Image-Edit-2509",
    "z-image": "ZImage, Z-Image-Turbo, ZImageTurbo, ZImageBase, z_image",
    "wan": "Wan, Wan Video, Wan 2.1, Wan2.2, Wan Video 1.3B t2v, Wan Video 14B t2v, Wan Video 14B"
    " i2v 480p, Wan Video 14B i2v 720p, Wan Video 2.2 TI2V-5B, Wan Video 2.2 I2V-A14B, Wan Video"
    " 2.2 T2V-A14B, Wan2.1-T2V-1.3B",
    "lumina2": "Lumina, Lumina 2, lumina-2, Lumina-Image-2.0",
    "auraflow": "AuraFlow, AuraFlow v0.3, Pony V7",
    "cogvideox": "CogVideoX, CogVideoX-5b",
    "cogview4": "CogView 4, CogView4-6B",
    "ernie-image": "Ernie, ERNIE-Image, ERNIE-Image-Turbo, ernie_image",
    "hidream": "HiDream, HiDream-I1-Full",
    "hunyuan-video": "Hunyuan Video, HunyuanVideo",
    "ideogram-4": "Ideogram 4, ideogram4, Ideogram 4.0",
    "krea-2": "Krea 2, krea2, Krea-2-Turbo",
    "ltx": "LTXV, LTX-Video, ltx",
    "ltx2": "LTXV2, LTX-2, LTX 2",
    "mochi": "Mochi, Mochi 1, mochi-1-preview",
    "pixart": "PixArt a, PixArt E, PixArt-Sigma",
    "sana": "Sana, SANA 1.5",
}
OTHERS = """
 -.|sd|stable diffusion|sd-4|sd 1.5 xl|sdx|fluxx|1.5|SVD|Other|Stable Cascade|Kolors|Playground v2
flux.1 d 2|not sd1|Nano Banana|七
"""


@pytest.mark.parametrize("slug", SPELLINGS)
def test_a_familys_name_is_read_as_people_write_it(slug: str) -> None:
    """The slug and the names that InvokeAI and Civitai show mean the same family."""
    texts = [slug, *(text.strip() for text in SPELLINGS[slug].split(","))]
    assert {text: canonical(text) for text in texts} == dict.fromkeys(texts, slug)


def test_an_unknown_name_is_not_taken_for_a_family() -> None:
    """An unknown name gives no family: a wrong guess would load models of another family."""
    assert [text for text in re.split("[|\n]", OTHERS) if canonical(text)] == []


def test_each_name_means_only_one_family() -> None:
    """Each slug and each title is read as its own family."""
    for name, family in FAMILIES.items():
        assert canonical(name) is canonical(family.title) is name
        plain = re.sub("[^a-z0-9,]", "", SPELLINGS[name].lower()).split(",")
        others = [other.spellings for other in FAMILIES.values() if other is not family]
        assert not [text for text in plain for other in others if re.fullmatch(other, text)]


def test_each_family_is_described_and_loads_as_a_pipeline() -> None:
    """Each family has a title and spellings, and its models load as pipelines."""
    assert list(FAMILIES) == list(BaseModelName)
    assert LOADED.keys() == set(ModelType)
    assert LOADED[ModelType.CUSTOM_CKPT] == set(BaseModelName)
    assert listed(LOADED[ModelType.EMBEDDINGS]) == "sd-1, sd-2, sdxl"


@pytest.mark.parametrize(
    ("model_type", "lora", "expected"),
    [
        (ModelType.CUSTOM_CKPT, LoraFormat.DIFFUSERS, ArtifactFormat.DIFFUSERS),
        (ModelType.VAE, LoraFormat.DIFFUSERS, ArtifactFormat.DIFFUSERS),
        (ModelType.LORA, LoraFormat.DIFFUSERS, ArtifactFormat.DIFFUSERS),
        (ModelType.LORA, LoraFormat.PEFT, ArtifactFormat.PEFT),
        (ModelType.EMBEDDINGS, LoraFormat.DIFFUSERS, ArtifactFormat.EMBEDDING_FOLDER),
    ],
)
def test_the_format_shows_how_the_folder_is_opened(
    model_type: ModelType, lora: LoraFormat, expected: ArtifactFormat
) -> None:
    """The format is that of diffusers, except for embeddings and for LoRAs in PEFT's format."""
    assert published_format(model_type, lora) is expected
