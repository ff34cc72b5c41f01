"""The open files that weights are read from, closed together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.formats import open_tensor_file
from sd_loader.tensors import TensorFile

_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Weights:
    """The open files of weights, by their descriptors."""

    stack: ExitStack
    files: dict[int, TensorFile] = field(default_factory=dict)

    def open(self, path: Path) -> TensorFile:
        """Open one more; it is closed with the others."""
        file = self.stack.enter_context(open_tensor_file(path))
        self.files[file.fd] = file
        return file

    def open_chosen(self, folder: Path, own: Path, chosen: Iterable[RepoFile]) -> list[TensorFile]:
        """Open those of the chosen files of a repo that are weights in a component's own folder."""
        paths = [folder / file.path for file in chosen]
        return [
            self.open(path)
            for path in paths
            if path.parent == own and path.suffix in _WEIGHT_SUFFIXES
        ]
