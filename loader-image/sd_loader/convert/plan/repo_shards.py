"""Plans the weights of a repo's component: one published file for each file of the repo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sd_api.choices import Revision
from sd_api.reasons import Reason
from sd_loader.convert.plan.precision import dtype_in
from sd_loader.convert.tables.clip import with_prefix
from sd_loader.convert.write.files import (
    Item,
    PlannedFile,
    SmallFile,
    WeightsFile,
    weights_file,
)
from sd_loader.diffusers_repo.listed import Component
from sd_loader.diffusers_repo.listed_files import STEMS
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS
from sd_loader.formats.fileio import read_at
from sd_loader.snippet import snippet
from sd_loader.tensors import TensorFile

_TEXT = "CLIPTextModel"
_VISION = ("CLIPVisionModel", "Siglip2VisionModel", "SiglipVisionModel")
"""The classes whose tensors transformers saves without `_VISION_PREFIX` since 5.6."""

_VISION_PREFIX = "vision_model."


def shard_files(
    name: str,
    component: Component,
    files: Sequence[TensorFile],
    index: Mapping[str, Any] | None,
    precision: Revision | None,
) -> list[PlannedFile]:
    """Return one published file for each file of the weights, and an index if there are several.

    index: the repo's own index, which is compared with the files. None if the repo has none.
    """
    _check_index(name, files, index)
    stem = STEMS[component.role]
    count = len(files)
    names = [
        f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    ]
    shards = [
        _published(f"{name}/{published}", component.class_name, file, precision)
        for published, file in zip(names, files, strict=True)
    ]
    weight_map: dict[str, str] = {}
    for published, shard in zip(names, shards, strict=True):
        for item in shard.items:
            if weight_map.setdefault(item.name, published) != published:
                raise LoaderError(
                    Reason.DAMAGED_FILE,
                    f"{name}: two shards have a tensor {snippet(item.name)}",
                )
    if count == 1:
        return list(shards)
    total = sum(item.nbytes for shard in shards for item in shard.items)
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return [*shards, SmallFile(f"{name}/{stem}.safetensors.index.json", text.encode())]


def _check_index(name: str, files: Sequence[TensorFile], index: Mapping[str, Any] | None) -> None:
    """Refuse shards that lack a tensor which their index lists."""
    weight_map = {} if index is None else index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise LoaderError(Reason.DAMAGED_FILE, f"{name}: the index of the shards has no weight_map")
    shards = {file.path.name: file.tensors for file in files}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or tensor not in shards.get(shard, ()):
            raise LoaderError(
                Reason.DAMAGED_FILE,
                f"{name}: the index of the shards lists {snippet(tensor)} in {snippet(str(shard))},"
                " which does not have it",
            )


def _published(
    path: str, class_name: str, file: TensorFile, precision: Revision | None
) -> WeightsFile:
    items = [
        Item(
            _name(class_name, name),
            tensor,
            dtype_in(class_name, name, tensor.dtype, precision),
        )
        for name, tensor in file.tensors.items()
    ]
    is_same = file.format == SAFETENSORS and file.metadata.get("format") == "pt"
    if is_same and all(
        item.dtype is item.source.dtype and item.name in file.tensors for item in items
    ):
        # With the same header and order, the planned file equals the repo's, which can be linked.
        offsets = {name: tensor.offset for name, tensor in file.tensors.items()}
        ordered = sorted(items, key=lambda item: (offsets[item.name], item.nbytes))
        return WeightsFile(path, _header(file), tuple(ordered))
    return weights_file(path, items)


def _name(class_name: str, name: str) -> str:
    """A tensor's name with the prefix that older versions of transformers need."""
    if class_name == _TEXT:
        return with_prefix(name)
    if class_name in _VISION and not name.startswith(_VISION_PREFIX):
        return _VISION_PREFIX + name
    return name


def _header(file: TensorFile) -> bytes:
    """The bytes of the file before its first tensor."""
    return read_at(file.fd, 0, min(tensor.offset for tensor in file.tensors.values()))
