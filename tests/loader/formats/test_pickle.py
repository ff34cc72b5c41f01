"""The symbolic pickle reader: it finds the weights, runs no code, and always ends."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.pickle import load
from sd_loader.formats.pickle_objects import OPAQUE, Storage, View
from sd_loader.formats.state_dict import split
from sd_loader.tensors import Dtype
from tests.support.formats.torchfiles import archive
from tests.support.hostile import pickles as hostile
from tests.support.hostile.pickles import SAMPLES

WEIGHT = torch.arange(4, dtype=torch.float32)


def pickle_of(content):
    """Return the pickle that torch.save puts into its archive."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return zipfile.ZipFile(buffer).read("archive/data.pkl")


GOOD = pickle_of({"state_dict": {"weight": WEIGHT}, "global_step": 3})


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Change to a folder with a module that creates a canary file when it is imported."""
    source = "open('canary', 'w').close()\n\nclass Thing:\n    pass\n\nanything = Thing()\n"
    (tmp_path / f"{hostile.CANARY_MODULE}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_hostile_pickle_runs_in_python_but_is_refused_here(trap, sample):
    """Python's pickle, in its own process, creates the canary.

    The loader's reader refuses the pickle.
    """
    script = "import pickle, sys; sys.path.insert(0, ''); pickle.load(sys.stdin.buffer)"
    subprocess.run(
        [sys.executable, "-c", script], input=sample, capture_output=True, timeout=30, check=False
    )
    (trap / "canary").unlink()  # fails unless Python's pickle ran the code of the sample

    (trap / "model.ckpt").write_bytes(archive(sample))
    with pytest.raises(LoaderError) as caught:
        open_tensor_file(trap / "model.ckpt")

    assert caught.value.reason is Reason.UNSAFE_MODEL
    assert not (trap / "canary").exists()
    assert hostile.CANARY_MODULE not in sys.modules


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda good: good[:-1] + hostile.RUN + b"0.", id="after the weights"),
        pytest.param(lambda good: good[:2] + hostile.RUN + b"0" + good[2:], id="before them"),
    ],
)
def test_code_hidden_in_a_good_checkpoint_is_found(trap, place):
    """The pickle is refused although it also has valid weights."""
    content = archive(place(GOOD), {"0": WEIGHT.numpy().tobytes()})
    (trap / "model.ckpt").write_bytes(content)
    with pytest.raises(LoaderError, match=r"model\.ckpt: the pickle is refused: .*posix\.system"):
        open_tensor_file(trap / "model.ckpt")
    assert not (trap / "canary").exists()


def test_the_error_names_the_function_that_the_pickle_would_call():
    """The message shows the beginning of the name, is printable, and has under 200 characters."""
    with pytest.raises(LoaderError) as caught:
        load(hostile.name("evil\x1b[31m" + "x" * 500, "y") + b".")
    assert "evil?[31mxxx" in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_instructions_of_old_pickles_are_refused_unread():
    """The message names the instruction STRING; its argument is never decoded."""
    with pytest.raises(LoaderError, match="it holds STRING, which torch never writes") as caught:
        load(b"S'\\ \\N{x}'\n.")
    assert caught.value.reason is Reason.UNSAFE_MODEL


def test_escapes_in_names_are_not_interpreted():
    """An escape in a name stays literal, as in Python's pickle, so the name is not `torch`."""
    with pytest.raises(LoaderError, match="refers to") as caught:
        load(rb"c\x74orch" + b"\nSize\n.")
    assert caught.value.reason is Reason.UNSAFE_MODEL


