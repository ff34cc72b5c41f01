"""Files of training programs can be read, whatever they hold besides weights."""

from __future__ import annotations

import pytest
import torch

from sd_loader.formats import open_tensor_file
from tests.support.formats.torchfiles import torch_tensor
from tests.support.hostile.benign import FILES, TENSORS


@pytest.mark.parametrize("name", FILES)
def test_a_good_file_is_read(tmp_path, tally, name):
    """All weights are read bit for bit, and no other value is taken for a weight."""
    make, expected = FILES[name]
    path = tmp_path / "model.ckpt"
    path.write_bytes(make(tmp_path))
    with open_tensor_file(path) as file:
        found = {key: torch_tensor(tensor) for key, tensor in file.tensors.items()}
    assert found.keys() - {"model.tied"} == expected
    for key in expected:
        assert found[key].dtype == TENSORS[key].dtype
        assert torch.equal(found[key], TENSORS[key])
    tally("benign files read")
