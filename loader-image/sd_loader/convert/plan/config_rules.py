"""Rules for the config of every component, which the shapes of tensors cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError


def check_heads(path: str, config: Mapping[str, Any]) -> None:
    """Refuse widths that do not divide into attention heads and norm groups."""
    widths = config.get("block_out_channels", [])
    groups = config.get("norm_num_groups", 1)
    heads = config.get("attention_head_dim", 1)
    if isinstance(heads, int):
        heads = [heads] * len(widths)
    divisions = [(width, groups) for width in widths] + list(zip(widths, heads, strict=True))
    if "hidden_size" in config:
        divisions.append((config["hidden_size"], config["num_attention_heads"]))
    for width, count in divisions:
        if width % count:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{path.partition('/')[0]}: a width of {width} does not divide into {count} parts,"
                " as the architecture needs",
            )