@pytest.mark.parametrize(
    "extension", [b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0"], ids=["EXT1", "EXT2", "EXT4"]
)
def test_extension_codes_are_refused(extension):
    """A pickle that names an object by an extension code, which Python looks up, is refused."""
    with pytest.raises(LoaderError, match="EXT") as caught:
        load(hostile.pickled(extension))
    assert caught.value.reason is Reason.UNSAFE_MODEL


@pytest.mark.parametrize("protocol", range(2, 6))
def test_harmless_objects_beside_the_weights_are_ignored(protocol):
    """Objects of the known harmless classes of training programs are dropped with their content."""
    numbers = defaultdict(list, {"a": [1]})
    content = {
        "args": Namespace(lr=0.1, path=PosixPath("/data"), tags={"a"}, frozen=frozenset({1})),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "raw": b"\xff\0",
        "array": bytearray(b"xy"),
        "complex": 1 + 2j,
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "torch": torch.__version__,
        "size": torch.Size([2, 3]),
        "large": 2**400,
        "negative": -(2**40),
        "flag": True,
        "nothing": None,
        "nested": {"deep": [({"x": 1.5},)]},
        "defaults": numbers,
        3: "a key that is a number",
        (1, 2): OrderedDict(a=1),
    }
    loaded, end = load(data := pickle.dumps(content, protocol=protocol))
    assert end == len(data)
    assert loaded["args"] is loaded["best"] is loaded["history"] is OPAQUE
    assert loaded["nested"] == {"deep": [({"x": 1.5},)]}
    assert loaded["defaults"] == {"a": [1]}
    assert (loaded["large"], loaded["negative"], loaded["flag"]) == (2**400, -(2**40), True)
    assert loaded[3] == "a key that is a number"
    assert (1, 2) not in loaded


def test_a_call_that_would_fill_the_memory_is_not_made():
    """The reader takes the call `bytearray(10**13)` for an opaque object, and calls nothing."""
    size = struct.pack("<q", 10**13)
    content = hostile.call(hostile.name("builtins", "bytearray"), b"\x8a\x08" + size)
    assert load(hostile.pickled(content))[0] is OPAQUE


def storage(kind=b"ctorch\nFloatStorage\n", key="0", count=b"K\x04", *, more=b""):
    """Return a reference to a storage, as torch writes it."""
    parts = hostile.text("storage"), kind, hostile.text(key), hostile.text("cpu"), count, more
    return hostile.arguments(*parts) + b"Q"


def tensor(*, offset=b"K\0", shape=b"(K\x04t", strides=b"(K\x01t", source=None):
    """Return the pickle of a dictionary with one tensor, as torch writes it."""
    hooks = hostile.call(hostile.name("collections", "OrderedDict"))
    rebuild = hostile.name("torch._utils", "_rebuild_tensor_v2")
    source = storage() if source is None else source
    view = hostile.call(rebuild, source, offset, shape, strides, b"\x89", hooks)
    return b"\x80\x02}" + hostile.text("weight") + view + b"s."


def test_the_tensor_of_the_fault_table_is_valid_without_a_fault():
    """The pickle that the following table breaks can be read if it is intact."""
    content, _ = load(tensor())
    assert isinstance(content["weight"], View)
    assert (content["weight"].shape, content["weight"].storage.nbytes) == ((4,), 16)


LONG = b"\x8a\x09" + bytes(8) + b"\x01"  # 2**64


@pytest.mark.parametrize(
    ("content", "reason", "what"),
    [
        pytest.param(tensor(offset=b"K\x01"), Reason.DAMAGED_FILE, "beyond its", id="offset"),
        pytest.param(
            tensor(offset=b"J\xff\xff\xff\xff"), Reason.DAMAGED_FILE, "not sizes", id="before it"
        ),
        pytest.param(tensor(shape=b"(K\x05t"), Reason.DAMAGED_FILE, "beyond its", id="shape"),
        pytest.param(tensor(strides=b"(K\x02t"), Reason.DAMAGED_FILE, "beyond its", id="strides"),
        pytest.param(
            tensor(strides=b"(J\xff\xff\xff\xfft"), Reason.DAMAGED_FILE, "not sizes", id="backward"
        ),
        pytest.param(
            tensor(shape=b"(K\x63K\x63t", strides=b"(K\0K\0t"), Reason.DAMAGED_FILE, "beyond its",
            id="one number repeated",
        ),
        pytest.param(
            tensor(shape=b"(" + LONG + b"t"), Reason.DAMAGED_FILE, "not sizes", id="2**64"
        ),
        pytest.param(tensor(shape=b"(\x88t"), Reason.DAMAGED_FILE, "not sizes", id="True"),
        pytest.param(
            tensor(shape=b"(" + b"K\x01" * 9 + b"t"), Reason.DAMAGED_FILE, "not sizes", id="rank 9"
        ),
        pytest.param(tensor(shape=b")"), Reason.DAMAGED_FILE, "differ in length", id="ranks"),
        pytest.param(tensor(source=b"N"), Reason.DAMAGED_FILE, "incomplete", id="no storage"),
        pytest.param(
            tensor(source=storage(count=b"G" + bytes(8))), Reason.DAMAGED_FILE,
            "unknown reference", id="count is a fraction",
        ),
        pytest.param(
            tensor(source=storage(more=b"N")), Reason.DAMAGED_FILE, "unknown reference", id="six"
        ),
        pytest.param(
            tensor(source=storage(kind=hostile.text("Float"))), Reason.UNSUPPORTED_FORMAT,
            "an unknown kind", id="type is no class",
        ),
        pytest.param(
            tensor(source=storage(kind=b"ctorch\nQInt8Storage\n")), Reason.UNSUPPORTED_FORMAT,
            "torch.QInt8Storage", id="quantized",
        ),
        pytest.param(b"\x80\x02}", Reason.DAMAGED_FILE, "it is cut off", id="cut off"),
        pytest.param(b"\x80\x02X\xff\xff", Reason.DAMAGED_FILE, "not enough data", id="cut inside"),
        pytest.param(b"\xfe.", Reason.DAMAGED_FILE, "0xfe is not an instruction", id="instruction"),
        pytest.param(b".", Reason.DAMAGED_FILE, "exactly one object", id="nothing"),
        pytest.param(b"}}.", Reason.DAMAGED_FILE, "exactly one object", id="two objects"),
        pytest.param(b"(}.", Reason.DAMAGED_FILE, "exactly one object", id="open mark"),
        pytest.param(b"t.", Reason.DAMAGED_FILE, "a mark that does not exist", id="no mark"),
        pytest.param(b"0.", Reason.DAMAGED_FILE, "that does not exist", id="nothing to pop"),
        pytest.param(b"q\0.", Reason.DAMAGED_FILE, "that does not exist", id="nothing to keep"),
        pytest.param(b"h\x07.", Reason.DAMAGED_FILE, "did not store", id="never kept"),
        pytest.param(b"NNa.", Reason.DAMAGED_FILE, "not a list", id="append to None"),
        pytest.param(b"NNNs.", Reason.DAMAGED_FILE, "not a dictionary", id="item of None"),
        pytest.param(b"}(Nu.", Reason.DAMAGED_FILE, "key without a value", id="odd items"),
        pytest.param(b"NNb.", Reason.UNSAFE_MODEL, "sets attributes", id="state of None"),
        pytest.param(b"N)R.", Reason.UNSAFE_MODEL, "not a function", id="call of None"),
        pytest.param(
            b"ctorch\nSize\nNR.", Reason.UNSAFE_MODEL, "not a function", id="no arguments"
        ),
        pytest.param(b"ctorch\nSize\n)R.", Reason.DAMAGED_FILE, "lacks", id="too few arguments"),
        pytest.param(b"\x80\x04NN\x93.", Reason.UNSAFE_MODEL, "computes the name", id="no name"),
        pytest.param(
            b"ccollections\nOrderedDict\n(]tR.", Reason.DAMAGED_FILE, "made from other objects",
            id="dictionary of a list",
        ),
    ],
)  # fmt: skip
def test_a_pickle_that_contradicts_itself_is_refused(content, reason, what):
    """Each case has one fault, which the message names."""
    with pytest.raises(LoaderError, match=what) as caught:
        load(content)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b"(" * 20_000 + b".", "nested deeper", id="marks"),
        pytest.param(b"N" * 300_000 + b".", "objects at a time", id="stack"),
        pytest.param(b"N0" * 1_100_000 + b".", "than 1000000 instructions", id="instructions"),
    ],
)
def test_a_pickle_that_would_cost_too_much_is_refused(content, what):
    """Each case exceeds one limit."""
    with pytest.raises(LoaderError, match=what):
        load(content)


