"""The open tensor files that a plan takes its weights from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.errors import LoaderError
from sd_loader.formats import SAFETENSORS, open_tensor_file
from sd_loader.tensors import Dtype, Tensor, TensorFile

_ONE = {
    Dtype.F32: b"\x00\x00\x80\x3f",
    Dtype.F16: b"\x00\x3c",
    Dtype.BF16: b"\x80\x3f",
}
"""The number one in each type."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass
class OpenFiles:
    """Tensor files that stay open until their stack is closed."""

    stack: ExitStack
    """Closes the files."""

    safetensors_only: bool = False
    """True if pickles are refused (spec.fromSafetensors). The content of a file decides."""

    files: dict[int, TensorFile] = field(default_factory=dict)
    """The files by their descriptors, to which tensors refer."""

    def open(self, path: Path) -> TensorFile:
        """Open a file."""
        file = self.add(open_tensor_file(path))
        refuse_pickle(file, safetensors_only=self.safetensors_only)
        return file

    def add(self, file: TensorFile) -> TensorFile:
        """Keep an open file until the stack is closed."""
        self.files[file.fd] = self.stack.enter_context(file)
        return file

    def identity(self, width: int, dtype: Dtype) -> Tensor:
        """Return an identity matrix as a tensor of a file in memory, which stays open, too."""
        size = width * width * dtype.itemsize
        fd = os.memfd_create("identity", os.MFD_CLOEXEC)
        self.stack.callback(os.close, fd)
        os.truncate(fd, size)
        for row in range(width):
            os.pwrite(fd, _ONE[dtype], row * (width + 1) * dtype.itemsize)
        return Tensor(fd, dtype, (width, width), 0)

    def open_chosen(
        self, repo: Path, component: Path, chosen: Iterable[RepoFile]
    ) -> list[TensorFile]:
        """Open the chosen files of a repo that are weights and lie in the component's folder."""
        paths = [repo / file.path for file in chosen]
        return [
            self.open(path)
            for path in paths
            if path.parent == component and path.suffix in _WEIGHT_SUFFIXES
        ]


def refuse_pickle(file: TensorFile, *, safetensors_only: bool) -> None:
    """Refuse a pickle if only safetensors may be loaded."""
    if safetensors_only and file.format != SAFETENSORS:
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            "spec.fromSafetensors asks for safetensors, but the file is a pickle",
        )
