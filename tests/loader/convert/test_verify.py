"""A converted folder is verified before it is published."""

from __future__ import annotations

import math

import pytest
import torch

from sd_api.reasons import Reason
from sd_api.spec import Verify
from sd_api.wire import Stage
from sd_loader.convert.write.files import FolderPlan, Item, weights_file
from sd_loader.convert.write.verify import verify_folder
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor
from tests.support.models.checkpoints import save_safetensors, tiny_sd15
from tests.support.models.conversions import convert_file

NAME = "model.diffusion_model.out.2.bias"


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "1 NaN and 0 infinite"), (math.inf, "0 NaN and 1 infinite")],
)
def test_weights_are_scanned_on_request(tmp_path, value, message):
    """`verify.weights` costs a pass over the files.

    Without it, a model with NaN weights is published.
    """
    tensors = tiny_sd15()
    tensors[NAME][2] = value
    path = save_safetensors(tmp_path / "model.safetensors", tensors)
    assert convert_file(path, tmp_path / "unverified").files
    with pytest.raises(LoaderError, match=message) as caught:
        convert_file(path, tmp_path / "verified", verify={"weights": True})
    assert caught.value.reason is Reason.VERIFICATION_FAILED
    assert "conv_out.bias" in caught.value.message


def test_valid_weights_pass(tmp_path):
    """Valid weights pass the scan, whose progress counts their bytes."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15(torch.bfloat16))
    progress = []
    convert_file(path, tmp_path / "out", progress, verify={"weights": True})
    last = [entry for entry in progress if entry.stage is Stage.VERIFYING][-1]
    assert last.bytes_total * 0.98 < last.bytes_done <= last.bytes_total


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="cut short"),
        pytest.param(lambda content: content.replace(b'"x"', b'"y"'), id="another name"),
        pytest.param(lambda content: content.replace(b"[4]", b"[2,2]"), id="another shape"),
        pytest.param(lambda content: content.replace(b'"F32"', b'"I32"'), id="another type"),
    ],
)
def test_file_that_differs_from_the_plan_is_refused(tmp_path, damage):
    """A written file is refused if its size or its header is not as planned."""
    file = weights_file("model.safetensors", [Item("x", Tensor(-1, Dtype.F32, (4,), 0), Dtype.F32)])
    plan = FolderPlan((file,))
    path = tmp_path / file.path
    path.write_bytes(file.header + bytes(16))
    verify_folder(tmp_path, plan, Verify(), lambda _: None)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LoaderError):
        verify_folder(tmp_path, plan, Verify(), lambda _: None)