def test_a_structure_that_doubles_with_every_instruction_takes_little_memory():
    """A pickle in which each tuple contains the previous one twice is not expanded.

    It would have 2**1000 leaves.
    """
    content, _ = load(b"\x80\x02N" + b"2\x86" * 1000 + b".")
    with pytest.raises(LoaderError, match="no dictionary of tensors"):
        split(content)


def test_a_dictionary_that_contains_itself_is_refused():
    """A dictionary that has itself under the key `state_dict` raises an error, without a loop."""
    content, _ = load(b"\x80\x02}q\0" + hostile.text("state_dict") + b"h\0s.")
    with pytest.raises(LoaderError, match="holds no tensors"):
        split(content)
    content["weight"] = View(Storage(Dtype.F32, "0", 4), Dtype.F32, 0, (4,), (1,))
    with pytest.raises(LoaderError, match="no dictionary of tensors"):
        split(content)


def test_values_beside_the_weights_are_bounded():
    """Metadata comes from the file, so values are short and printable and numbers are not huge."""
    content = {"state_dict": {"w": WEIGHT}, "note": "line\nbreak" + "!" * 900, "n": 10**5000}
    views, metadata = split(load(pickle_of(content))[0])
    assert views.keys() == {"w"}
    assert metadata.keys() == {"note"}
    assert metadata["note"].startswith("line break!!")
    assert len(metadata["note"]) < 100


