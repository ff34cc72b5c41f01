"""Planned files: paths, headers and the order of tensors, before any file is written.

The files equal those that the safetensors library and diffusers' `save_pretrained` write, so that
the same weights give the same files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted, FileDigest
from sd_loader.tensors import Dtype, Source

SHARD_BYTES = 10 * 10**9
"""Maximum bytes of the tensors in a shard: diffusers' max_shard_size, "10GB"."""

_METADATA = {"format": "pt"}
"""transformers refuses a file without this entry."""

# safetensors orders tensors by the rank of their type, highest first, then by name.
_RANK = {
    dtype: rank
    for rank, dtype in enumerate(
        (
            Dtype.U64,
            Dtype.I64,
            Dtype.F64,
            Dtype.F32,
            Dtype.U32,
            Dtype.I32,
            Dtype.BF16,
            Dtype.F16,
            Dtype.U16,
            Dtype.I16,
            Dtype.F8_E4M3,
            Dtype.F8_E5M2,
            Dtype.I8,
            Dtype.U8,
            Dtype.BOOL,
        )
    )
}


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor of the output."""

    name: str
    source: Source
    """Where its elements come from."""

    dtype: Dtype
    """Type of the elements in the output."""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.source.count * self.dtype.itemsize


@dataclass(frozen=True)
class WeightsFile:
    """A .safetensors file."""

    path: str
    header: bytes

    items: tuple[Item, ...]
    """Its tensors, in the order of the file."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(item.nbytes for item in self.items)


@dataclass(frozen=True)
class SmallFile:
    """A file whose content is in memory."""

    path: str
    content: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.content)


PlannedFile = WeightsFile | SmallFile


@dataclass(frozen=True)
class CopiedFile:
    """A file of the source that is published as it is."""

    path: str
    source: Path
    size: int


def json_file(path: str, content: object, *, infinite: bool = False) -> SmallFile:
    """A JSON file, formatted like those in the repos of models.

    infinite: write infinite numbers as Python does, which other JSON parsers refuse.
    """
    return SmallFile(path, (json.dumps(content, indent=2, allow_nan=infinite) + "\n").encode())


def weights_file(
    path: str, items: Sequence[Item], metadata: Mapping[str, str] = _METADATA
) -> WeightsFile:
    """A .safetensors file with these tensors."""
    ordered = sorted(items, key=lambda item: (_RANK[item.dtype], item.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for item in ordered:
        header[item.name] = {
            "dtype": item.dtype.label,
            "shape": list(item.source.shape),
            "data_offsets": [position, position + item.nbytes],
        }
        position += item.nbytes
    if len(header) != len(ordered) + 1:
        raise LoaderError(Reason.CONVERSION_FAILED, f"{path} would hold two tensors of one name")
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return WeightsFile(path, struct.pack("<Q", len(text)) + text, tuple(ordered))


def component_files(folder: str, stem: str, items: Sequence[Item]) -> list[PlannedFile]:
    """The weights of one component: one file, or shards and their index if it is too large.

    folder: empty for a component that is published alone. items: in the order of the model's
    state_dict, which decides in which shard a tensor is.
    """
    shards = _shards(items)
    start = f"{folder}/" if folder else ""
    if len(shards) == 1:
        return [weights_file(f"{start}{stem}.safetensors", shards[0])]
    names = [
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    index = {
        "metadata": {"total_size": sum(item.nbytes for item in items)},
        "weight_map": {
            item.name: name for name, shard in zip(names, shards, strict=True) for item in shard
        },
    }
    content = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return [
        *(weights_file(f"{start}{name}", shard) for name, shard in zip(names, shards, strict=True)),
        SmallFile(f"{start}{stem}.safetensors.index.json", content.encode()),
    ]


def _shards(items: Sequence[Item]) -> list[list[Item]]:
    """Split the tensors in order, as huggingface_hub does. A very large one has its own shard."""
    shards: list[list[Item]] = []
    current: list[Item] = []
    size = 0
    for item in items:
        if item.nbytes > SHARD_BYTES:
            shards.append([item])
            continue
        if size + item.nbytes > SHARD_BYTES:
            shards.append(current)
            current, size = [], 0
        current.append(item)
        size += item.nbytes
    if current:
        shards.append(current)
    return shards


@dataclass(frozen=True)
class FolderPlan:
    """A diffusers folder before it is written. See `Converted` for the fields that both have."""

    files: tuple[PlannedFile, ...]
    copied: tuple[CopiedFile, ...] = ()
    """Files of a repo that are published as they are. A single file has none."""
    base_model: str | None = None
    variant: str | None = None
    pipeline_class: str | None = None
    prediction_type: str | None = None
    lora_rank: int | None = None
    quantized: str | None = None
    """The format of quantized weights, which is published as the precision."""
    checked: str | None = None
    word: str | None = None
    warnings: tuple[str, ...] = ()
    scan: bool = False
    """Whether weights are checked for NaN and infinity, even if the spec does not ask for it."""

    @property
    def weights(self) -> tuple[WeightsFile, ...]:
        """The files that hold tensors."""
        return tuple(file for file in self.files if isinstance(file, WeightsFile))

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16, or mixed if the tensors differ or have another type.

        Single numbers, such as the scales of a LoRA, do not count. The precision of quantized
        weights is their format.
        """
        if self.quantized is not None:
            return self.quantized
        found = {
            item.dtype
            for file in self.weights
            for item in file.items
            if item.dtype.is_float and item.source.count > 1
        }
        return _PRECISIONS.get(found.pop(), MIXED) if len(found) == 1 else MIXED

    def converted(self, files: Mapping[str, FileDigest]) -> Converted:
        """The result of the conversion. files: the digests of the written files, by path."""
        return Converted(
            files=files,
            base_model=self.base_model,
            variant=self.variant,
            pipeline_class=self.pipeline_class,
            precision=self.precision,
            prediction_type=self.prediction_type,
            lora_rank=self.lora_rank,
            checked=self.checked,
            word=self.word,
            warnings=self.warnings,
        )


MIXED = "mixed"
_PRECISIONS = {Dtype.F32: "fp32", Dtype.F16: "fp16", Dtype.BF16: "bf16"}
