"""Zip checkpoints: the files of torch.save are read, and inconsistent files are refused."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from tests.support.formats.torchfiles import archive, torch_tensor
from tests.support.formats.zipfiles import Part, zip_bytes
from tests.support.models.checkpoints import save_ckpt

BASE = torch.randn(6, 4)
TENSORS = {
    "double": torch.randn(3, dtype=torch.float64),
    "float": BASE,
    "half": torch.randn(4).half(),
    "bfloat": torch.randn(4).bfloat16(),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "float8 e5m2": torch.randn(4).to(torch.float8_e5m2),
    "long": torch.arange(3),
    "int": torch.arange(3, dtype=torch.int32),
    "short": torch.arange(3, dtype=torch.int16),
    "char": torch.arange(3, dtype=torch.int8),
    "byte": torch.arange(3, dtype=torch.uint8),
    "unsigned": torch.tensor([1, 2**63], dtype=torch.uint64),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "same storage": BASE,
    "part of it": BASE[2:4],
    "transposed": BASE.T,
    "column": BASE[:, 1],
    "position ids": torch.arange(7).expand((1, -1)),
}


def opened_tensors(path):
    """Return all tensors of a file as torch tensors."""
    with open_tensor_file(path) as opened:
        assert opened.format == "ckpt"
        return {name: torch_tensor(tensor) for name, tensor in opened.tensors.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_found_where_torch_put_them(tmp_path, protocol):
    """Every type and kind of view is covered, in every pickle protocol that torch can write."""
    torch.save(TENSORS, tmp_path / "model.ckpt", pickle_protocol=protocol)
    found = opened_tensors(tmp_path / "model.ckpt")
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert found[name].dtype == expected.dtype, name
        assert torch.equal(found[name].float(), expected.detach().float()), name


@pytest.mark.parametrize(
    ("options", "step"),
    [
        pytest.param({"nested": False}, None, id="the tensors alone"),
        pytest.param({"nested": True}, "470000", id="under state_dict"),
        pytest.param({"lightning": True}, "470000", id="of a Lightning training"),
    ],
)
def test_a_checkpoint_is_read_in_every_form_that_training_programs_write(tmp_path, options, step):
    """Progress, optimizer and callbacks beside the weights are ignored. Scalars become metadata."""
    path = save_ckpt(tmp_path / "model.ckpt", {"weight": BASE}, **options)
    assert torch.equal(opened_tensors(path)["weight"], BASE)
    with open_tensor_file(path) as opened:
        assert opened.tensors.keys() == {"weight"}
        assert opened.metadata.get("global_step") == step


def test_a_module_s_own_state_dict_is_read(tmp_path):
    """Weights are found in the OrderedDict with attributes that Module.state_dict returns."""
    state = torch.nn.Linear(2, 3).state_dict()
    assert isinstance(state, OrderedDict)
    torch.save(state, tmp_path / "model.pt")
    assert torch.equal(opened_tensors(tmp_path / "model.pt")["weight"], state["weight"])


def test_the_vectors_of_textual_inversion_are_read(tmp_path):
    """The vectors lie one level deeper, in a dictionary or a module, with metadata beside them."""
    vectors = torch.randn(2, 8)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    for held in ({"*": vectors}, parameters):
        content = {"string_to_token": {"*": 265}, "string_to_param": held, "name": "fish"}
        torch.save(content, tmp_path / "x.pt")
        found = opened_tensors(tmp_path / "x.pt")
        assert found.keys() == {"string_to_param.*"}
        assert torch.equal(found["string_to_param.*"], vectors)
        with open_tensor_file(tmp_path / "x.pt") as opened:
            assert opened.metadata["name"] == "fish"


def test_tensors_at_any_other_level_are_ignored(tmp_path):
    """Tensors in any other dictionary, or in a module within it, are not weights."""
    parameters = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(2))})
    content = {"weight": torch.ones(2), "optimizer": {"state": torch.ones(2)}, "ema": parameters}
    torch.save(content, tmp_path / "x.ckpt")
    assert opened_tensors(tmp_path / "x.ckpt").keys() == {"weight"}


def test_a_tensor_with_attributes_is_read(tmp_path):
    """The tensor is read, and attributes that a program added to it are ignored."""
    weight = torch.randn(2)
    weight.note = "kept by me"
    torch.save({"weight": weight}, tmp_path / "model.pt")
    assert torch.equal(opened_tensors(tmp_path / "model.pt")["weight"], weight)


def test_checksums_are_those_of_the_stored_numbers(tmp_path):
    """The opened file has the CRC-32 of a storage's bytes, with which the loader detects damage."""
    torch.save(TENSORS, tmp_path / "model.ckpt")
    with open_tensor_file(tmp_path / "model.ckpt") as opened:
        tensor = opened.tensors["float"]
        data = os.pread(opened.fd, tensor.nbytes, tensor.offset)
        assert opened.checksums[tensor.offset, tensor.nbytes] == zlib.crc32(data)


