"""The families of models: their titles and variants, and the ways in which people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sd_api.choices import PIPELINES, ArtifactFormat, BaseModelName, LoraFormat, ModelType

UNETS = (
    BaseModelName.SD1,
    BaseModelName.SD2,
    BaseModelName.SDXL,
    BaseModelName.SDXL_REFINER,
)
"""The families with a UNet. The others have a transformer."""

TRANSFORMERS = (
    BaseModelName.AURAFLOW,
    BaseModelName.CHROMA,
    BaseModelName.FLUX,
    BaseModelName.FLUX2,
    BaseModelName.HIDREAM,
    BaseModelName.KREA2,
    BaseModelName.LTX,
    BaseModelName.LUMINA2,
    BaseModelName.QWEN_IMAGE,
    BaseModelName.SANA,
    BaseModelName.SD3,
    BaseModelName.WAN,
    BaseModelName.Z_IMAGE,
)
"""The families whose transformer may be a single file, with the other components from a repo."""

_INPAINT_OR_EDIT = {
    "normal": "makes an image from a text",
    "inpaint": "fills in a masked part of an image",
    "edit": "changes an image as a text says (InstructPix2Pix)",
}


@dataclass(frozen=True)
class Family:
    """The names and the variants of a family."""

    title: str
    """The name that people read."""

    spellings: str
    """Pattern of the spellings of its name, reduced to lower-case letters and digits."""

    variants: Mapping[str, str] = field(default_factory=dict)
    """The values of status.artifact.variant and what they mean.

    The loader tells them apart by the configs of a whole pipeline. Models that differ only in their
    weights, such as SDXL and SDXL Turbo, are one variant.
    """


_SD = "(sd|stablediffusion)v?"
_MERGES = "(ilxl|illustrious(xl)?|noobai(xl)?|pony(v6|diffusionv6|diffusion)?(xl)?|animagine(xl)?)"
"""Trade names of families of fine-tuned SDXL models."""

FAMILIES: Mapping[BaseModelName, Family] = {
    BaseModelName.SD1: Family("SD 1", rf"{_SD}1[x345]?(lcm|hyper)?", _INPAINT_OR_EDIT),
    BaseModelName.SD2: Family("SD 2", rf"{_SD}2[x01]?(base|512|768)?v?", _INPAINT_OR_EDIT),
    BaseModelName.SDXL: Family(
        "SDXL",
        rf"{_SD}xl(v?(09|1|10))?(base|base10|lcm|turbo|lightning|hyper|distilled)?|{_MERGES}",
        _INPAINT_OR_EDIT,
    ),
    BaseModelName.SDXL_REFINER: Family(
        "SDXL refiner", rf"{_SD}xl(v?(09|10|1))?refiner(09|10|1)?", {"normal": "refines an image"}
    ),
    BaseModelName.SD3: Family(
        "SD 3",
        rf"{_SD}3[x5]?(medium|large|largeturbo)?",
        {
            "3_medium": "SD 3 medium",
            "3.5_medium": "SD 3.5 medium",
            "3.5_large": "SD 3.5 large or large turbo",
        },
    ),
    BaseModelName.FLUX: Family(
        "FLUX.1",
        r"flux1?(d|s|dev|schnell|fill|filldev|kontext|kontextdev|krea|kreadev)?",
        {
            "dev": "FLUX.1 dev, Krea dev or Kontext dev: with guidance",
            "schnell": "FLUX.1 schnell: without guidance",
            "dev_fill": "FLUX.1 Fill dev: takes an image and a mask",
        },
    ),
    BaseModelName.FLUX2: Family(
        "FLUX.2",
        r"flux2(d|dev|klein(4b|9b)?(base)?)?",
        {
            "dev": "FLUX.2 dev",
            "klein_4b": "FLUX.2 Klein 4B",
            "klein_4b_base": "FLUX.2 Klein 4B base, not distilled",
            "klein_9b": "FLUX.2 Klein 9B",
            "klein_9b_base": "FLUX.2 Klein 9B base, not distilled",
        },
    ),
    BaseModelName.FLUX3: Family("FLUX.3", r"flux3(d|dev)?"),
    BaseModelName.CHROMA: Family("Chroma", r"chroma(1|1?hd|1?base|1?flash|1?radiance)?"),
    BaseModelName.QWEN_IMAGE: Family(
        "Qwen-Image",
        r"qwen(image)?(edit|editplus)?(2509|2511|2512)?",
        {"generate": "makes an image from a text", "edit": "changes images as a text says"},
    ),
    BaseModelName.Z_IMAGE: Family("Z-Image", r"zimage(base|turbo)?"),
    BaseModelName.WAN: Family(
        "Wan",
        r"wan(video)?(2?[12])?(video)?(13b|14b|5b|a14b)?(t2v|i2v|ti2v)?(13b|14b|5b|a14b)?(480p|720p)?",
        {
            "t2v_1.3b": "Wan 2.1, from a text",
            "t2v_14b": "Wan 2.1, from a text",
            "i2v_14b": "Wan 2.1, from an image",
            "ti2v_5b": "Wan 2.2, from a text or an image",
            "t2v_a14b": "Wan 2.2 with two transformers, from a text",
            "i2v_a14b": "Wan 2.2 with two transformers, from an image",
        },
    ),
    BaseModelName.LUMINA2: Family("Lumina 2", r"lumina(image)?(2|20)?"),
    BaseModelName.AURAFLOW: Family("AuraFlow", r"auraflow(v?0[123])?|pony(diffusion)?v7"),
    BaseModelName.COGVIDEOX: Family("CogVideoX", r"cogvideox?(2b|5b)?|cogvideox15(5b)?"),
    BaseModelName.COGVIEW4: Family("CogView 4", r"cogview4(6b)?"),
    BaseModelName.ERNIE_IMAGE: Family("ERNIE-Image", r"ernie(image)?(turbo)?"),
    BaseModelName.HIDREAM: Family("HiDream", r"hidream(i1|image)?(full|dev|fast)?"),
    BaseModelName.HUNYUAN_VIDEO: Family("HunyuanVideo", r"hunyuanvideo1?"),
    BaseModelName.IDEOGRAM4: Family("Ideogram 4", r"ideogram4?0?"),
    BaseModelName.KREA2: Family(
        "Krea 2",
        r"krea2(turbo|raw)?",
        {"krea2_base": "Krea 2 Raw", "krea2_turbo": "Krea 2 Turbo, distilled"},
    ),
    BaseModelName.LTX: Family("LTX-Video", r"ltx(v|video)?"),
    BaseModelName.LTX2: Family("LTX-2", r"ltx(v|video)?2"),
    BaseModelName.MOCHI: Family("Mochi", r"mochi1?(preview)?"),
    BaseModelName.PIXART: Family("PixArt", r"pixart(a|e|alpha|sigma)?"),
    BaseModelName.SANA: Family("Sana", r"sana(15|16b|sprint)?"),
}

_TITLES = {name.value: family.title for name, family in FAMILIES.items()}

_UNETS_OF_ADAPTERS = frozenset(UNETS) - {BaseModelName.SDXL_REFINER}
_LORAS = _UNETS_OF_ADAPTERS | {
    BaseModelName.SD3,
    BaseModelName.FLUX,
    BaseModelName.FLUX2,
    BaseModelName.CHROMA,
    BaseModelName.QWEN_IMAGE,
    BaseModelName.Z_IMAGE,
    BaseModelName.WAN,
    BaseModelName.LUMINA2,
}
_CONTROLNETS = _UNETS_OF_ADAPTERS | {
    BaseModelName.SD3,
    BaseModelName.FLUX,
    BaseModelName.QWEN_IMAGE,
    BaseModelName.SANA,
    BaseModelName.Z_IMAGE,
}
_VAES = frozenset(UNETS) | {
    BaseModelName.SD3,
    BaseModelName.FLUX,
    BaseModelName.FLUX2,
    BaseModelName.COGVIDEOX,
    BaseModelName.HUNYUAN_VIDEO,
    BaseModelName.LTX,
    BaseModelName.LTX2,
    BaseModelName.QWEN_IMAGE,
    BaseModelName.SANA,
    BaseModelName.WAN,
}
LOADED: Mapping[ModelType, frozenset[BaseModelName]] = {
    **dict.fromkeys(PIPELINES, frozenset(BaseModelName)),
    ModelType.LORA: _LORAS,
    ModelType.EMBEDDINGS: _UNETS_OF_ADAPTERS,
    ModelType.CONTROLNET: _CONTROLNETS,
    ModelType.VAE: _VAES,
}
"""The families whose models load, by model type."""

_NOISE = re.compile(r"[^a-z0-9]+")


def canonical(text: str) -> BaseModelName | None:
    """Read a family's name as people write it, such as SD 1.5 or Flux.1 D. None if it is not one.

    Capitals, blanks and punctuation do not matter. The slugs count as names, and so do the names
    that Civitai and InvokeAI show.
    """
    plain = _NOISE.sub("", text.lower())
    for name, family in FAMILIES.items():
        if plain == _NOISE.sub("", name.value) or re.fullmatch(family.spellings, plain):
            return name
    return None


def title_of(slug: str) -> str:
    """Return a family's title. A slug that this version does not know stays as it is."""
    return _TITLES.get(slug, slug)


def listed(names: Iterable[BaseModelName]) -> str:
    """Return the slugs in the order of the enumeration, for messages."""
    chosen = frozenset(names)
    return ", ".join(name.value for name in BaseModelName if name in chosen)


def published_format(model_type: ModelType, lora: LoraFormat) -> ArtifactFormat:
    """Return status.artifact.format. lora: the value of spec.lora.format."""
    if model_type is ModelType.EMBEDDINGS:
        return ArtifactFormat.EMBEDDING_FOLDER
    return ArtifactFormat.PEFT if lora is LoraFormat.PEFT else ArtifactFormat.DIFFUSERS
