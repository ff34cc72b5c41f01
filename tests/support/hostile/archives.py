"""Zips of a diffusers folder, as training services deliver them, with something hostile added.

The malicious ones write outside the folder that they are unpacked into, or contain code that runs
in a program that trusts the folder.
"""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import Any

from tests.support.formats.zipfiles import Part, deflated, extra_field, unicode_path, zip_bytes
from tests.support.hostile.opcodes import EVIL
from tests.support.hostile.pickles import CODE
from tests.support.hostile.samples import DAMAGED, UNKNOWN, UNSAFE, Sample, Samples
from tests.support.models.modelindex import INDEX

UNET = "unet/diffusion_pytorch_model.safetensors"
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"x",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    UNET: b"x",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"x",
}
LINK = stat.S_IFLNK | 0o777
BOMB = bytes(8 << 20)


def packed(*more: Part, without: str = "", **changed: bytes | Part) -> bytes:
    """Return a zip of a good folder with some files changed, added or left out."""
    contents: dict[str, bytes | Part] = {**FILES, **changed}
    parts = [
        value if isinstance(value, Part) else deflated(name, value)
        for name, value in contents.items()
        if name != without
    ]
    return zip_bytes([*parts, *more])


def index(**changed: Any) -> dict[str, bytes]:
    """Return the good folder's model_index.json with these entries changed."""
    return {"model_index.json": json.dumps({**INDEX, **changed}).encode()}


