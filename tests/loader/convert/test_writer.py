"""The writer's files equal those of safetensors and diffusers, and its memory is bounded."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from sd_api.reasons import Reason
from sd_loader.convert.write.cast import cast, not_finite, storage_dtype
from sd_loader.convert.write.files import Item, SmallFile, component_files, weights_file
from sd_loader.convert.write.strided_read import read_view
from sd_loader.convert.write.wants import wants_of
from sd_loader.convert.write.writer import write_folder
from sd_loader.digests import blake3_of
from sd_loader.errors import LoaderError
from sd_loader.progress import complete
from sd_loader.tensors import Dtype, Tensor, pieces, rows, transposed, view

TORCH = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F8_E5M2: torch.float8_e5m2,
    Dtype.F8_E4M3: torch.float8_e4m3fn,
    Dtype.I64: torch.int64,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
}
TARGETS = (Dtype.F32, Dtype.F16, Dtype.BF16)


def bits(tensor):
    """The tensor's bytes."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


class Source:
    """A file to which tensors can be appended."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._end = 3  # so that no tensor is aligned

    def put(self, tensor: torch.Tensor, dtype: Dtype) -> Tensor:
        """Append a tensor, and return where it lies. A view is stored with its whole storage."""
        storage = tensor.untyped_storage()
        content = bytes(torch.tensor([], dtype=torch.uint8).set_(storage).numpy())
        start, self._end = self._end, self._end + len(content)
        os.pwrite(self.fd, content, start)
        offset = start + tensor.storage_offset() * dtype.itemsize
        whole = Tensor(self.fd, dtype, tuple(tensor.shape), offset)
        return view(whole, whole.shape, tensor.stride())


@pytest.fixture
def source(tmp_path):
    """An empty file of tensors."""
    made = Source(tmp_path / "source")
    yield made
    os.close(made.fd)


def write(out, *files):
    """Write files into a new folder, without progress reports."""
    out.mkdir()
    return write_folder(out, files, lambda _: None)


def test_file_equals_the_one_that_safetensors_writes(tmp_path, source):
    """Order, header, padding and data are equal for all types. The digest is that of the file."""
    tensors, items = {}, []
    for number, (dtype, kind) in enumerate(TORCH.items()):
        for name in (f"b.{number}", f"a.{number}", f'é"{number}'):
            tensors[name] = torch.randn(number + 1, 3).to(kind)
            items.append(Item(name, source.put(tensors[name], dtype), dtype))
    tensors["scalar"] = torch.tensor(1.5)
    items.append(Item("scalar", source.put(tensors["scalar"], Dtype.F32), Dtype.F32))

    digests = write(tmp_path / "out", weights_file("unet/model.safetensors", items))

    content = (tmp_path / "out/unet/model.safetensors").read_bytes()
    assert content == save(tensors, {"format": "pt"})
    assert digests["unet/model.safetensors"].blake3 == blake3_of(content)
    assert digests["unet/model.safetensors"].size == len(content)


def test_small_files_are_written_unchanged(tmp_path):
    """Folders for the files are created, and everybody can read them."""
    digests = write(tmp_path / "out", SmallFile("a/b/c.json", b"{}"), SmallFile("empty", b""))
    assert (tmp_path / "out/a/b/c.json").read_bytes() == b"{}"
    assert (tmp_path / "out/a/b").stat().st_mode & 0o777 == 0o755
    assert list(digests) == ["a/b/c.json", "empty"]
    assert digests["empty"].blake3 == blake3_of(b"")


@pytest.mark.parametrize("sizes", [(6, 6, 2, 6, 2, 2), (1, 12, 1), (11,), (10,), (5, 5, 1), (3,)])
def test_large_component_is_sharded_as_in_diffusers(tmp_path, source, sizes, monkeypatch):
    """Shard names, contents and index are equal. A limit of 10 bytes stands for 10 GB."""
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"t{n}": torch.full((size,), n, dtype=torch.uint8) for n, size in enumerate(sizes)}
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=10
    )
    items = [Item(name, source.put(tensor, Dtype.U8), Dtype.U8) for name, tensor in state.items()]

    monkeypatch.setattr("sd_loader.convert.write.files.SHARD_BYTES", 10)
    digests = write(tmp_path / "out", *component_files("unet", "model", items))

    found = {path.removeprefix("unet/") for path in digests}
    assert found - {"model.safetensors.index.json"} == split.filename_to_tensors.keys()
    for name, names in split.filename_to_tensors.items():
        expected = save({key: state[key] for key in names}, {"format": "pt"})
        assert (tmp_path / "out/unet" / name).read_bytes() == expected
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = (tmp_path / "out/unet/model.safetensors.index.json").read_text()
        assert text == json.dumps(index, indent=2, sort_keys=True) + "\n"


def awkward(kind):
    """Numbers at the limits of the floating-point types, and random numbers."""
    edges = [0.0, -0.0, 1.0, 65504.0, 65519.0, -65519.0, 6e-8, 5.9e-8, 2.9e-8, 1e-40, 448.0, 0.1]
    edges += [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, float("inf"), float("-inf")]
    numbers = torch.cat([torch.tensor(edges, dtype=torch.float64), torch.randn(5000).double()])
    if kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        return torch.arange(256).to(torch.uint8).view(kind)
    return numbers.to(kind)


def cast_to(values, source, target):
    """Cast the values. Return the result and the number of overflows."""
    out = np.empty(values.shape, storage_dtype(target))
    return out, cast(values, source, target, out)


@pytest.mark.parametrize("target", TARGETS, ids=lambda dtype: f"to {dtype.label}")
@pytest.mark.parametrize("dtype", list(TORCH)[:6], ids=lambda dtype: dtype.label)
def test_casts_equal_those_of_torch(source, dtype, target):
    """All bits are equal except those of a NaN, which stays a NaN."""
    tensor = awkward(TORCH[dtype])
    values, _ = cast_to(read_view(source.put(tensor, dtype)), dtype, target)

    expected = tensor.to(TORCH[target])
    found = torch.from_numpy(values.view(np.int16 if target.itemsize == 2 else np.int32))
    nan = expected.isnan()
    assert torch.equal(found.view(TORCH[target]).isnan(), nan)
    assert torch.equal(found.view(TORCH[target])[~nan], expected[~nan])
    assert np.array_equal(bits(found.view(TORCH[target])[~nan]), bits(expected[~nan]))


def test_every_single_precision_nan_stays_a_nan():
    """If a cast only cut off the lower half of the bits, some NaNs would become infinities."""
    patterns = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFF8000, 0xFF800001], "<u4").view("<f4")
    for target in (Dtype.F16, Dtype.BF16):
        values, overflows = cast_to(patterns, Dtype.F32, target)
        assert not_finite(values, target) == (4, 0)
        assert overflows == 0


def test_all_numbers_of_half_precision_that_are_not_finite_are_counted():
    """All 2,046 NaNs and both infinities are counted, and each is found in an array of its own."""
    patterns = np.arange(2**16, dtype="<u2").view("<f2")
    assert not_finite(patterns, Dtype.F16) == (2046, 2)
    found = sum(not_finite(patterns[n : n + 1], Dtype.F16) != (0, 0) for n in range(2**16))
    assert found == 2048


@pytest.mark.parametrize(
    ("target", "largest", "too_large"),
    [
        pytest.param(Dtype.F16, 65519.0, 65520.0, id="fp16"),
        pytest.param(Dtype.BF16, 3.3895e38, 3.4e38, id="bf16"),
    ],
)
def test_cast_counts_overflows(target, largest, too_large):
    """Values that become infinite are counted; values that were infinite before are not."""
    fine = np.array([largest, -largest, np.inf, np.nan], "<f4")
    assert cast_to(fine, Dtype.F32, target)[1] == 0
    wrong = np.array([too_large, -too_large, np.inf, np.nan, 1.0], "<f4")
    assert cast_to(wrong, Dtype.F32, target)[1] == 2


def test_overflow_fails_and_names_the_tensor(tmp_path, source):
    """A cast that makes a weight infinite is refused, and the message names the tensor."""
    items = [
        Item("fine", source.put(torch.ones(9), Dtype.F32), Dtype.F16),
        Item("large", source.put(torch.tensor([1.0, 1e6, 2e6]), Dtype.F32), Dtype.F16),
    ]
    with pytest.raises(LoaderError, match=r"2 finite weights in 1 tensors.*: large") as caught:
        write(tmp_path / "out", weights_file("unet/model.safetensors", items))
    assert caught.value.reason is Reason.VERIFICATION_FAILED


@st.composite
def strided(draw):
    """A view of a small tensor with permuted, narrowed or repeated dimensions."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    axis = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, tensor.shape[axis] - 1))
    tensor = tensor.narrow(axis, start, tensor.shape[axis] - start)
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
    return tensor


