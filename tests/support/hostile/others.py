"""Files of other formats with a model's name; each runs code in the program for its format."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile

import numpy as np
from safetensors.numpy import save

from tests.support.formats.torchfiles import Call
from tests.support.formats.zipfiles import Part, zip_bytes
from tests.support.hostile.opcodes import EVIL
from tests.support.hostile.pickles import CODE, TOUCH
from tests.support.hostile.samples import UNKNOWN, UNSAFE, Sample, Samples

RUN = Call(exec, CODE)


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(RUN, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.array(RUN, dtype=object))
    return buffer.getvalue()


def _tar(*members: tuple[str, bytes, str]) -> bytes:
    """Return a tar of files; a member with a target is a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content, target in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _torch_package() -> bytes:
    return zip_bytes(
        [
            Part("archive/payload.py", CODE.encode()),
            Part("archive/.data/extern_modules", b""),
            Part("archive/.data/version", b"6\n"),
            Part("archive/version", b"6\n"),
        ]
    )


def _safetensors_then_zip() -> bytes:
    """Return a good safetensors file that ends with a zip archive."""
    archive = io.BytesIO()
    good = save({"weight": np.zeros(4, np.float32)})
    archive.write(good)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("archive/data.pkl", EVIL)
    return archive.getvalue()


SAMPLES: Samples = {
    "a bare pickle": Sample(EVIL, "a bare Python pickle", UNSAFE, "bare"),
    "a bare pickle of protocol 3": Sample(
        b"\x80\x03" + EVIL[2:], "a bare Python pickle", UNSAFE, "bare"
    ),
    "a bare pickle of protocol 5": Sample(
        b"\x80\x05" + EVIL[2:], "a bare Python pickle", UNSAFE, "bare"
    ),
    "a bare pickle of text": Sample(
        f"cposix\nsystem\n(S'{TOUCH}'\ntR.".encode(), "plain text", control="bare"
    ),
    "a bare pickle without protocol": Sample(
        EVIL[2:], "of an unknown kind|plain text", control="bare"
    ),
    "a gzipped pickle": Sample(gzip.compress(EVIL), "a gzip archive", control="gzip"),
    "a bzipped pickle": Sample(bz2.compress(EVIL), "a bzip2 archive", control="bzip2"),
    "a NumPy array of objects": Sample(_npy(), "a NumPy array", UNKNOWN, "numpy"),
    "NumPy arrays in a zip": Sample(_npz(), "not one of torch's", control="numpy"),
    "a torch.package": Sample(_torch_package(), "not one of torch's", control="torch.package"),
    "a Python program in a zip": Sample(
        zip_bytes([Part("__main__.py", CODE.encode())]), "not one of torch's", control="python"
    ),
    "a Python program": Sample(CODE.encode(), "plain text", control="python"),
    "a shell script": Sample(f"#!/bin/sh\n{TOUCH}\n".encode(), "plain text", control="run"),
    "a .pth of Python's site": Sample(
        b"import canary_module\n", "plain text", control="site"
    ),
    "a YAML with a Python tag": Sample(
        f"model: !!python/object/apply:os.system ['{TOUCH}']\n".encode(), "plain text",
        control="yaml",
    ),
    "a tar that climbs out": Sample(
        _tar(("../canary", b"x", "")), "a tar archive", control="untar"
    ),
    "a tar with a link out": Sample(
        _tar(("link", b"", ".."), ("link/canary", b"x", "")), "a tar archive", control="untar"
    ),
    "a safetensors file that ends as a zip": Sample(
        _safetensors_then_zip(), "bytes follow the last tensor", control="archive"
    ),
}  # fmt: skip
