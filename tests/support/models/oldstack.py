"""A virtual environment with older libraries, cached under .cache until its list changes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LIST = Path(__file__).with_name("old-stack.txt")
CACHE = ROOT / ".cache" / "old-stack"
_NO_REGISTRY = re.compile(
    r"Failed to establish a new connection|Name or service not known|No route to host"
    r"|Temporary failure in name resolution|Network is unreachable"
)


def python() -> Path:
    """Return the environment's interpreter; install the packages of LIST first if necessary.

    Skip the test if the packages must be installed and no package registry is reachable.
    """
    folder = CACHE / hashlib.sha256(LIST.read_bytes()).hexdigest()[:16]
    done = folder / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _install(folder)
            done.touch()
    return folder / "bin" / "python"


def _install(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", LIST]
    # The project's own constraints pin the newest libraries, so LIST replaces them.
    env = {**os.environ, "PIP_CONSTRAINT": str(LIST), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ended = subprocess.run(pip, env=env, capture_output=True, text=True, check=False)
    if ended.returncode and _NO_REGISTRY.search(ended.stderr):
        pytest.skip("no package registry can be reached, and the old libraries are not in .cache")
    assert ended.returncode == 0, ended.stderr