@settings(max_examples=60, deadline=None)
@given(tensor=strided(), limit=st.integers(1, 30))
def test_any_view_is_read_in_element_order(tmp_path_factory, tensor, limit):
    """The order does not depend on strides or on the size of the chunks."""
    source = Source(tmp_path_factory.mktemp("views") / "source")
    try:
        stored = source.put(tensor, Dtype.F32)
        cut = list(pieces(stored, limit))
        assert all(piece.count <= limit for piece in cut)
        with patch("sd_loader.convert.write.strided_read.PIECE", limit):
            found = np.concatenate([read_view(piece) for piece in cut])
        assert np.array_equal(found, tensor.contiguous().view(-1).numpy())
    finally:
        os.close(source.fd)


def test_rows_and_transposes_equal_those_of_torch(tmp_path, source):
    """The key tables take rows of tensors and transpose them.

    The writer writes such views correctly, and also casts a transposed one.
    """
    matrix = torch.randn(6, 5)
    stored = source.put(matrix, Dtype.F32)
    items = [
        Item("rows", rows(stored, 2, 4), Dtype.F32),
        Item("turned", transposed(stored), Dtype.F32),
        Item("turned.half", transposed(stored), Dtype.F16),
        Item("turned.rows", rows(transposed(stored), 1, 3), Dtype.F32),
    ]
    write(tmp_path / "out", weights_file("model.safetensors", items))
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["rows"], matrix[2:4])
    assert torch.equal(found["turned"], matrix.T)
    assert torch.equal(found["turned.half"], matrix.T.half())
    assert torch.equal(found["turned.rows"], matrix.T[1:3])


