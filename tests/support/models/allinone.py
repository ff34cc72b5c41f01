"""Names and shapes of the whole pipeline of SD 3 or FLUX.1 in one file, at small widths."""

from __future__ import annotations

from devkit.layers import Shapes, under
from tests.support.models.encoders import CLIP_G, CLIP_L, T5, clip_shapes, t5_shapes
from tests.support.models.transformershapes import SIZES, original_shapes
from tests.support.models.vaeshapes import original_vae

CLIP_L_PREFIX = "text_encoders.clip_l.transformer."
CLIP_G_PREFIX = "text_encoders.clip_g.transformer."
T5_PREFIX = "text_encoders.t5xxl.transformer."
UNET = "model.diffusion_model."


def whole(family: str, vae: str = "first_stage_model.", **other_sizes: int) -> Shapes:
    """Return the names and shapes of a whole pipeline; `other_sizes` resize its transformer."""
    pooled = CLIP_L + CLIP_G if family == "sd-3" else CLIP_L
    head = 64 if family == "sd-3" else 128
    sizes = SIZES | {"inner": 128, "head": head, "context": T5, "pooled": pooled}
    sizes |= other_sizes
    shapes = under(UNET, original_shapes(family, sizes=sizes))
    shapes |= under(CLIP_L_PREFIX, clip_shapes(CLIP_L))
    if family == "sd-3":
        shapes |= under(CLIP_G_PREFIX, clip_shapes(CLIP_G, projected=True))
    shapes |= under(T5_PREFIX, t5_shapes())
    return shapes | under(vae, original_vae(16))
