"""A name cannot lead out of its folder, wherever it enters the loader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sd_api.load import RemoveRequest
from sd_api.reasons import Reason
from sd_loader.__main__ import main
from sd_loader.diffusers_repo.component_files import check_names
from sd_loader.diffusers_repo.index import parse_pipeline
from sd_loader.errors import LoaderError
from tests.support.loader.loadercli import load_request
from tests.support.models.modelindex import INDEX
from tests.support.store.pods import (
    ADOPTION,
    FIRST,
    NEIGHBOURS,
    RELOAD,
    REMOVAL,
    SWEEP,
    TAKEOVER,
    Pod,
    answer,
    copy,
    prepared,
)
from tests.support.store.steps import end, start
from tests.support.store.volumes import MODEL_ID, tree
from tests.support.tally import Tally

OUT = [
    "",
    ".",
    "..",
    "../x",
    "x/../../y",
    "x/..",
    "./x",
    "x//y",
    "x/",
    "/etc/passwd",
    "x\\..\\..\\y",
    "x\0y",
]
"""Names that would lead out of a folder."""
ODD = [
    "a/b",
    ".store",
    ".hidden",
    "-rf",
    "x\n",
    "x\ny",
    "x\x1b[2J",
    "~root",
    "%2e%2e",
    "\u202egnp.exe",
    "\uff0e\uff0e",
    "x" * 300,
]
"""Names that are not valid for a model."""

# The child of the fork only runs the loader, whatever threads other tests have left.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def with_field(request: dict[str, Any], field: str, value: str) -> str:
    """Return the request as JSON with this value in a field of the request or of its owner."""
    changed = json.loads(json.dumps(request))
    *outer, name = field.split(".")
    (changed[outer[0]] if outer else changed)[name] = value
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        *((command, "modelId") for command in ("fetch", "convert", "remove")),
        *((command, "owner.uid") for command in ("fetch", "convert", "remove")),
        *((command, "loadHash") for command in ("fetch", "convert")),
    ],
)
def test_a_request_with_a_hostile_name_is_refused(
    tmp_path: Path, tally: Tally, command: str, field: str
) -> None:
    """The command exits with code 3 and creates no file."""
    asked = load_request("https://example.com/m.ckpt")
    given = RemoveRequest(owner=asked.owner, model_id="m") if command == "remove" else asked
    request = given.model_dump(mode="json", by_alias=True)
    # A folder may be named like an option: no shell ever sees it.
    names = [*OUT, *(name for name in ODD if (field, name) != ("owner.uid", "-rf"))]

    def refused() -> int:
        for name in names:
            text = with_field(request, field, name)
            assert main([command, "--request", text, "--store", str(tmp_path)]) == 3, name
        return 0

    assert end(start(refused)) == 0
    assert tree(tmp_path) == {}
    tally("hostile names refused", len(names))


def test_a_load_by_hand_under_a_hostile_name_is_refused(tmp_path: Path, tally: Tally) -> None:
    """`sd-loader load` exits with code 3 and creates no file."""
    names = [name for name in OUT + ODD if "\0" not in name]  # which no argument can hold

    def refused() -> int:
        for name in names:
            args = ["load", "--url", "https://example.com/m.ckpt", f"--model-id={name}"]
            assert main([*args, "--store", str(tmp_path / "store")]) == 3, name
        return 0

    assert end(start(refused)) == 0
    assert tree(tmp_path) == {}
    tally("hostile names refused", len(names))


Forge = Callable[[Path, str], None]


def rename_in_receipt(root: Path, name: str) -> None:
    """Change the name of one file in a receipt."""
    receipt = root / MODEL_ID / ".sd-receipt.json"
    content = json.loads(receipt.read_text())
    content["files"][name] = content["files"].pop("model_index.json")
    receipt.write_text(json.dumps(content))


def take_from(root: Path, name: str) -> None:
    """Change an owner record so that it lists this name as a previous uid of the model."""
    owner = root / ".store/uid-1/owner.json"
    content = json.loads(owner.read_text())
    owner.write_text(json.dumps(content | {"takenFrom": [name]}))


@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize("forge", [rename_in_receipt, take_from])
@pytest.mark.parametrize(
    "pod",
    [
        *(pytest.param(pod, id=str(pod)) for pod in (RELOAD, SWEEP)),
        *(
            pytest.param(pod, id=str(pod), marks=pytest.mark.slow)
            for pod in (FIRST, ADOPTION, TAKEOVER, REMOVAL)
        ),
    ],
)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["../../uid-9/owner.json", "uid-9", "../uid-9"], id="some names"),
        pytest.param([*OUT, *ODD], id="all names", marks=pytest.mark.slow),
    ],
)
def test_a_forged_record_changes_no_other_folder(
    tmp_path: Path, tally: Tally, forge: Forge, pod: Pod, names: list[str]
) -> None:
    """The run succeeds or reports a fault, and files of other models stay unchanged."""
    volume = prepared(tmp_path / "start", [NEIGHBOURS, FIRST])
    neighbours = [volume / ".store/uid-9", volume / "neighbour"]
    before = [tree(path) for path in neighbours]
    for name in names:
        root = copy(volume, tmp_path / "copy")
        forge(root, name)
        code = pod.run(root)
        told = answer(root).reason if pod.answers else None
        # A sweep exits with 3 if files were altered.
        assert code == 0 or told is Reason.MODEL_ID_CONFLICT or (pod is SWEEP and code == 3), name
        assert [tree(root / path.relative_to(volume)) for path in neighbours] == before, name
        shutil.rmtree(root)
    tally("hostile names refused", len(names))


@pytest.mark.parametrize("name", [*OUT[1:], "unet/../../x"])
def test_a_repo_that_lists_a_hostile_name_is_refused(tally: Tally, name: str) -> None:
    """The loader refuses the repo as unsafe if its list of files has the name."""
    with pytest.raises(LoaderError, match="unsafe name") as caught:
        check_names(["model_index.json", f"unet/{name}"])
    assert caught.value.reason is Reason.UNSAFE_MODEL
    tally("hostile names refused")


@pytest.mark.parametrize("name", OUT + ODD)
def test_a_component_with_a_hostile_name_is_refused(tally: Tally, name: str) -> None:
    """A model_index.json is refused if it has a component with the name, which names a folder."""
    assert parse_pipeline(json.dumps(INDEX).encode()).class_name == "StableDiffusionPipeline"
    with pytest.raises(LoaderError) as caught:
        parse_pipeline(json.dumps(INDEX | {name: INDEX["unet"]}).encode())
    assert caught.value.reason in {Reason.UNSAFE_MODEL, Reason.UNSUPPORTED_FORMAT}
    tally("hostile names refused")