_PAYLOAD = Part("payload.py", CODE.encode())
_CLIMBS = {
    "dots": "../canary",
    "dots behind a folder": "unet/../../canary",
    "an absolute name": "/proc/self/cwd/../canary",
    "backslashes": "..\\canary",
    "backslashes behind a folder": "unet\\..\\..\\canary",
    "a dot and dots": "./../canary",
    "two slashes": "..//canary",
}
_MALICIOUS: dict[str, tuple[bytes, str, Any, str]] = {
    **{
        f"a file that climbs out by {how}": (
            packed(Part(name, b"x")), "not a plain path", DAMAGED, "unzip",
        )
        for how, name in _CLIMBS.items()
    },
    "a link out and a file through it": (
        packed(Part("x", b"..", mode=LINK), Part("x/canary", b"x")), "a link", UNSAFE, "unzip",
    ),
    "a link to the root and a file through it": (
        packed(Part("x", b"/proc/self/cwd/..", mode=LINK), Part("x/canary", b"x")), "a link",
        UNSAFE, "unzip",
    ),
    "a link in the place of a file": (
        packed(Part("vae/x", b"../../canary", mode=LINK), Part("vae/x", b"x")), "one name",
        DAMAGED, "unzip",
    ),
    "a component of its own code": (
        packed(_PAYLOAD, **index(unet=["payload", "UNet"])), "code of the repo's", UNSAFE,
        "own class",
    ),
    "a component beside the pipeline's": (
        packed(_PAYLOAD, **index(extra=["payload", "Extra"])), "code of the repo's", UNSAFE,
        "own class",
    ),
    "a safety checker of its own code": (
        packed(_PAYLOAD, **index(safety_checker=["payload", "X"])), "code of the repo's", UNSAFE,
        "own class",
    ),
    "a pipeline of its own code": (
        packed(_PAYLOAD, **index(_class_name=["payload", "Mine"])), "custom pipeline", UNSAFE,
        "own class",
    ),
    "an index with auto_map": (
        packed(_PAYLOAD, **index(auto_map={"AutoModel": "payload.Mine"})), "auto_map", UNSAFE,
        "auto_map",
    ),
    "a config with auto_map": (
        packed(
            Part("text_encoder/payload.py", CODE.encode()),
            **{"text_encoder/config.json": json.dumps({"auto_map": {"x": "payload.X"}}).encode()},
        ), "auto_map", UNSAFE, "auto_map",
    ),
}  # fmt: skip
_DAMAGED = {
    "one file twice": (packed(Part("unet/config.json", b"{}")), "one name"),
    "one file in capitals": (packed(Part("UNET/CONFIG.JSON", b"{}")), "one name"),
    "a name of two letters for one": (
        packed(Part("unet/stra\u00dfe"), Part("unet/strasse")), "one name",
    ),
    "a name for other readers": (
        packed(Part("unet/x", b"x", extra=unicode_path("unet/x", "../x"))), "another name",
    ),
    "a file that is stored as another": (
        packed(**{UNET: deflated(UNET, b"x", local_name="unet/x")}), "another name",
    ),
    "a file with another checksum": (packed(**{UNET: deflated(UNET, b"x", crc=1)}), "checksum"),
    "a file longer than it says": (
        packed(**{UNET: deflated(UNET, b"x" * 9, size=10)}), "checksum",
    ),
    "a file packed as noise": (
        packed(**{UNET: Part(UNET, b"\xff" * 9, method=8, size=9)}), "cannot be unpacked",
    ),
    "bytes behind a packed file": (
        packed(**{UNET: replace(deflated(UNET, b"x"), data=deflated(UNET, b"x").data + b"y")}),
        "cannot be unpacked",
    ),
    "a gap": (packed(**{UNET: deflated(UNET, b"x", gap=b"hidden")}), "hidden bytes"),
    "an overlap": (packed(**{UNET: deflated(UNET, b"x", header_at=0)}), "overlap"),
    "a broken field": (packed(Part("x", extra=extra_field(9, b"1234")[:-1])), "damaged field"),
    "an index that is no JSON": (packed(**{"model_index.json": b"{"}), "not valid JSON"),
    "an index of NaN": (packed(**{"model_index.json": b'{"x":NaN}'}), "not valid JSON"),
    "an index nested deep": (
        packed(**{"model_index.json": b'{"x":' + b"[" * 500 + b"]" * 500 + b"}"}), "nested more",
    ),
    "an index nested too deep to read": (
        packed(**{"model_index.json": b"[" * 100_000}), "not valid JSON",
    ),
    "an index that is a list": (packed(**{"model_index.json": b"[]"}), "not a JSON object"),
}  # fmt: skip
_UNSAFE = {
    "a device": (packed(Part("unet/x", mode=stat.S_IFCHR | 0o666)), "a link, a device"),
    "a pipe": (packed(Part("unet/x", mode=stat.S_IFIFO | 0o666)), "a link, a device"),
    "a socket": (packed(Part("unet/x", mode=stat.S_IFSOCK | 0o666)), "a link, a device"),
    "a folder with content": (packed(Part("unet/x/", b"x")), "a link, a device"),
    "a folder that is a link": (packed(Part("x/", mode=LINK)), "a link, a device"),
    "a bomb": (packed(**{UNET: deflated(UNET, BOMB)}), "as in a zip bomb"),
    "a bomb beside the model": (packed(deflated("README.md", BOMB)), "as in a zip bomb"),
    "a bomb that says it is none": (
        packed(**{UNET: deflated(UNET, BOMB, size=1 << 20)}),
        "more than the stated",
    ),
    "a thousand files": (packed(*(Part(f"f/{n}") for n in range(1000))), "at most"),
}
_UNKNOWN = {
    "an encrypted file": (packed(Part("unet/x", b"x", flags=1)), "encrypted"),
    "a file packed by LZMA": (packed(Part("unet/x", b"x", method=14)), "only deflate"),
    "no index": (packed(without="model_index.json"), "neither a checkpoint"),
    "no weights": (packed(without=UNET), "weights"),
    "no config": (packed(without="vae/config.json"), "lacks vae/config.json"),
    "an unknown pipeline": (packed(**index(_class_name="Evil")), "Evil"),
    "an unknown scheduler": (packed(**index(scheduler=["diffusers", "Evil"])), "Evil"),
    "another library's class": (packed(**index(unet=["transformers", "CLIPTextModel"])), "unet"),
    "a component of three": (packed(**index(unet=["diffusers", "X", "Y"])), "unet"),
    "an option of text": (packed(**index(option="x")), "option"),
    "two folders": (
        zip_bytes([*(deflated(f"m/{name}", it) for name, it in FILES.items()), Part("n/x")]),
        "neither a checkpoint",
    ),
}

SAMPLES: Samples = {
    name: Sample(content, says, reason, control, model_type="api_trained")
    for name, content, says, reason, control in (
        *((name, *row) for name, row in _MALICIOUS.items()),
        *((name, *row, DAMAGED, None) for name, row in _DAMAGED.items()),
        *((name, *row, UNSAFE, None) for name, row in _UNSAFE.items()),
        *((name, *row, UNKNOWN, None) for name, row in _UNKNOWN.items()),
    )
}
SAMPLES |= {
    "weights that are a pickle": Sample(
        packed(
            Part("text_encoder/pytorch_model.bin", EVIL), without="text_encoder/model.safetensors"
        ),
        "a bare Python pickle",
        UNSAFE,
        model_type="api_trained",
    )
}
