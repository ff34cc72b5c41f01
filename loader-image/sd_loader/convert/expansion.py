"""Expands the LyCORIS layers of a file to LoRA layers (spec.lora.expandLycoris)."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.reasons import Reason
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.lora_kinds import shown
from sd_loader.convert.plan.lora_lycoris import (
    Expansion,
    Shapes,
    expansions_of,
    lora_names,
    others_of,
    shapes_of,
)
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.write.steps import Findings
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS
from sd_loader.tensors import Tensor, TensorFile

if TYPE_CHECKING:
    from sd_loader.convert.write.cast import Array


@dataclass(frozen=True)
class Expanded:
    """The result of `expand_lycoris`: the file to convert, and warnings about its new layers."""

    file: TensorFile
    warnings: tuple[str, ...] = ()


def expand_lycoris(
    file: TensorFile, conversion: Conversion, folder: Path, opened: OpenFiles
) -> Expanded:
    """Return the file with LoRA layers in place of its LyCORIS layers, if spec.lora asks for it.

    folder: where the LoRA layers are stored, in an unnamed file that `opened` closes.
    """
    if not conversion.lora.expand_lycoris:
        return Expanded(file)
    expansions = expansions_of(file.tensors)
    if not expansions:
        return Expanded(file)
    others = others_of(file.tensors, expansions)
    metadata = file.metadata if file.format == SAFETENSORS else {}
    shapes = shapes_of(expansions, others, metadata, conversion.base_model)
    findings = Findings([file])
    with tempfile.TemporaryFile(dir=folder) as unnamed:
        fd = os.dup(unnamed.fileno())
    expanded = opened.add(replace(file, fd=fd, tensors=others, checksums={}))
    made = _write(fd, expansions, shapes, findings)
    findings.refuse()
    return Expanded(replace(expanded, tensors={**others, **made}), (_describe(expansions),))


def _write(
    fd: int, expansions: Sequence[Expansion], shapes: Sequence[Shapes], findings: Findings
) -> dict[str, Tensor]:
    """Write the LoRA layers to the file `fd`, and return their tensors."""
    # Imported here: this import takes a tenth of a second, and most models do not need numpy.
    import numpy as np

    from sd_loader.convert.write.products import append

    scales = [_scale(item, findings) for item in expansions]
    # All layers share one alpha, because diffusers applies other alphas only to some layers.
    alphas = [scale * item.rank for scale, item in zip(scales, expansions, strict=True)]
    alpha = Counter(alphas).most_common(1)[0][0]
    made = {}
    for item, shape, own in zip(expansions, shapes, alphas, strict=True):
        down, up, scale_name = lora_names(item)
        factor = np.float32(own / alpha if alpha else 1)
        made[down] = append(fd, shape.down, _down(item, findings))
        made[up] = append(fd, shape.up, (rows * factor for rows in _up(item, findings)))
        made[scale_name] = append(fd, (), [np.array(alpha, "<f4")])
    return made


def _scale(item: Expansion, findings: Findings) -> float:
    # Imported here, as in `_write`.
    from sd_loader.convert.write.products import read_single

    if item.alpha is None:
        return 1.0
    alpha = float(read_single(item.alpha, findings).item())
    if not math.isfinite(alpha):
        raise LoaderError(Reason.VERIFICATION_FAILED, f"{shown(f'{item.layer}.alpha')} is {alpha}")
    return alpha / item.own_rank


def _up(item: Expansion, findings: Findings) -> Iterator[Array]:
    """Yield the up matrix, some rows at a time."""
    # Imported here, as in `_write`.
    from sd_loader.convert.write.products import column_products, kronecker_rows, read_single

    left, right = (read_single(factor, findings) for factor in item.up)
    return kronecker_rows(left, right) if item.is_kronecker else column_products(left, right)


def _down(item: Expansion, findings: Findings) -> Iterator[Array]:
    """Yield the down matrix, some rows at a time."""
    # Imported here, as in `_write`.
    import numpy as np

    from sd_loader.convert.write.products import kronecker_rows, read_single, row_products

    first, second = item.down
    right = read_single(second, findings)
    if first is None:
        return kronecker_rows(np.eye(item.rank // item.own_rank, dtype="<f4"), right)
    left = read_single(first, findings)
    return kronecker_rows(left, right) if item.is_kronecker else row_products(left, right)


def _describe(expansions: Sequence[Expansion]) -> str:
    kinds = " and ".join(sorted({"LoKr" if item.is_kronecker else "LoHa" for item in expansions}))
    rank = max(item.rank for item in expansions)
    return f"{len(expansions)} {kinds} layers are expanded to LoRA layers of rank up to {rank}"
