"""Opens files as careless programs do. Use it only in throw-away processes and folders.

As a program it reads lines of JSON, [folder, reader], from stdin. It runs each reader in its own
process on the file `model.ckpt` of the folder. Tests then check what the file did in the folder.
"""

from __future__ import annotations

import bz2
import copyreg
import gzip
import importlib
import io
import json
import os
import pickle
import runpy
import signal
import site
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "model.ckpt"
SECONDS = 20


def _nothing(*_: Any) -> None:
    """Stand in for the objects that torch would create."""


class _Pickle(pickle.Unpickler):
    """Python's unpickler; torch may be missing, so torch's objects are replaced by None."""

    def find_class(self, module: str, name: str) -> Any:
        """Import the name, unless it belongs to torch."""
        return _nothing if module.startswith("torch") else super().find_class(module, name)

    persistent_load = staticmethod(_nothing)


def _unpickled(stream: Any) -> None:
    """Load all pickles of the stream, one after the other, as readers of such files do."""
    unpickler = _Pickle(stream)
    with suppress(EOFError):
        while True:
            unpickler.load()


def _bare() -> None:
    with Path(FILE).open("rb") as file:
        _unpickled(file)


def _archive() -> None:
    with zipfile.ZipFile(FILE) as file:
        _unpickled(io.BytesIO(file.read("archive/data.pkl")))


def _any_member() -> None:
    """Load every member that is a pickle, whatever its name is."""
    with zipfile.ZipFile(FILE) as file:
        for member in file.infolist():
            with suppress(Exception):
                _unpickled(io.BytesIO(file.read(member)))


def _extracted() -> None:
    """Unpack the archive and load every data.pkl in the folder."""
    _unzip()
    for path in sorted(Path("unpacked").rglob("*")):
        if path.name.lower() == "data.pkl":
            with suppress(Exception):
                _unpickled(io.BytesIO(path.read_bytes()))


def _local_headers() -> None:
    """Find members by their local headers, as readers do that cannot seek to the directory."""
    content = Path(FILE).read_bytes()
    position = content.find(b"PK\x03\x04")
    while position >= 0:
        name_length, extra_length = (
            int.from_bytes(content[position + at : position + at + 2], "little") for at in (26, 28)
        )
        start = position + 30 + name_length + extra_length
        if content[position + 30 : position + 30 + name_length].endswith(b"data.pkl"):
            with suppress(pickle.UnpicklingError):
                _unpickled(io.BytesIO(content[start:]))
        position = content.find(b"PK\x03\x04", position + 1)


def _carved() -> None:
    """Load every pickle that is found in the bytes, as recovery tools do."""
    content = Path(FILE).read_bytes()
    position = content.find(b"\x80\x02")
    while position >= 0:
        with suppress(Exception):
            _Pickle(io.BytesIO(content[position:])).load()
        position = content.find(b"\x80\x02", position + 1)


def _extension_registry() -> None:
    copyreg.add_extension("posix", "system", 0x7F)
    copyreg.add_extension("subprocess", "getoutput", 0x7FFF)
    copyreg.add_extension("canary_module", "Thing", 0x7FFFFFFF)
    _archive()


def _unzip() -> None:
    """Unpack every member to the path it states, including links."""
    Path("unpacked").mkdir()
    os.chdir("unpacked")
    with zipfile.ZipFile(f"../{FILE}") as file:
        for member in file.infolist():
            with suppress(OSError):
                _placed(member.filename, member.external_attr >> 16, file.read(member))
    os.chdir("..")


def _placed(name: str, mode: int, content: bytes) -> None:
    name = name.replace("\\", "/")
    if mode & 0o170000 == 0o120000:
        Path(name).symlink_to(content.decode())
        return
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)


def _untar() -> None:
    Path("unpacked").mkdir()
    with tarfile.open(FILE) as file:
        file.extractall("unpacked", filter="fully_trusted")


def _torch() -> None:
    import torch

    torch.load(FILE, weights_only=False)


def _torch_package() -> None:
    from torch.package import PackageImporter

    PackageImporter(FILE).import_module("payload")


def _numpy() -> None:
    import numpy as np

    loaded = np.load(FILE, allow_pickle=True)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        for name in loaded.files:
            loaded[name]


def _yaml() -> None:
    import yaml

    yaml.unsafe_load(Path(FILE).read_text())


def _run() -> None:
    Path(FILE).chmod(0o700)
    subprocess.run([f"./{FILE}"], check=False)


def _python() -> None:
    runpy.run_path(FILE, run_name="__main__")


def _gzip() -> None:
    with gzip.open(FILE) as stream:
        _unpickled(stream)


def _bzip2() -> None:
    with bz2.open(FILE) as stream:
        _unpickled(stream)


def _site() -> None:
    Path(FILE).rename("model.pth")
    site.addsitedir(".")


def _own_class() -> None:
    """Import the modules that the index of the unpacked folder names."""
    _unzip()
    index = json.loads(Path("unpacked/model_index.json").read_text())
    sys.path.insert(0, "unpacked")
    for value in index.values():
        if isinstance(value, list) and value[0]:
            with suppress(ImportError):
                importlib.import_module(value[0].removesuffix(".py"))


def _auto_map() -> None:
    """Run the files that auto_map in a config names, as trust_remote_code does."""
    _unzip()
    for path in Path("unpacked").rglob("*.json"):
        for name in json.loads(path.read_text()).get("auto_map", {}).values():
            runpy.run_path(str(path.parent / (name.partition(".")[0] + ".py")))


READERS: dict[str, Callable[[], None]] = {
    "bare": _bare,
    "archive": _archive,
    "any member": _any_member,
    "extracted": _extracted,
    "local headers": _local_headers,
    "carved": _carved,
    "extension registry": _extension_registry,
    "gzip": _gzip,
    "bzip2": _bzip2,
    "unzip": _unzip,
    "untar": _untar,
    "torch": _torch,
    "torch.package": _torch_package,
    "numpy": _numpy,
    "yaml": _yaml,
    "run": _run,
    "python": _python,
    "site": _site,
    "own class": _own_class,
    "auto_map": _auto_map,
}
"""The ways in which careless programs open a file, by name."""
HEAVY = {"torch": "torch", "torch.package": "torch.package", "numpy": "numpy", "yaml": "yaml"}
"""The modules of readers that start slowly; this process imports each once before it forks."""


def main(lines: Iterable[str]) -> None:
    """Run the readers one after the other."""
    jobs = [json.loads(line) for line in lines]
    for folder, reader in sorted(jobs, key=lambda job: job[1] in HEAVY):
        if reader in HEAVY:
            importlib.import_module(HEAVY[reader])
        process = os.fork()
        if process == 0:
            signal.alarm(SECONDS)
            os.chdir(folder)
            sys.path.insert(0, folder)
            try:
                READERS[reader]()
            finally:
                if reader in HEAVY:
                    os._exit(0)  # an orderly exit with torch takes half a second
            return  # the interpreter exits normally, so that registered exit functions run
        os.waitpid(process, 0)


if __name__ == "__main__":
    main(sys.stdin.readlines())
