"""The images' lock files: every package with the digests of the wheels that fit.

`make lock` writes them, by uv. One wheel set per processor that images are built for; no source
distributions, since the images have no compiler. torch is the build's own choice (TORCH_SPEC), so
it and what only it needs are in no lock.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "locks"
PYTHON = "3.11"
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
HEADER = "# Written by `make lock` from pyproject.toml and constraints.txt: do not edit.\n"


@dataclass(frozen=True)
class Lock:
    """A lock file: what it locks, by name of an extra or of the build's requirements."""

    name: str
    extra: str | None
    without: tuple[str, ...] = ()


LOCKS = (
    Lock("build", None),
    Lock("operator", "gateway"),
    Lock("loader", "loader"),
    Lock("verify", "verify", without=("torch",)),
)


class LockError(Exception):
    """No lock could be made; the message says why."""


def main() -> int:
    """Write all lock files."""
    for lock in LOCKS:
        digests: dict[str, set[str]] = defaultdict(set)
        for platform in PLATFORMS:
            for package in _resolve(lock, platform):
                digests[f"{package['name']}=={package['version']}"] |= _wheels(package)
        path = FOLDER / f"{lock.name}.txt"
        path.write_text(HEADER + "".join(_lines(pin, digests[pin]) for pin in sorted(digests)))
        print(f"{path.relative_to(ROOT)}: {len(digests)} packages")
    return 0


def _resolve(lock: Lock, platform: str) -> list[dict[str, Any]]:
    """The packages that a lock has on a platform, as PEP 751 says them."""
    with tempfile.TemporaryDirectory() as temporary:
        answer = Path(temporary, "pylock.toml")
        excluded = Path(temporary, "excluded.txt")
        excluded.write_text("\n".join(lock.without))
        asked = Path(temporary, "requirements.in")
        asked.write_text("\n".join(_build_requirements()))
        what = [asked] if lock.extra is None else [ROOT / "pyproject.toml", "--extra", lock.extra]
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", *what),
            *("--constraint", ROOT / "constraints.txt", "--excludes", excluded),
            *("--python-version", PYTHON, "--python-platform", platform),
            *("--only-binary", ":all:", "--format", "pylock.toml", "--output-file", answer),
        ]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise LockError(f"uv cannot resolve {lock.name} on {platform}:\n{run.stderr}")
        return list(tomllib.loads(answer.read_text())["packages"])


def _build_requirements() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    return list(tomllib.loads(text)["build-system"]["requires"])


def _wheels(package: dict[str, Any]) -> set[str]:
    digests = {wheel["hashes"]["sha256"] for wheel in package.get("wheels", ())}
    if not digests:
        raise LockError(f"{package['name']} {package['version']} has no wheel that fits")
    return digests


def _lines(pin: str, digests: set[str]) -> str:
    return (
        " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(digests))]) + "\n"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LockError as error:
        sys.exit(f"lock_images: {error}")
