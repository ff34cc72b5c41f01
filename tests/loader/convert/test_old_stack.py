"""Published folders also open with older libraries and give the same image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_api.wire import Source
from sd_loader.convert.run import convert
from sd_loader.handover import Fetched
from tests.support.models import oldstack, tinyrepo
from tests.support.models.adapters import loaded, lora, without_text_model
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_safetensors, tiny_sd15, tiny_sdxl
from tests.support.models.cliptokenizers import FORMS, PROMPTS, WORDS, plain, publish, write
from tests.support.models.conversions import conversion, convert_file
from tests.support.models.images import TOLERANCE, assert_same_image
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OPENS_WITH = "diffusers 0.35 with transformers 4.57, the same image as with the newest"
SINGLE = "from_single_file"
REPO = "from_pretrained"
LORA = "load_lora_weights"
ROWS = (
    Row("custom_ckpt", "SD 1.x", "safetensors", SINGLE, OPENS_WITH),
    Row("custom_ckpt", "SDXL base", "safetensors", SINGLE, OPENS_WITH),
    Row("huggingface", "SD 1.x", "diffusers repo", REPO, OPENS_WITH),
    Row("huggingface", "SDXL base", "diffusers repo", REPO, OPENS_WITH),
    Row("lora", "SD 1.x, kohya names", "safetensors", LORA, OPENS_WITH),
)
SINCE_DIFFUSERS_0_39 = ("conv_in", "conv_out", "time_embedding")
"""Layers that older versions leave out if they have kohya's names. docs/models.md says so."""


def checkpoint(make: Callable[[], dict[str, torch.Tensor]], root: Path) -> None:
    """Convert a checkpoint."""
    path = save_safetensors(root / "model.safetensors", make())
    convert_file(path, root / "out")


def repo(architecture: str, root: Path) -> None:
    """Convert a repo that the newest diffusers saved and older versions cannot read correctly."""
    (root / "source").mkdir()
    (root / "out").mkdir()
    tinyrepo.save_repo(root / "source" / "repo", architecture)
    fetched = Fetched(kind="repo", path="repo", source=Source())
    options = conversion(model_type="huggingface")
    convert(fetched, root / "source", options, root / "out", lambda _: None)


MAKERS: dict[Row, Callable[[Path], None]] = {
    ROWS[0]: lambda root: checkpoint(tiny_sd15, root),
    ROWS[1]: lambda root: checkpoint(tiny_sdxl, root),
    ROWS[2]: lambda root: repo("sd15", root),
    ROWS[3]: lambda root: repo("sdxl", root),
}


@pytest.fixture(scope="module")
def old_python() -> Path:
    """The interpreter of the environment with older libraries."""
    return oldstack.python()


def run(python: Path | str, script: str, home: Path, *arguments: str | Path) -> tuple[str, str]:
    """Run a script of tests/support/models offline. Return what it writes to stdout and stderr."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [python, ROOT / "tests/support/models" / script, *arguments]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


def image(python: Path | str, folder: Path, out: Path, *lora: Path) -> np.ndarray:
    """Render the folder, with a LoRA if one is given. Assert that nothing warns about weights."""
    _, errors = run(python, "openfolder.py", out.parent, folder, out, *lora)
    for complaint in ("not initialized", "newly initialized", "not used when", "MISSING"):
        assert complaint not in errors
    return np.load(out)


@pytest.mark.filterwarnings("ignore")  # warnings from save_pretrained
@pytest.mark.parametrize("row", MAKERS, ids=str)
def test_old_and_new_libraries_render_the_same_image(
    row: Row, old_python: Path, tmp_path: Path
) -> None:
    """The images are equal, with the same seed in single precision on a CPU."""
    MAKERS[row](tmp_path)
    new = image(sys.executable, tmp_path / "out", tmp_path / "new.npy")
    old = image(old_python, tmp_path / "out", tmp_path / "old.npy")
    assert new.std() > 0.01
    assert_same_image(new, old)


@pytest.mark.filterwarnings("ignore")  # warnings from save_pretrained
def test_old_and_new_libraries_render_the_same_image_with_a_lora(
    old_python: Path, tmp_path: Path
) -> None:
    """The images are equal although the file's names of the text encoder lack `text_model`.

    Older versions would not read such names.
    """
    repo("sd15", tmp_path)
    tensors = {
        without_text_model(name): tensor if name.endswith("alpha") else tensor / 20
        for name, tensor in lora("sd15", "kohya", dtype=torch.float32).items()
        if not any(layer in name for layer in SINCE_DIFFUSERS_0_39)
    }
    _, adapter = loaded(tmp_path / "lora", tensors)
    without = image(sys.executable, tmp_path / "out", tmp_path / "plain.npy")
    new = image(sys.executable, tmp_path / "out", tmp_path / "new.npy", adapter)
    old = image(old_python, tmp_path / "out", tmp_path / "old.npy", adapter)
    assert np.abs(new - without).max() > 100 * TOLERANCE
    assert_same_image(new, old)


def tokens(python: Path | str, folder: Path) -> list[list[int]]:
    """The tokens of PROMPTS by the tokenizer that this interpreter's transformers opens."""
    output, _ = run(python, "opentokenizer.py", folder.parent, folder, *PROMPTS)
    return json.loads(output)


SPLIT_DIFFERENTLY = "added_tokens_decoder with flags"
"""Older versions recognise a token with the flag single_word only between blanks. For this form,
the published tokenizer is compared with the repo's own in the older version."""


@pytest.mark.parametrize("form", FORMS)
def test_old_and_new_libraries_know_the_added_tokens(
    form: str, old_python: Path, tmp_path: Path
) -> None:
    """Both split the prompts alike, in whichever form the repo stores the tokens."""
    source = write(tmp_path / "source", FORMS[form](plain()))
    published = publish(source, tmp_path / "out")
    new = tokens(sys.executable, published)
    old = tokens(old_python, published)
    assert old == (tokens(old_python, source) if form == SPLIT_DIFFERENTLY else new)
    assert {WORDS, WORDS + 1} <= {number for prompt in new for number in prompt}