def test_only_numbers_that_can_be_widths_are_kept_as_keys():
    """A hypernetwork's keys are widths, from 0 to 65535. Other numbers and booleans are dropped."""
    content = {768: 1, 65_535: 2, 0: 3, 65_536: 4, -1: 5, 2.5: 6, True: 7, "a": 8}
    assert load(pickle_of(content))[0] == {768: 1, 65_535: 2, 0: 3, "a": 8}


def test_keys_with_equal_hashes_take_little_time():
    """A pickle with 20,000 keys of the hash 0 is read in less than 2 s; the keys are dropped."""
    items = b"".join(
        pickle.dumps(number * (2**61 - 1), 2)[2:-1] + b"N" for number in range(1, 20_001)
    )
    start = time.process_time()
    assert load(b"\x80\x02}(" + items + b"u.")[0] == {}
    assert time.process_time() - start < 2


def test_key_that_is_too_large_to_be_written_is_ignored():
    """An entry whose key is a number of 6,001 digits is dropped; weights beside it are found."""
    content, _ = load(pickle_of({10**6000: ({"w": WEIGHT}, {}), "state_dict": {"w": WEIGHT}}))
    assert split(content)[0].keys() == {"w"}
    with pytest.raises(LoaderError, match="holds no tensors"):
        split(load(pickle_of({10**6000: ({"w": WEIGHT}, {})}))[0])


SEEDS = [GOOD, tensor(), pickle_of({"p": torch.nn.Parameter(WEIGHT), "t": WEIGHT[:2]})]


@given(st.sampled_from([*SEEDS, *SAMPLES.values()]), st.data())
def test_a_damaged_pickle_is_refused_or_stays_within_its_storages(seed, data):
    """After any change, the result is a LoaderError, or views within their storages."""
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        views, _ = split(load(bytes(content))[0])
    except LoaderError:
        return
    for view in views.values():
        last = view.offset + sum(
            (n - 1) * step for n, step in zip(view.shape, view.strides, strict=True)
        )
        assert 0 in view.shape or last * view.dtype.itemsize < view.storage.nbytes


@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)]), max_size=60).map(b"".join))
def test_random_instructions_raise_only_loader_errors(content):
    """No sequence of bytes makes the reader raise an error other than LoaderError."""
    try:
        load(content + b".")
    except LoaderError as error:
        answer = error.message
    else:
        answer = "read"
    assert answer.isprintable()


def test_a_refused_file_is_closed(tmp_path):
    """No descriptor stays open after the error."""
    (tmp_path / "model.ckpt").write_bytes(archive(SAMPLES["eval"]))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(LoaderError):
        open_tensor_file(tmp_path / "model.ckpt")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
