"""Links are converted while they download, with the same result as from the whole file."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from devkit.fakefiles import FileServer
from devkit.fakehub import sha256
from sd_api.reasons import Reason
from sd_loader.convert.write import wants as wants_module
from sd_loader.convert.write.files import Item, weights_file
from sd_loader.convert.write.streaming import StreamedFolder
from sd_loader.convert.write.wants import wants_of
from sd_loader.convert.write.writer import write_folder
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Converted, Fetched
from sd_loader.net.patience import Retries
from sd_loader.settings import Settings
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.loader.fetches import fetch
from tests.support.models.checkpoints import (
    save_ckpt,
    save_safetensors,
    smallest_sd15,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import convert_file, load_request

QUICK = Retries(delays=(0.0, 0.0), sleep=lambda _: None)
PATIENT = Retries(delays=(0.0,) * 20, sleep=lambda _: None)
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Case:
    """A checkpoint and the fields of its load."""

    name: str
    container: str
    fields: dict[str, object] = field(default_factory=dict)
    share: float = 1.0
    """The largest fraction of the file's bytes that the load may download."""

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("safetensors", "safetensors"),
    Case("safetensors, cast", "safetensors", {"revision": "bf16"}),
    Case("ckpt, cast", "ckpt", {"revision": "fp16"}),
    Case("ckpt with ema", "ema.ckpt", {"revision": "fp16"}, share=0.75),
    Case("ema of a ckpt", "ema.ckpt", {"revision": "fp16", "weights": "ema"}, share=0.85),
    Case("safetensors of SDXL", "sdxl.safetensors", {"revision": "fp16"}),
    Case("ckpt of SDXL", "sdxl.ckpt", {"revision": "fp16"}),
]
FEW = [CASES[0], CASES[2]]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in FEW]


