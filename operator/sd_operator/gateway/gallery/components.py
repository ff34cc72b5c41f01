"""The components of a published model, and an estimate of the GPU memory that it needs.

The gateway reads them from the receipt on the volume, which is untrusted like everything there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sd_api import names
from sd_api.humanize import files, size
from sd_api.wire import Artifact, Receipt
from sd_operator.gateway.gallery import volume
from sd_operator.resources.model import Model

RECEIPT_MAX_BYTES = 2**20
"""Maximum size of a receipt that is read. For a larger one, the model's page shows no components,
only the totals of the status.
"""
SHOWN_MAX = 40

_WEIGHTS = (".safetensors", ".bin")
_ACTIVATIONS = 0.2
"""Memory for activations, as a share of the weights."""
_BASE_BYTES = 10**9
"""Memory for CUDA and the libraries' kernels."""


@dataclass(frozen=True)
class ComponentSize:
    """A folder of a model, such as its UNet, or a file beside the folders."""

    name: str
    size: str
    files: str


def read(store: Path, model: Model) -> Receipt | None:
    """Return the receipt of a model's published version. None if it is missing or not valid."""
    artifact = model.status.artifact
    if artifact is None:
        return None
    path = f"{names.immutable_path(model.uid, artifact.load_hash)}/{names.RECEIPT_FILE}"
    content = volume.read(store, path, RECEIPT_MAX_BYTES)
    receipt = Receipt.decode(content) if content is not None else None
    return receipt if receipt is not None and receipt.uid == model.uid else None


def components(receipt: Receipt) -> tuple[ComponentSize, ...]:
    """Return the largest SHOWN_MAX components of a model, the largest first."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for path, file in receipt.files.items():
        if path in names.ADDED_FILES:
            continue
        component = path.partition("/")[0]
        sizes[component] += file.size
        counts[component] += 1
    return tuple(
        ComponentSize(name, size(total), files(counts[name]))
        for name, total in sizes.most_common(SHOWN_MAX)
    )


def memory(artifact: Artifact | None, receipt: Receipt | None) -> str:
    """Return an estimate of a pipeline's GPU memory as text; empty before it is published.

    Weights take the memory of their files, because they are opened in the published precision.
    """
    if artifact is None:
        return ""
    weights = artifact.size_bytes
    if receipt is not None:
        files = receipt.files.items()
        weights = sum(file.size for path, file in files if path.endswith(_WEIGHTS)) or weights
    needed = weights * (1 + _ACTIVATIONS) + _BASE_BYTES
    return f"about {size(round(needed))}"
