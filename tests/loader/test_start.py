"""What the loader imports before it starts to work."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"blake3", "httpx2", "huggingface_hub", "numpy", "pydantic", "torch"}
CHILD = """
import sys
from sd_loader.start import loader
for option in ("--help", "--version"):
    sys.argv = ["sd-loader", option]
    try:
        loader()
    except SystemExit as ended:
        assert ended.code == 0, ended.code
print(*sys.modules)
"""


def test_help_and_version_import_no_packages() -> None:
    """A shell's completion and a curious user do not wait for packages that print nothing."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60
    )
    assert "usage: sd-loader" in done.stdout
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