class Checkpoints:
    """Checkpoints and their conversions without streaming. Each is made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._converted: dict[str, Converted] = {}

    def file(self, case: Case) -> Path:
        """Return the checkpoint in single precision, writing it on first use."""
        path = self.root / f"model.{case.container}"
        if not path.exists():
            if "sdxl" in case.container:
                tensors = tiny_sdxl(torch.float32)
            elif "ema" in case.container:
                tensors = tiny_sd15(torch.float32, ema=True)
            else:
                tensors = smallest_sd15(torch.float32)
            save = save_ckpt if case.container.endswith("ckpt") else save_safetensors
            save(path, tensors)
        return path

    def converted(self, case: Case) -> Converted:
        """Return the conversion of the whole file."""
        if case.name not in self._converted:
            out = self.root / f"out of {case}"
            self._converted[case.name] = convert_file(self.file(case), out, **case.fields)
        return self._converted[case.name]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One set of checkpoints for all tests, which only read it."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def server():
    """A file server on loopback."""
    with FileServer() as running:
        yield running


@dataclass
class Pod:
    """The folders of one model, and fetches into them."""

    root: Path
    server: FileServer

    @property
    def into(self) -> Path:
        """The folder for downloaded files."""
        return self.root / "source"

    @property
    def out(self) -> Path:
        """The folder for converted files."""
        return self.root / "out"

    def fetch(self, url: str, retries: Retries = QUICK, **fields: object) -> Fetched:
        """Run a fetch as the fetch container does."""
        for folder in (self.into, self.out):
            folder.mkdir(exist_ok=True)
        settings = Settings(allowed_hosts=frozenset({self.server.host}))
        request = load_request(url=url, **fields)
        return fetch(request, settings, self.into, retries=retries, out=self.out)


@pytest.fixture
def pod(tmp_path, server):
    """A Pod that can reach the server."""
    return Pod(tmp_path, server)


def cut_in_half(server: FileServer, path: Path) -> str:
    """Serve the file so that every response ends after at most half of it. Return the link."""
    return server.serve_file("/model", path, cut_at=path.stat().st_size // 2, cuts=1000)


@pytest.mark.parametrize("case", [*FEW, *SLOW], ids=str)
def test_streamed_folder_equals_that_of_the_whole_file(pod, server, checkpoints, case):
    """All files and digests are equal.

    The loader downloads only what it needs and keeps no download. The digest of the source is known
    if no large part of it is left out.
    """
    path = checkpoints.file(case)
    fetched = pod.fetch(server.serve_file("/model", path), **case.fields)

    assert fetched.converted == checkpoints.converted(case)
    whole = checkpoints.root / f"out of {case}"
    for name in fetched.converted.files:
        assert (pod.out / name).read_bytes() == (whole / name).read_bytes(), name
    assert fetched.source.size_bytes == path.stat().st_size
    if case.share == 1.0:
        assert (fetched.source.sha256, fetched.source.sha256_missing) == (sha256(path), None)
    else:
        assert (fetched.source.sha256, fetched.source.sha256_missing) == (None, "RangesOnly")
    assert server.bytes_served < case.share * path.stat().st_size + 4 * MEGABYTE
    kept = sum(file.stat().st_blocks * 512 for file in pod.into.iterdir())
    assert kept < 16 * MEGABYTE  # the pages that hold local headers


@pytest.mark.parametrize("case", [CASES[2], *SLOW], ids=str)
def test_ten_cut_responses_do_not_change_the_folder(pod, server, checkpoints, case):
    """Ten responses end early. The loader downloads hardly any byte twice."""
    path = checkpoints.file(case)
    cut = random.Random(case.name).randint(MEGABYTE, path.stat().st_size // 20)
    url = server.serve_file("/model", path, cut_at=cut, cuts=10)

    fetched = pod.fetch(url, PATIENT, **case.fields)

    assert fetched.converted == checkpoints.converted(case)
    assert len(server.requests) > 10
    assert server.bytes_served < path.stat().st_size + 4 * MEGABYTE


@pytest.mark.parametrize(
    "case",
    [CASES[2], *(pytest.param(CASES[number], marks=pytest.mark.slow) for number in (0, 3))],
    ids=str,
)
def test_next_pod_continues_a_streamed_load(pod, server, checkpoints, case):
    """The next Pod uses what the first wrote before its source failed."""
    path = checkpoints.file(case)
    with pytest.raises(LoaderError):
        pod.fetch(cut_in_half(server, path), Retries(delays=()), **case.fields)
    first = server.bytes_served
    server.forget()
    fetched = pod.fetch(server.serve_file("/model", path), **case.fields)

    assert fetched.converted == checkpoints.converted(case)
    assert server.bytes_served < path.stat().st_size - first + 6 * MEGABYTE
    missing = "Resumed" if case.share == 1.0 else "RangesOnly"
    assert (fetched.source.sha256, fetched.source.sha256_missing) == (None, missing)


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        pytest.param({"etag": '"other"'}, {}, id="another version", marks=pytest.mark.slow),
        pytest.param({}, {"revision": "fp16"}, id="another precision"),
    ],
)
def test_changed_source_or_plan_starts_over(pod, server, checkpoints, changed, fields):
    """A new version of the source or another precision discards the earlier progress."""
    path = checkpoints.file(CASES[0])
    with pytest.raises(LoaderError):
        pod.fetch(cut_in_half(server, path), Retries(delays=()))
    assert json.loads((pod.out / ".streamed.json").read_text())["durable"] > 0

    fetched = pod.fetch(server.serve_file("/model", path, **changed), **fields)

    expected = checkpoints.converted(Case("fp16", "safetensors", fields) if fields else CASES[0])
    assert fetched.converted == expected


def test_file_that_changes_during_the_load_starts_over(pod, server, checkpoints):
    """The folder never mixes two versions of the file."""
    path = checkpoints.file(CASES[0])
    other = Case("other", "other.safetensors")
    if not (checkpoints.root / "model.other.safetensors").exists():
        save_safetensors(
            checkpoints.root / "model.other.safetensors", smallest_sd15(torch.float32, seed=1)
        )
    url = cut_in_half(server, path)

    def serve_the_other(_: float) -> None:
        server.serve_file("/model", checkpoints.file(other))

    fetched = pod.fetch(url, Retries(delays=(0.0,), sleep=serve_the_other))

    assert fetched.converted == checkpoints.converted(other)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"ignore_range": True}, id="no ranges"),
        pytest.param({"validators": False}, id="no validator", marks=pytest.mark.slow),
        pytest.param({"etag": 'W/"weak"'}, id="a weak validator"),
    ],
)
def test_source_without_safe_ranges_is_downloaded_first(pod, server, checkpoints, faults):
    """The loader downloads the whole file and computes its digest."""
    path = checkpoints.file(CASES[0])
    fetched = pod.fetch(server.serve_file("/model", path, **faults))
    assert fetched.converted is None
    assert fetched.source.sha256 is not None
    assert (pod.into / fetched.path).read_bytes() == path.read_bytes()
    assert list(pod.out.iterdir()) == []


@pytest.mark.parametrize(
    "case", [CASES[0], pytest.param(CASES[3], marks=pytest.mark.slow)], ids=str
)
def test_file_with_an_expected_digest_is_streamed_as_a_whole(pod, server, checkpoints, case):
    """The loader also downloads the bytes that the conversion does not need."""
    path = checkpoints.file(case)
    digest = sha256(path)
    fetched = pod.fetch(server.serve_file("/model", path), sha256=digest, **case.fields)
    assert fetched.converted == checkpoints.converted(case)
    assert fetched.source.sha256 == digest
    assert path.stat().st_size <= server.bytes_served < path.stat().st_size + 4 * MEGABYTE


def test_expected_digest_is_checked_over_the_whole_file(pod, server, checkpoints):
    """A file with another digest is refused after its last byte."""
    path = checkpoints.file(CASES[0])
    url = server.serve_file("/model", path)
    with pytest.raises(LoaderError, match=r"has sha256 [0-9a-f]{64}, not 0{64}") as caught:
        pod.fetch(url, sha256="0" * 64)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_interrupted_load_with_an_expected_digest_is_downloaded_first(pod, server, checkpoints):
    """A digest cannot continue from converted bytes, so the next fetch downloads the file."""
    path = checkpoints.file(CASES[0])
    digest = sha256(path)
    with pytest.raises(LoaderError):
        pod.fetch(cut_in_half(server, path), Retries(delays=()), sha256=digest)
    fetched = pod.fetch(server.serve_file("/model", path), sha256=digest)
    assert (fetched.converted, fetched.source.sha256) == (None, digest)
    assert (pod.into / fetched.path).read_bytes() == path.read_bytes()
    assert list(pod.out.iterdir()) == []


def test_repacked_archive_is_downloaded_first(pod, server, checkpoints, tmp_path):
    """The loader cannot predict the offsets of members unless torch aligned them."""
    path = tmp_path / "repacked.ckpt"
    with zipfile.ZipFile(checkpoints.file(CASES[2])) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    fetched = pod.fetch(server.serve_file("/model", path), revision="fp16")
    assert fetched.converted is None
    assert (pod.into / fetched.path).read_bytes() == path.read_bytes()


def test_local_header_that_contradicts_the_directory_is_refused(pod, server, checkpoints):
    """The loader reads the header only after it has planned the conversion."""
    path = checkpoints.file(CASES[2])
    with open_tensor_file(path) as file:
        weights = file.tensors["model.diffusion_model.out.2.weight"].offset
    content = bytearray(path.read_bytes())
    header = content.rindex(b"PK\x03\x04", 0, weights)
    content[content.index(b"/data/", header) + 1] ^= 1
    with pytest.raises(LoaderError, match="gives another name") as caught:
        pod.fetch(server.serve_file("/model", bytes(content)), revision="fp16")
    assert caught.value.reason is Reason.DAMAGED_FILE


def test_unsupported_model_is_refused_before_its_weights_are_downloaded(pod, server, tmp_path):
    """The header of the file shows that the loader cannot convert it."""
    tensors = {"model.nothing": torch.zeros(9 * MEGABYTE)}
    url = server.serve_file("/model", save_safetensors(tmp_path / "model.safetensors", tensors))
    with pytest.raises(LoaderError) as caught:
        pod.fetch(url)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert server.bytes_served < 4 * MEGABYTE


def test_overflow_is_found_while_streaming(pod, server, tmp_path):
    """The message names the tensor, as it does without streaming."""
    tensors = smallest_sd15(torch.float32)
    tensors["model.diffusion_model.out.2.bias"][0] = 1e6
    url = server.serve_file("/model", save_safetensors(tmp_path / "model.safetensors", tensors))
    with pytest.raises(LoaderError, match=r"1 finite weights.*conv_out\.bias") as caught:
        pod.fetch(url, revision="fp16")
    assert caught.value.reason is Reason.VERIFICATION_FAILED


@pytest.mark.slow
def test_lost_output_is_downloaded_again(pod, server, checkpoints):
    """A progress record without its output files would leave gaps in the folder."""
    path = checkpoints.file(CASES[0])
    with pytest.raises(LoaderError):
        pod.fetch(cut_in_half(server, path), Retries(delays=()))
    shutil.rmtree(pod.out)

    fetched = pod.fetch(server.serve_file("/model", path))

    assert fetched.converted == checkpoints.converted(CASES[0])
    assert not (pod.out / ".streamed.json").exists()


@dataclass
class NoRecord:
    """A progress record that starts at zero and stores nothing."""

    def done(self) -> int:
        """Return 0."""
        return 0

    def set_done(self, written: int, durable: int) -> None:
        """Ignore the progress."""


def test_bytes_may_arrive_out_of_order(tmp_path, monkeypatch):
    """The tensor that delays a digest comes first, and the file is still the same."""
    monkeypatch.setattr(wants_module, "HELD_UP_BYTES", 4 * MEGABYTE)
    side = 1024
    content = random.Random(0).randbytes(2 * 4 * side * side + 4 * side)
    source = tmp_path / "source"
    source.write_bytes(content)
    fd = os.open(source, os.O_RDWR)
    shapes = {"c.0": (side, side), "c.1": (side, side), "b": (1, side)}
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        tensors[name] = Tensor(fd, Dtype.F32, shape, offset)
        offset += tensors[name].nbytes
    items = [Item(name, tensor, Dtype.F32) for name, tensor in tensors.items()]
    file = weights_file("model.safetensors", items)
    wants = wants_of([file], fd)
    (tmp_path / "whole").mkdir()
    (tmp_path / "streamed").mkdir()
    try:
        expected = write_folder(tmp_path / "whole", [file], lambda _: None)
        opened = [TensorFile(source, fd, "safetensors", tensors)]
        with StreamedFolder(tmp_path / "streamed", [file], wants, opened, fd, NoRecord()) as folder:
            for start, end in wants.ranges():
                for position in range(start, end, MEGABYTE - 1):
                    piece = content[position : min(end, position + MEGABYTE - 1)]
                    folder.feed(position, memoryview(piece))
            found = folder.finish()
    finally:
        os.close(fd)
    assert wants.ordered[0].start == tensors["b"].offset
    assert found == expected
