"""What the loader imports before it starts to work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devkit.ldm_layouts import sd15_shapes
from devkit.tiny import SMALLEST_SD15, write_checkpoint

HEAVY = {"blake3", "httpx2", "huggingface_hub", "numpy", "pydantic", "torch"}
HTTP = {"http.client", "httpcore2", "httpx2", "huggingface_hub", "ssl"}
"""HTTP modules, which a local load does not import: they would take as long as pydantic."""
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
    """`--help` and `--version` print at once, because they do not wait for heavy imports."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60
    )
    assert "usage: sd-loader" in done.stdout
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


LOCAL_LOAD = """
import sys
from sd_loader.start import loader
assert loader() == 0
print(*sys.modules)
"""


@pytest.mark.slow
def test_a_load_of_a_local_file_imports_no_http_and_no_numpy(tmp_path: Path) -> None:
    """Half of a tiny load's time is imports. numpy is for casts, and this load has none."""
    write_checkpoint(tmp_path / "tiny.safetensors", sd15_shapes(SMALLEST_SD15))
    arguments = ("load", "--url", "tiny.safetensors", "--model-id", "tiny", "--store", "store")
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_LOAD, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "sd_loader.convert.run" in imported
    assert not imported & (HTTP | {"numpy", "numkong"})
    assert not imported & {
        "sd_loader.convert.plan.controlnet",
        "sd_loader.convert.plan.embedding",
        "sd_loader.convert.plan.lora",
        "sd_loader.convert.plan.repo",
    }
