"""Names and shapes of the tensors in ControlNets of the original layout, as cldm.py builds them.

`SD1`, `SD2` and `SDXL` are the published sizes; `TINY` has the same structures with small widths.
`config` returns diffusers' config of the same model. SDXL ControlNets exist only in diffusers'
layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devkit.layers import Shapes
from devkit.ldm_layouts import RESNETS_PER_LEVEL, SD15, Widths, unet_shapes

HINTS = (16, 32, 96, 256)
_DEPTHS = {"sd-1": (1, 1, 1, 0), "sd-2": (1, 1, 1, 0), "sdxl": (0, 2, 10)}
_MULTIPLIERS = {"sd-1": (1, 2, 4, 4), "sd-2": (1, 2, 4, 4), "sdxl": (1, 2, 4)}


@dataclass(frozen=True)
class ControlNet:
    """The dimensions that may differ between two ControlNets of one family."""

    family: str
    width: int
    """The width of the first level."""
    context: int
    """The width of the cross attention's input."""
    hints: tuple[int, ...] = HINTS
    """The widths of the layers that embed the control image."""
    inputs: int = 3
    """The number of channels of the control image."""
    added: int = 2816
    """The width of SDXL's pooled text and size embeddings together."""

    @property
    def levels(self) -> tuple[int, ...]:
        """The width of each level."""
        return tuple(self.width * factor for factor in _MULTIPLIERS[self.family])


SD1 = ControlNet("sd-1", 320, 768)
SD2 = ControlNet("sd-2", 320, 1024)
SDXL = ControlNet("sdxl", 320, 2048)
TINY = {
    "sd-1": ControlNet("sd-1", 32, 64, hints=(4, 8, 12, 16)),
    "sd-2": ControlNet("sd-2", 64, 32, hints=(4, 8, 12, 16)),
    "sdxl": ControlNet("sdxl", 64, 32, hints=(4, 8, 12, 16), added=96),
}


def controlnet_shapes(net: ControlNet, prefix: str = "control_model.") -> Shapes:
    """Return all tensors of an SD 1 or SD 2 ControlNet: half a UNet and the additional layers."""
    widths = Widths("sd15", net.width, SD15.vae, (net.context,), (0,))
    shapes: Shapes = {}
    for name, shape in unet_shapes(widths).items():
        if name.startswith(("time_embed.", "input_blocks.", "middle_block.")):
            # SD 2's transformers project with matrices instead of convolutions.
            is_matrix = net.family == "sd-2" and name.endswith(
                ("proj_in.weight", "proj_out.weight")
            )
            shapes[name] = shape[:2] if is_matrix else shape
    layers = [(net.inputs, net.hints[0])]
    for narrow, wide in zip(net.hints, net.hints[1:], strict=False):
        layers += [(narrow, narrow), (narrow, wide)]
    layers.append((net.hints[-1], net.width))
    for number, (width, out) in enumerate(layers):
        shapes[f"input_hint_block.{2 * number}.weight"] = (out, width, 3, 3)
        shapes[f"input_hint_block.{2 * number}.bias"] = (out,)
    outputs = [net.width]
    for level, width in enumerate(net.levels):
        down = 1 if level < len(net.levels) - 1 else 0
        outputs += [width] * (RESNETS_PER_LEVEL + down)
    names = [f"zero_convs.{number}.0" for number in range(len(outputs))] + ["middle_block_out.0"]
    for name, width in zip(names, [*outputs, net.levels[-1]], strict=True):
        shapes[f"{name}.weight"] = (width, width, 1, 1)
        shapes[f"{name}.bias"] = (width,)
    return {prefix + name: shape for name, shape in shapes.items()}


def config(net: ControlNet, **rest: Any) -> dict[str, Any]:
    """Return diffusers' config of the ControlNet; `rest` overrides or adds fields."""
    crossing = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in _DEPTHS[net.family]]
    fields: dict[str, Any] = {
        "_class_name": "ControlNetModel",
        "attention_head_dim": 8,
        "block_out_channels": net.levels,
        "conditioning_channels": net.inputs,
        "conditioning_embedding_out_channels": net.hints,
        "cross_attention_dim": net.context,
        "down_block_types": crossing,
        "layers_per_block": 2,
    }
    if net.family != "sd-1":
        fields["attention_head_dim"] = [width // 64 for width in net.levels]
        fields["use_linear_projection"] = True
    if net.family == "sdxl":
        fields |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": net.added,
            "transformer_layers_per_block": [1, 2, 10],
        }
    return fields | rest