def test_an_archive_without_checksums_is_read(tmp_path):
    """The tensors of a file that torch saved without checksums are read; none is reported."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": BASE}, tmp_path / "model.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_tensor_file(tmp_path / "model.ckpt") as opened:
        assert torch.equal(torch_tensor(opened.tensors["weight"]), BASE)
        assert opened.checksums == {}


class SparseFile(io.RawIOBase):
    """A new file in which long pieces are skipped instead of written. They read as zeros."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        self.position = 0

    def writable(self):
        """Return True."""
        return True

    def write(self, data):
        """Write pieces of less than 1 MiB, and leave a hole for longer ones."""
        length = memoryview(data).nbytes
        if length < 1 << 20:
            os.pwrite(self.fd, data, self.position)
        self.position += length
        return length

    def close(self):
        """Close the file if it is still open."""
        if not self.closed:
            os.close(self.fd)
        super().close()


@pytest.mark.slow
def test_an_archive_beyond_4_gigabytes_is_read(tmp_path):
    """Tensors of and behind 4 GB are found, with sizes and positions in zip's 64-bit fields."""
    path = tmp_path / "model.ckpt"
    large = torch.tensor([], dtype=torch.uint8).set_(torch.UntypedStorage(2**32 + 16))
    with SparseFile(path) as file:
        torch.save({"large": large, "after": BASE}, file)
    with open_tensor_file(path) as opened:
        assert opened.tensors["large"].shape == (2**32 + 16,)
        assert opened.tensors["after"].offset > 2**32
        assert torch.equal(torch_tensor(opened.tensors["after"]), BASE)


def saved(tensors):
    """Return the bytes of a file that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


WEIGHT = torch.arange(4, dtype=torch.float32)
GOOD = saved({"weight": WEIGHT})
PICKLE = zipfile.ZipFile(io.BytesIO(GOOD)).read("archive/data.pkl")
DATA = bytes(WEIGHT.view(torch.uint8).tolist())
DAMAGED = Reason.DAMAGED_FILE


def made_of(*parts, **options):
    """Return an archive that consists of a valid pickle and these records."""
    return zip_bytes([Part("archive/data.pkl", PICKLE), *parts], **options)


@pytest.mark.parametrize("zip64", [False, True])
def test_the_archives_of_the_fault_table_are_valid_without_a_fault(tmp_path, zip64):
    """The archives that the following table breaks can be read if they are intact."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(made_of(Part("archive/data/0", DATA), zip64=zip64))
    assert torch.equal(opened_tensors(path)["weight"], WEIGHT)


