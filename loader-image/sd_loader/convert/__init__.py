"""Makes a diffusers folder of what was downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.convert.result import Converted, FileDigest
from sd_loader.errors import LoaderError
from sd_loader.progress import Report
from sd_loader.verify import refuse_unavailable

if TYPE_CHECKING:
    from sd_loader.source import Fetched

__all__ = ["Converted", "FileDigest", "convert"]


def convert(
    fetched: Fetched, source_dir: Path, request: LoadRequest, out: Path, report: Report
) -> Converted:
    """Convert the download in `source_dir` into the empty folder `out`."""
    refuse_unavailable(request.verify)
    path = source_dir / fetched.path
    # Imported here: neither way needs the other's modules.
    if fetched.kind == "repo":
        from sd_loader.convert.repo import convert_repo

        return convert_repo(path, request, out, report)
    if request.model_type is not ModelType.CUSTOM_CKPT:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"model type {request.model_type.value} is not supported by this version of the loader",
        )
    return _convert_file(path, request, out, report)


def _convert_file(path: Path, request: LoadRequest, out: Path, report: Report) -> Converted:
    from sd_loader.convert.carry_out import carry_out
    from sd_loader.convert.checkpoint import plan_checkpoint
    from sd_loader.formats import SAFETENSORS, open_tensor_file

    with open_tensor_file(path) as file:
        if request.from_safetensors and file.format != SAFETENSORS:
            raise LoaderError(
                Reason.UNSAFE_MODEL,
                "spec.fromSafetensors asks for safetensors, but the file is a pickle",
            )
        return carry_out(plan_checkpoint(file, request), out, request.verify, report)
