"""Refuses adapters that are not LoRAs of a supported family, or that diffusers reads in part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_models import model_of, name_of_a_transformer
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_SHOWN = 120
_SUPPORTED = "sd-1, sd-2, sdxl, sd-3, flux, flux2, chroma, qwen-image, z-image, wan and lumina2"


@dataclass(frozen=True)
class _Kind:
    """A kind of adapter that is recognised by the name of one of its tensors."""

    pattern: str
    what: str
    """Its usual name, with an article."""

    remedy: str = "merge it into a checkpoint with the program that trained it, or train a LoRA"
    """How the user can still load such a file."""


_EXPAND = "spec.lora.expandLycoris: true publishes this one as a LoRA of higher rank"


def _lycoris(pattern: str, name: str, remedy: str = _Kind.remedy) -> _Kind:
    return _Kind(pattern, f"a LyCORIS of the kind {name}", remedy)


def _peft(prefix: str, name: str) -> _Kind:
    return _Kind(rf"{prefix}_", f"a PEFT adapter of the kind {name}")


_OFT_OF_SD_SCRIPTS = _Kind(r"oft_(unet|te\d?)_", "an OFT of sd-scripts")
_OFT = _lycoris(r"oft_(blocks|diag)$", "OFT")
_BOFT = "a LyCORIS of the kind BOFT"
"""BOFT has the same names as OFT, but tensors with one more dimension."""
_BOFT_DIMENSIONS = 4

# The first kind that matches any tensor of the file counts. So a special kind stands before the
# general kinds that match other tensors of the same file.
_BY_PART = (
    _lycoris(r"hada_t[12]$", "LoHa with a Tucker decomposition (hada_t1)"),
    _lycoris(r"lokr_t2$", "LoKr with a Tucker decomposition (lokr_t2)"),
    _lycoris(r"lokr_w2$", "LoKr with full rank (lokr_w2), which no LoRA equals"),
    _lycoris(r"hada_", "LoHa", _EXPAND),
    _lycoris(r"lokr_", "LoKr", _EXPAND),
    _OFT,
    _lycoris(r"on_input$", "IA3"),
    _lycoris(r"(a1|a2|b1|b2|bm1|bm2|bm)\.weight$", "GLoRA"),
    _lycoris(r"(lambda_layer$|[pq]_layer\.)", "T-LoRA"),
    _lycoris(r"(up|down)_list\.\d+", "DyLoRA"),
    _peft("adamss", "AdaMSS"),
    _peft("beft", "BEFT"),
    _peft("boft", "BOFT"),
    _peft("bone", "Bone"),
    _peft("c3a", "C3A"),
    _peft("deft", "DEFT"),
    _peft("delora", "DeLoRA"),
    _peft("fourierft", "FourierFT"),
    _peft("frod", "FRoD"),
    _peft("glora", "GLoRA"),
    _peft("gralora", "GraLoRA"),
    _peft("hira", "HiRA"),
    _peft("hra", "HRA"),
    _peft("ia3", "IA3"),
    _peft("lily", "Lily"),
    _peft("ln_tuning", "LayerNorm tuning"),
    _peft("miss", "MiSS"),
    _peft("oft", "OFT"),
    _peft("poly", "Poly"),
    _peft("psoft", "PSOFT"),
    _peft("pvera", "PVeRA"),
    _peft("randlora", "RandLoRA"),
    _peft("road", "RoAd"),
    _peft("shira", "SHiRA"),
    _peft("tinylora", "TinyLoRA"),
    _peft("trainable_tokens", "trainable tokens"),
    _peft("unilora", "Uni-LoRA"),
    _peft("vblora", "VB-LoRA"),
    _peft("vera", "VeRA"),
    _peft("waveft", "WaveFT"),
    _Kind(r"(lora_E|ranknum)(\.|$)", "a PEFT adapter of the kind AdaLoRA"),
    _Kind(r"lora_embedding_[AB]", "a LoRA of token embeddings"),
    _Kind(r"lora_mid\.", "a LyCORIS with a Tucker decomposition (lora_mid)"),
    _Kind(r"scalar$", "a LyCORIS with trained scalars (use_scalar)"),
    _Kind(r"bias_(indices|values|size)$", "a LyCORIS with sparse biases"),
    _Kind(r"(diff|diff_b|w_norm|b_norm)$", "a LyCORIS with full differences of weights"),
    _Kind(r"dora_scale$", "a DoRA in kohya's style, whose dora_scale diffusers leaves out"),
)
"""Kinds by the role of a tensor in its layer: the part of its name after the layer's name."""

