"""Published pipelines of other families than Stable Diffusion also open with diffusers 0.35.

This holds for the families whose pipeline class that version has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sd_api.wire import Source
from sd_loader.convert.run import convert
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file
from sd_loader.handover import Fetched
from tests.support.models import oldstack, tinyfamilies
from tests.support.models.catalog import Row
from tests.support.models.conversions import conversion
from tests.support.models.tinycomponents import PROMPT
from tests.support.models.tinyfamilies import FAMILIES
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # diffusers' own Chroma uses a class that diffusers deprecates.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

SCRIPT = ROOT / "tests/support/models/describefolders.py"
NEWER = {"flux2", "flux2-klein", "krea2", "z-image"}
"""The families whose pipelines diffusers 0.35 does not have."""

OLDER = [family for family in FAMILIES if family not in NEWER]
ROWS = tuple(
    Row(
        "huggingface",
        FAMILIES[family][0],
        "diffusers repo",
        "from_pretrained",
        "DiffusionPipeline.from_pretrained of diffusers 0.35",
    )
    for family in OLDER
)


def described(python: Path | str, folders: list[Path], home: Path) -> dict[str, Any]:
    """Return how `describefolders` describes the folders with this Python's libraries, by name.

    Assert that nothing warns about weights.
    """
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [python, SCRIPT, PROMPT, *folders]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for complaint in ("not initialized", "newly initialized", "not used when", "MISSING"):
        assert complaint not in ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return {Path(folder).name: content for folder, content in found.items()}


def save_as_of_old(repo: Path, family: str) -> None:
    """Save a repo with tokenizers and processors as transformers 4 wrote them.

    transformers 4 lacks the new classes of tokenizers and of processors without torchvision,
    and it reads CLIP's vocabulary from separate files.
    """
    tinyfamilies.save_repo(repo, family)
    index_path = repo / "model_index.json"
    index = json.loads(index_path.read_text())
    if "image_processor" in index:
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    for name in [name for name in index if name.startswith("tokenizer")]:
        path = repo / name / "tokenizer_config.json"
        config = json.loads(path.read_text())
        if config["tokenizer_class"].startswith("CLIP"):
            for file in VOCABULARY_FILES:
                (repo / name / file).write_bytes(vocabulary_file(file))
        else:
            index[name] = ["transformers", "PreTrainedTokenizerFast"]
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(config))
    index_path.write_text(json.dumps(index))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of the families' pipelines by the old libraries and by the newest."""
    root = tmp_path_factory.mktemp("families")
    folders = []
    for family in FAMILIES:
        save_as_of_old(root / "repos" / family / "repo", family)
        out = root / family
        out.mkdir()
        fetched = Fetched(kind="repo", path="repo", source=Source())
        options = conversion(model_type="huggingface")
        convert(fetched, root / "repos" / family, options, out, lambda _: None)
        folders.append(out)
    return described(oldstack.python(), folders, root), described(sys.executable, folders, root)


def test_only_the_newest_pipelines_are_unknown_to_the_old_libraries(
    opened: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Every family that the old libraries can open must be compared, so it is not in NEWER."""
    old, new = opened
    assert {family for family, content in old.items() if content is None} == NEWER
    assert None not in new.values()


@pytest.mark.parametrize("family", OLDER)
def test_old_and_new_libraries_open_the_same_tensors(
    opened: tuple[dict[str, Any], dict[str, Any]], family: str
) -> None:
    """Each component has the same tensors, and each tokenizer gives the same ids."""
    old, new = opened
    assert old[family] == new[family]
