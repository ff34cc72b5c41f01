"""Files that look odd but are good; a loader that rejects them rejects real models."""

from __future__ import annotations

import io
import struct
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from tests.support.formats.legacyfiles import number, tensor
from tests.support.formats.torchfiles import archive
from tests.support.hostile import pickles as hostile
from tests.support.hostile.bombs import storage
from tests.support.models.checkpoints import save_ckpt

Tensors = dict[str, torch.Tensor]
TENSORS: Tensors = {
    "model.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "model.half": torch.ones(3, dtype=torch.float16),
    "model_ema.weight": torch.full((4, 6), 0.5),
}


def saved(content: Any, **options: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def beside(**more: Any) -> bytes:
    """Return a checkpoint that contains these values in addition to its weights."""
    return saved({"state_dict": TENSORS, **more})


def _by_checkpoints(folder: Path, **options: Any) -> bytes:
    return save_ckpt(folder / "made.ckpt", TENSORS, **options).read_bytes()


def inert(*values: bytes) -> bytes:
    """Return an archive with a tensor and with values that the loader never creates."""
    weight = tensor(storage("0", 24), [4, 6])
    content = hostile.pickled(
        b"}(", hostile.text("model.weight"), weight,
        *(hostile.text(f"x{number}") + value for number, value in enumerate(values)), b"u",
        protocol=4,
    )  # fmt: skip
    return archive(content, {"0": struct.pack("<24f", *range(24))})


def _made(module: str, name: str, *values: bytes) -> bytes:
    return hostile.call(hostile.name(module, name), *values)


def _stated(module: str, name: str) -> bytes:
    """Push an object of this class that has a state."""
    made = hostile.new(hostile.name(module, name))
    return made + b"}" + hostile.text("_content") + b"}sb"


_TRAINED = {
    "args": Namespace(lr=1e-4, out=PosixPath("/data"), tags={"a"}, frozen=frozenset({1})),
    "history": defaultdict(list, {"loss": [0.1]}),
    "counts": Counter("abc"),
    "last": deque([1, 2]),
    "started": datetime.now(UTC),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
    "size": torch.Size([2, 3]),
    "version": torch.__version__,
    "range": range(3),
    "complex": 1j,
}
ALL = set(TENSORS)
ONE = {"model.weight"}

FILES: dict[str, tuple[Callable[[Path], bytes], set[str]]] = {
    "the weights alone": (lambda _: saved(TENSORS), ALL),
    "an OrderedDict": (lambda _: saved(OrderedDict(TENSORS)), ALL),
    "under state_dict": (lambda f: _by_checkpoints(f), ALL),
    "of Lightning": (lambda f: _by_checkpoints(f, lightning=True), ALL),
    "of Lightning, before torch 1.6": (
        lambda f: _by_checkpoints(f, lightning=True, legacy=True), ALL,
    ),
    "before torch 1.6": (lambda f: _by_checkpoints(f, nested=False, legacy=True), ALL),
    "parameters": (
        lambda _: saved({name: torch.nn.Parameter(it) for name, it in TENSORS.items()}), ALL,
    ),
    "a safetensors file": (lambda _: save(TENSORS), ALL),
    "a safetensors file with metadata": (
        lambda _: save(TENSORS, {"ss_tag": "{[" * 1000, "title": "Größe \U0001f600\n"}), ALL,
    ),
    "what training programs leave": (lambda _: beside(**_TRAINED), ALL),
    "numbers of numpy": (
        lambda _: beside(best=np.float64(1), array=np.arange(9), words=np.array(["a"])), ALL,
    ),
    "optimizers": (
        lambda _: beside(optimizer_states=[{"state": {0: {"exp_avg": torch.ones(9)}}}]), ALL,
    ),
    "keys of other kinds": (lambda _: beside(x={1: 2, (1, 2): 3, None: 4}), ALL),
    "a large number": (lambda _: beside(seed=2**4000), ALL),
    "tied weights": (lambda _: saved({**TENSORS, "model.tied": TENSORS["model.weight"]}), ALL),
    **{
        f"in protocol {it}": (lambda _, it=it: saved(TENSORS, pickle_protocol=it),
        ALL) for it in (3, 4, 5)
    },
    "a config of OmegaConf": (
        lambda _: inert(
            _stated("omegaconf.dictconfig", "DictConfig"),
            _stated("omegaconf.listconfig", "ListConfig"),
            _stated("omegaconf.base", "ContainerMetadata"),
            _stated("omegaconf.nodes", "AnyNode"),
            hostile.name("typing", "Any"),
        ), ONE,
    ),
    "attributes of Lightning": (
        lambda _: inert(_stated("pytorch_lightning.utilities.parsing", "AttributeDict")), ONE,
    ),
    # Python would fill all memory with most of these values; the loader never creates them.
    "a byte array of 10 TB": (
        lambda _: inert(_made("builtins", "bytearray", number(10**13))), ONE,
    ),
    "a list of 2**40": (
        lambda _: inert(_made("builtins", "list", _made("builtins", "range", number(1 << 40)))),
        ONE,
    ),
    "a memo of number 2**31": (lambda _: inert(b"Nr\xff\xff\xff\x7f"), ONE),
    "a tuple of 2**1000": (lambda _: inert(b"N" + b"2\x86" * 1000), ONE),
}  # fmt: skip
