"""A single file with the components of a repo equals the pipeline that diffusers makes of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from devkit.fakehub import FakeHub
from sd_loader.convert.tables.transformers import TABLES as TABLE_FOLDER
from sd_loader.convert.tables.transformers import load_transformer
from tests.support.loader.loadercli import Containers, artifact_of, load_request
from tests.support.models import tinyfamilies
from tests.support.models.catalog import Row
from tests.support.models.conversions import assert_same_tensors
from tests.support.models.tinyfamilies import FAMILIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # diffusers warns about its own code
]
TABLES = {"krea2": "krea-2", "flux2-klein": "flux2", "wan-i2v": "wan"}
"""The key tables by family, where the two names differ."""

TESTED = tuple(
    name for name in FAMILIES if (TABLE_FOLDER / f"{TABLES.get(name, name)}.json").is_file()
)

ROWS = tuple(
    Row("custom_ckpt", FAMILIES[name][0], "transformer, with components.from", "save_pretrained",
        "DiffusionPipeline.from_pretrained")
    for name in TESTED
)  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def original(family: str, published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a transformer in the original layout, by applying its key table in reverse."""
    table = load_transformer(TABLES.get(family, family))
    file: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    layers = {part for name in published for part in name.split(".") if part.isdigit()} | {"0"}
    stacks = [
        kind.row.source.replace("{}", layer, 1)
        for kind in table.kinds
        for layer in layers
        if kind.row.target.replace("{}", layer, 1) in published
    ]
    for row in table.component(stacks).rows:
        tensor = published[row.target]
        match row.op.split():
            case ["rows", ends, "of", _]:
                parts.setdefault(row.source, {})[int(ends.split("-")[0])] = tensor
            case ["queries" | "keys" | "values" as part]:
                place = ("queries", "keys", "values").index(part)
                parts.setdefault(row.source, {})[place] = tensor
            case ["swap"]:
                file[row.source] = torch.cat(tensor.chunk(2)[::-1])
            case ["fold", _]:
                file[row.source] = tensor.flatten()
            case _:
                file[row.source] = tensor
    for name, pieces in parts.items():
        file[name] = torch.cat([pieces[start] for start in sorted(pieces)])
    return file


def another(transformer: Any, seed: int) -> Any:
    """Return a transformer of the same config with other random weights."""
    torch.manual_seed(seed)
    return type(transformer).from_config(transformer.config)


@pytest.fixture
def repo(hub: FakeHub, tmp_path: Path, family: str) -> Path:
    """The repo of the family's pipeline, which the Hub serves as org/skeleton."""
    folder = tinyfamilies.save_repo(tmp_path / "repo", family)
    hub.add_repo("org/skeleton", folder)
    return folder


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("family", TESTED)
def test_file_and_repo_equal_the_pipeline_that_diffusers_saves(
    tmp_path: Path, hub: FakeHub, containers: Containers, repo: Path, family: str, layout: str
) -> None:
    """The pipeline opens with its class, and the repo's transformer weights are not downloaded."""
    other = another(tinyfamilies.pipeline(family).transformer, seed=7)
    tensors = other.state_dict()
    if layout == "original":
        tensors = original(family, tensors)
    save_file({name: it.contiguous() for name, it in tensors.items()}, tmp_path / "file")
    fields: dict[str, Any] = {"components": {"from": "org/skeleton"}}
    if family == "wan":
        second = another(other, seed=8)
        save_file(original(family, second.state_dict()), tmp_path / "second")
        fields["components"]["transformer_2"] = {"url": hub.serve_file("/2", tmp_path / "second")}
        parts = {"transformer": other, "transformer_2": second}
    else:
        parts = {"transformer": other}
    ended = containers.load(load_request(hub.serve_file("/1", tmp_path / "file"), **fields))
    artifact = artifact_of(ended)
    published = containers.store / "model"
    peer = diffusers.DiffusionPipeline.from_pretrained(repo, local_files_only=True)
    peer.register_modules(**parts)
    peer.save_pretrained(tmp_path / "peer")
    assert_same_tensors(published, tmp_path / "peer")
    opened = diffusers.DiffusionPipeline.from_pretrained(published, local_files_only=True)
    assert type(opened) is type(peer)
    assert artifact.pipeline_class == type(peer).__name__
    assert not [path for path in hub.served if "/transformer" in path and "safetensors" in path]


@pytest.mark.parametrize("revision", DTYPES)
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_file_that_is_cast_equals_the_pipeline_that_diffusers_casts(
    tmp_path: Path, hub: FakeHub, containers: Containers, repo: Path, family: str, revision: str
) -> None:
    """Modules that diffusers keeps in fp32 stay in fp32."""
    other = another(tinyfamilies.pipeline(family).transformer, seed=7)
    save_file(original(family, other.state_dict()), tmp_path / "file")
    fields = {"revision": revision, "components": {"from": "org/skeleton"}}
    artifact_of(containers.load(load_request(hub.serve_file("/1", tmp_path / "file"), **fields)))
    other.save_pretrained(tmp_path / "other")
    cast = type(other).from_pretrained(tmp_path / "other", dtype=DTYPES[revision])
    peer = diffusers.DiffusionPipeline.from_pretrained(
        repo, local_files_only=True, dtype=DTYPES[revision]
    )
    peer.register_modules(transformer=cast)
    peer.save_pretrained(tmp_path / "peer")
    assert_same_tensors(containers.store / "model", tmp_path / "peer")