@pytest.mark.parametrize(
    ("content", "reason", "what"),
    [
        pytest.param(GOOD[:-9], DAMAGED, "truncated after", id="end cut off"),
        pytest.param(GOOD[:400], DAMAGED, "truncated after 400 bytes", id="half of it"),
        pytest.param(GOOD[:12], DAMAGED, "truncated", id="only the beginning"),
        pytest.param(GOOD[:300] + GOOD[310:], DAMAGED, "not where", id="bytes lost inside"),
        pytest.param(GOOD + b"more", DAMAGED, "added to", id="bytes added"),
        pytest.param(
            made_of(Part("archive/data/0", DATA), comment=b"hello"), DAMAGED, "added to",
            id="comment",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, comment=b"hello")), DAMAGED,
            "damaged directory entry", id="comment on a member",
        ),
        pytest.param(
            zip_bytes([Part("unet/config.json", b"{}"), Part("model_index.json", b"{}")]),
            Reason.NOT_A_MODEL,
            "not one of torch's; it holds unet/config.json, model_index", id="another zip",
        ),
        pytest.param(
            made_of(Part("elsewhere/data/0", DATA)), Reason.NOT_A_MODEL,
            "not one of torch's", id="two roots",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA), Part("archive/DATA/0", DATA)), DAMAGED,
            "two members have one name", id="names that differ in case",
        ),
        pytest.param(
            made_of(Part("archive/../data/0", DATA)), DAMAGED, "not a plain path",
            id="dots in a name",
        ),
        pytest.param(
            made_of(Part("archive/data\\0", DATA)), DAMAGED, "not a plain path", id="backslash"
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, method=8)), Reason.UNSUPPORTED_FORMAT,
            "compressed or encrypted", id="compressed",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, flags=1)), Reason.UNSUPPORTED_FORMAT,
            "compressed or encrypted", id="encrypted",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, flags=0x20)), DAMAGED, "unknown way", id="flags"
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, local_name="archive/data/1")), DAMAGED,
            "another name", id="local header with another name",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, local_size=8)), DAMAGED,
            "another size or checksum", id="local header with another size",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, local_crc=1)), DAMAGED,
            "another size or checksum", id="local header with another checksum",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, local_method=8)), DAMAGED, "contradicts",
            id="local header that says compressed",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, header_at=0)), DAMAGED, "overlap", id="overlap"
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA, gap=b"hidden")), DAMAGED, "hidden bytes",
            id="bytes between members",
        ),
        pytest.param(
            zip_bytes(
                [Part("archive/data.pkl", PICKLE, crc=7), Part("archive/data/0", DATA)]
            ), DAMAGED, "checksum of data.pkl", id="damaged pickle",
        ),
        pytest.param(made_of(), DAMAGED, "is missing", id="no numbers"),
        pytest.param(
            made_of(Part("archive/data/0", DATA[:8])), DAMAGED,
            "should be 16 bytes, but is 8 bytes long", id="too few numbers",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA), Part("archive/byteorder", b"big")),
            Reason.UNSUPPORTED_FORMAT, "little-endian", id="big-endian",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA), Part("archive/version", b"11\n")),
            Reason.UNSUPPORTED_FORMAT, "version 11", id="later version",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA), Part("archive/version", bytes(99))), DAMAGED,
            "version is 99 bytes long", id="long version",
        ),
        pytest.param(
            made_of(Part("archive/data/0", DATA), Part("archive/code/__torch__.py", b"pass")),
            Reason.UNSAFE_MODEL, "TorchScript", id="TorchScript",
        ),
        pytest.param(
            archive(PICKLE + b".", {"0": DATA}), DAMAGED, r"bytes follow its end \(1 in all\)",
            id="bytes after the pickle",
        ),
        pytest.param(saved({}), Reason.NOT_A_MODEL, "holds no tensors", id="no tensors"),
        pytest.param(saved([WEIGHT]), Reason.NOT_A_MODEL, "no dictionary of tensors", id="a list"),
        pytest.param(
            saved({"a\nb": WEIGHT}), DAMAGED, "unprintable", id="line break in a tensor's name"
        ),
        pytest.param(
            saved({"weight": torch.zeros(2, dtype=torch.complex64)}), Reason.UNSUPPORTED_FORMAT,
            "torch.ComplexFloatStorage are not supported", id="complex numbers",
        ),
        pytest.param(
            saved({"weight": torch.zeros(2, 2).to_sparse()}), Reason.UNSUPPORTED_FORMAT,
            "_rebuild_sparse_tensor are not supported", id="sparse tensor",
        ),
        pytest.param(
            saved({"weight": torch.zeros(1).expand(1000)}), DAMAGED, "beyond its storage",
            id="one number a thousand times",
        ),
    ],
)  # fmt: skip
def test_an_archive_that_torch_did_not_write_or_that_is_damaged_is_refused(
    tmp_path, content, reason, what
):
    """Each case breaks one rule, which the message names."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(LoaderError, match=what) as caught:
        open_tensor_file(path)
    assert caught.value.reason is reason


@given(st.data())
def test_a_damaged_archive_is_refused_or_its_tensors_stay_within_it(tmp_path_factory, data):
    """After any change, the result is a LoaderError, or tensors within the file."""
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = tmp_path_factory.mktemp("damaged") / "model.ckpt"
    path.write_bytes(content)
    try:
        opened = open_tensor_file(path)
    except LoaderError:
        return
    with opened:
        for tensor in opened.tensors.values():
            assert tensor.offset + tensor.nbytes <= len(content)
