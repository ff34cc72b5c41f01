"""Write the images' lock files: each package with the digests of the wheels that fit.

`make lock` runs this with uv. A lock file holds the wheels for every processor that images are
built for. It has no source distributions, because the images have no compiler. The build chooses
torch (TORCH_SPEC), so no lock file contains torch or the packages that only torch needs.
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
    """A lock file."""

    name: str
    extra: str | None
    """The extra of pyproject.toml to lock; None for the build requirements."""
    without: tuple[str, ...] = ()
    """Packages to leave out."""


LOCKS = (
    Lock("build", None),
    Lock("operator", "gateway"),
    Lock("loader", "loader"),
    Lock("verify", "verify", without=("torch",)),
)


class LockError(Exception):
    """A lock file cannot be made; the message says why."""


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
    """Return the packages of a lock file on a platform, as entries of a pylock.toml (PEP 751)."""
    with tempfile.TemporaryDirectory() as temporary:
        pylock = Path(temporary, "pylock.toml")
        excluded = Path(temporary, "excluded.txt")
        excluded.write_text("\n".join(lock.without))
        requirements = Path(temporary, "requirements.in")
        requirements.write_text("\n".join(_build_requirements()))
        what = (
            [requirements]
            if lock.extra is None
            else [ROOT / "pyproject.toml", "--extra", lock.extra]
        )
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", *what),
            *("--constraint", ROOT / "constraints.txt", "--excludes", excluded),
            *("--python-version", PYTHON, "--python-platform", platform),
            *("--only-binary", ":all:", "--format", "pylock.toml", "--output-file", pylock),
        ]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise LockError(f"uv cannot resolve {lock.name} on {platform}:\n{run.stderr}")
        return list(tomllib.loads(pylock.read_text())["packages"])


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