ROLES = "|".join(kind.pattern for kind in _BY_PART)
"""Matches the roles of tensors of these kinds. Tensors of other models do not have such roles."""

_BY_BEGINNING = (
    _Kind(r"bundle_emb\.", "a LoRA with embeddings in it (bundle_emb)"),
    _Kind(r"(lora_controlnet$|control_model\.)", "a Control-LoRA"),
    _Kind(
        r"diffusion_model\.(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."
        r"|(text_encoders\.)?clip_[lgh]\.",
        "a LoRA with ComfyUI's names, which diffusers does not read",
    ),
    _Kind(
        r"lycoris_", "a LyCORIS with names of its own (lycoris_…), which diffusers does not read"
    ),
    _Kind(r"(unet|text_encoder):\d+:", "a LoRA of the program lora_diffusion"),
    _Kind(
        r"base_model\.model\.",
        "an adapter as PEFT saves it alone, whose scale is in another file (adapter_config.json)",
    ),
    _Kind(
        r"(unet|text_encoder|text_encoder_2|down_blocks|mid_block|up_blocks)\..*\.alpha$",
        "a LoRA with alphas in diffusers' style, which diffusers leaves out",
    ),
)
"""Kinds by the beginning of a name."""

_MOTION = _Kind(r".*[._]motion_modules[._]", "a motion LoRA of AnimateDiff")
_KINDS = (_MOTION, _OFT_OF_SD_SCRIPTS, *_BY_PART, *_BY_BEGINNING)


def _any(*kinds: _Kind) -> str:
    return "|".join(f"(?P<kind{_KINDS.index(kind)}>{kind.pattern})" for kind in kinds)


# One pattern for many kinds: a file may have very many names.
_BEGINNING = re.compile(_any(_MOTION, _OFT_OF_SD_SCRIPTS, *_BY_BEGINNING))
_PART = re.compile(rf"(?:.*\.)?(?:{_any(*_BY_PART)})")
_PARTS = 3
"""A name has at most this many parts, separated by dots, after the layer's name."""


def refuse_other_adapters(tensors: Mapping[str, Tensor], *, by_role: bool = False) -> None:
    """Refuse an adapter of another kind, and name the kind, whatever the order of its tensors.

    by_role: skip the checks that may also match the tensors of other models: the checks by the
    beginning of a name and by the model that a LoRA is for.
    """
    found = min(((number, name) for name in tensors for number in _kinds_of(name)), default=None)
    if found is not None and _KINDS[found[0]] not in _BY_BEGINNING:
        number, name = found
        kind = _KINDS[number]
        is_boft = kind is _OFT and len(tensors[name].shape) == _BOFT_DIMENSIONS
        raise unsupported_adapter(_BOFT if is_boft else kind.what, name, kind.remedy)
    if by_role:
        return
    model = model_of(tensors)
    if model is not None:
        raise unsupported_adapter(f"a LoRA of {model[0]}", model[1])
    if found is not None:
        raise unsupported_adapter(_KINDS[found[0]].what, found[1])
    seen = name_of_a_transformer(tensors)
    if seen is not None:
        raise unsupported_adapter("a LoRA of another model", seen)


def unsupported_adapter(what: str, name: str, remedy: str = "") -> LoaderError:
    """The error for an adapter that cannot be loaded. name: of a tensor that shows its kind."""
    return LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the file is {what}; supported are LoRAs of {_SUPPORTED} with names that diffusers reads"
        f" (seen: {shown(name)}){remedy and ': '}{remedy}",
    )


def _kinds_of(name: str) -> Iterator[int]:
    """Yield the indexes of the kinds of adapters that may have a tensor of this name."""
    role = ".".join(name.rsplit(".", _PARTS)[1:])
    for match in (_BEGINNING.match(name), _PART.match(role)):
        if match is not None and match.lastgroup is not None:
            yield int(match.lastgroup.removeprefix("kind"))


def shown(name: str) -> str:
    """Shorten a name for messages. Names of layers are long."""
    return snippet(name, _SHOWN)
