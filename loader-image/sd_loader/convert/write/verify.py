"""Checks a converted folder before it is published, by reading it again."""

from __future__ import annotations

from pathlib import Path

from sd_api.reasons import Reason
from sd_api.spec import Verify
from sd_api.wire import Progress, Stage
from sd_loader.convert.write.files import FolderPlan, WeightsFile
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.progress import Report
from sd_loader.tensors import Tensor, TensorFile, pieces


def verify_folder(out: Path, plan: FolderPlan, verify: Verify, report: Report) -> None:
    """Read every published header again, and every weight if the plan or the user asks for it."""
    total = sum(file.size for file in plan.weights)
    done = 0
    report(Progress(stage=Stage.VERIFYING, bytes_done=done, bytes_total=total))
    for planned in plan.weights:
        with open_tensor_file(out / planned.path) as found:
            _check_header(planned, found)
            if verify.weights or plan.scan:
                for name, tensor in found.tensors.items():
                    _check_finite(f"{planned.path}: {name}", tensor)
                    done += tensor.nbytes
                    report(Progress(stage=Stage.VERIFYING, bytes_done=done, bytes_total=total))


def _check_header(planned: WeightsFile, found: TensorFile) -> None:
    expected = {item.name: (item.dtype, item.source.shape) for item in planned.items}
    actual = {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()}
    if actual != expected:
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            f"{planned.path} does not hold the tensors that were written to it",
        )


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_float:
        return
    # Imported here: numpy takes a tenth of a second, and only this check needs it.
    from sd_loader.convert.write.cast import not_finite
    from sd_loader.convert.write.strided_read import read_view

    nan, infinite = 0, 0
    for piece in pieces(tensor):
        more_nan, more_infinite = not_finite(read_view(piece), tensor.dtype)
        nan, infinite = nan + more_nan, infinite + more_infinite
    if nan or infinite:
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            f"{name} holds {nan} NaN and {infinite} infinite weights",
        )