def test_tensor_is_copied_between_file_systems(tmp_path):
    """A source in memory is written completely to the disk."""
    fd = os.memfd_create("source")
    try:
        content = os.urandom(3 * 2**20 + 5)
        os.pwrite(fd, content, 0)
        item = Item("x", Tensor(fd, Dtype.U8, (len(content) - 1,), 1), Dtype.U8)
        write(tmp_path / "out", weights_file("model.safetensors", [item]))
    finally:
        os.close(fd)
    assert (tmp_path / "out/model.safetensors").read_bytes().endswith(content[1:])


@pytest.mark.parametrize("target", [Dtype.F32, Dtype.F16], ids=["copied", "cast"])
def test_truncated_source_is_an_error(tmp_path, source, target):
    """If a source is too short, the error names its end. Missing bytes must not become zeros."""
    tensor = source.put(torch.ones(100), Dtype.F32)
    os.ftruncate(source.fd, 200)
    with pytest.raises(LoaderError, match="ends at byte 200") as caught:
        write(tmp_path / "out", weights_file("model.safetensors", [Item("x", tensor, target)]))
    assert caught.value.reason is Reason.CONVERSION_FAILED


def test_full_volume_is_named(tmp_path, source):
    """The error has the reason InsufficientStorage. A file size limit stands for a full disk."""
    tensor = source.put(torch.ones(1000, 1000), Dtype.F32)
    file = weights_file("unet/model.safetensors", [Item("x", tensor, Dtype.F32)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(LoaderError, match=os.strerror(errno.EFBIG)) as caught:
            write(tmp_path / "out", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.reason is Reason.INSUFFICIENT_STORAGE


def test_too_small_volume_is_refused_before_writing(tmp_path, source):
    """The message gives the number of bytes that the files need."""
    giant = Tensor(source.fd, Dtype.F32, (2**60,), 0)
    file = weights_file("model.safetensors", [Item("x", giant, Dtype.F32)])
    with pytest.raises(LoaderError, match=f"needs {file.size} bytes") as caught:
        write(tmp_path / "out", file)
    assert caught.value.reason is Reason.INSUFFICIENT_STORAGE
    assert list((tmp_path / "out").iterdir()) == []


def test_one_failure_ends_the_conversion(tmp_path, source):
    """If a file cannot be written, the files after it are not begun."""
    good = source.put(torch.ones(2**20), Dtype.F32)
    bad = Tensor(source.fd, Dtype.F32, (2**20,), 2**40)
    files = [
        weights_file(f"{number}.safetensors", [Item("x", tensor, Dtype.F16)])
        for number, tensor in enumerate([good, bad, good])
    ]
    with pytest.raises(LoaderError, match="ends at byte"):
        write(tmp_path / "out", *files)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["0.safetensors", "1.safetensors"]


def test_progress_is_reported_up_to_the_last_byte(tmp_path, source):
    """The last report has all bytes, and no report has fewer bytes than the one before."""
    tensor = source.put(torch.ones(2**20), Dtype.F32)
    file = weights_file("model.safetensors", [Item("x", tensor, Dtype.F32)])
    reports = []
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", [file, SmallFile("a.json", b"{}")], reports.append)
    done = [progress.bytes_done for progress in reports]
    assert done == sorted(done)
    assert len(done) > 4
    assert (done[-1], complete(reports[-1], 1, 0).percent) == (file.size + 2, 100)


def test_two_tensors_of_one_name_are_refused(source):
    """A plan with two tensors of one name is refused: one tensor would hide the other."""
    item = Item("x", source.put(torch.ones(1), Dtype.F32), Dtype.F32)
    with pytest.raises(LoaderError, match="two tensors of one name"):
        weights_file("model.safetensors", [item, item])


MEASURED = """
import os, sys
from pathlib import Path
from sd_loader.convert.write.files import Item, weights_file
from sd_loader.convert.write.writer import write_folder
from sd_loader.tensors import Dtype, Tensor

fd = os.open(sys.argv[1], os.O_RDONLY)
side = 5120
turned = Tensor(fd, Dtype.F32, (side, side), 0, (1, side))
items = [Item("turned", turned, Dtype.F16)]
items += [Item(str(n), Tensor(fd, Dtype.F32, (side, side), 0), Dtype.BF16) for n in range(2)]
write_folder(Path(sys.argv[2]), [weights_file("model.safetensors", items)], lambda _: None)
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


def test_memory_is_bounded(tmp_path):
    """Casting tensors of 105 MB, one of them transposed, needs less than 100 MB in total."""
    source, out = tmp_path / "source", tmp_path / "out"
    with source.open("wb") as file:
        file.truncate(4 * 5120 * 5120)
    out.mkdir()
    command = [sys.executable, "-c", MEASURED, str(source), str(out)]
    peak = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(peak.stdout) < 100 * 1000


def test_tensor_that_delays_a_digest_is_requested_first(source):
    """The source's tensor that holds up the digest of an output file is requested first.

    An example is a UNet's time embedding, last in the source but early in its own file.
    """
    side = 4096
    names = ("c.0", "c.1", "b")  # in the order of the source
    tensors = {
        name: Tensor(source.fd, Dtype.F32, (side if name != "b" else 1, side), 4 * side * side * n)
        for n, name in enumerate(names)
    }
    file = weights_file(
        "model.safetensors", [Item(name, tensor, Dtype.F32) for name, tensor in tensors.items()]
    )
    wants = wants_of([file], source.fd)
    assert wants.ordered[0].start == tensors["b"].offset
    assert [want.start for want in wants.ordered[1:]] == sorted(
        want.start for want in wants.ordered[1:]
    )
    assert wants.ranges() == [
        (tensors["b"].offset, tensors["b"].offset + 4 * side),
        (0, 2 * 4 * side * side),
    ]
