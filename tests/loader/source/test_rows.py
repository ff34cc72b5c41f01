"""Each source and container end to end: the published folder equals the one diffusers makes."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from sd_api.wire import LoadResult
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.stages import convert_stage, fetch_stage
from tests.support.loader.loadercli import load_request
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import (
    save_ckpt,
    save_safetensors,
    tiny_configs,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import identical

SD1, SDXL = "SD 1.x", "SDXL base"
LEGACY = ".ckpt of before torch 1.6"
SINGLE = "from_single_file"
SAVED = "save_pretrained"
OPENS = "DiffusionPipeline.from_pretrained"
ROWS: tuple[Row, ...] = (
    Row("custom_ckpt", SD1, LEGACY, SINGLE, OPENS),
    Row("custom_ckpt", SDXL, LEGACY, SINGLE, OPENS),
    Row("huggingface", SD1, "repo with one checkpoint", SINGLE, OPENS),
    Row("huggingface", SD1, "link to a repo's file (resolve)", SINGLE, OPENS),
    Row("huggingface", SD1, "link to a repo's file (blob)", SINGLE, OPENS),
    Row("huggingface", SD1, "repo with .bin weights of before torch 1.6", SAVED, OPENS),
    Row("api_trained", SD1, ".safetensors", SINGLE, OPENS),
    Row("api_trained", SD1, LEGACY, SINGLE, OPENS),
    Row("api_trained", SD1, "zip of a diffusers folder", SAVED, OPENS),
)


class Workshop:
    """Checkpoints and diffusers' conversions of them. Each is made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = cache(self._file)
        self.theirs = cache(self._theirs)
        self.archive = cache(self._archive)

    def _file(self, architecture: str, container: str) -> Path:
        """Write a checkpoint."""
        make = tiny_sd15 if architecture == SD1 else tiny_sdxl
        tensors = make(torch.float16)
        if container == LEGACY:
            return save_ckpt(self.root / f"{architecture}.ckpt", tensors, legacy=True)
        return save_safetensors(self.root / f"{architecture}.safetensors", tensors)

    def _theirs(self, architecture: str) -> Path:
        """Write the folder that diffusers makes of the weights in a .safetensors file."""
        diffusers = _diffusers()
        name = "sd15" if architecture == SD1 else "sdxl"
        kind = {
            SD1: diffusers.StableDiffusionPipeline,
            SDXL: diffusers.StableDiffusionXLPipeline,
        }[architecture]
        out = self.root / f"theirs {architecture}"
        kind.from_single_file(
            str(self.file(architecture, ".safetensors")),
            config=str(tiny_configs(self.root / f"configs of {out.name}", name)),
            local_files_only=True,
            dtype=torch.float16,
        ).save_pretrained(out)
        return out

    def _archive(self) -> Path:
        """Write a zip of the folder that diffusers makes."""
        path = self.root / "folder.zip"
        theirs = self.theirs(SD1)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(theirs.rglob("*")):
                archive.write(file, file.relative_to(theirs))
        return path


def _diffusers() -> ModuleType:
    import diffusers

    return diffusers


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One workshop for all rows."""
    root = tmp_path_factory.mktemp("rows")
    yield Workshop(root)
    shutil.rmtree(root)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with an empty repo, which also serves files."""
    (tmp_path / "repo").mkdir()
    with FakeHub(separate_cdn=True) as hub:
        hub.add_repo("org/model", tmp_path / "repo")
        yield hub


def origin(row: Row, workshop: Workshop, hub: FakeHub) -> tuple[str, Path]:
    """Serve the row's source. Return its url and the folder that diffusers makes of it."""
    theirs = workshop.theirs(row.architecture)
    if row.container.startswith("repo with .bin"):
        write_legacy(theirs, hub.repos["org/model"].folder)
        return "org/model", theirs
    if row.container.startswith("zip"):
        hub.serve_file("/trained/abc-1/download", workshop.archive())
        return "abc-1", theirs
    container = LEGACY if row.container == LEGACY else ".safetensors"
    file = workshop.file(row.architecture, container)
    if row.model_type != "huggingface":
        return hub.serve_file("/model", file), theirs
    shutil.copy(file, hub.repos["org/model"].folder / "model.safetensors")
    links = {"(resolve)": "resolve", "(blob)": "blob"}
    word = links.get(row.container.rpartition(" ")[2])
    url = f"{hub.url}/org/model/{word}/main/model.safetensors?download=true"
    return (url if word else "org/model"), theirs


def write_legacy(repo: Path, folder: Path) -> None:
    """Write a repo with its weights in the old format, which today's libraries no longer write."""
    shutil.copytree(repo, folder, dirs_exist_ok=True)
    for path in folder.glob("*/*.safetensors"):
        name = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(
            load_file(path), path.with_name(f"{name}.bin"), _use_new_zipfile_serialization=False
        )
        path.unlink()


def publish(hub: FakeHub, store: Path, url: str, model_type: str, **fields: Any) -> LoadResult:
    """Load as a Job's containers do."""
    store.mkdir()
    settings = Settings(
        hub_endpoint=hub.url,
        trained_url_template=f"{hub.url}/trained/{{id}}/download",
        allowed_hosts=frozenset({hub.cdn_host}),
        pod="pod",
    )
    request = load_request(url, model_type=model_type, **fields)
    fetch_stage(request, store, settings, lambda _progress: None)
    return convert_stage(request, store, settings, lambda _progress: None)


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """All tensors of a folder, named without the prefix that transformers 5.6 and later omits."""
    return {
        f"{path.parent.name}: {name.removeprefix('text_model.')}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


QUICK = (ROWS[0], ROWS[8])
"""The other rows differ from these, or from tests in other files, by one property only.

hub/test_files.py has the links.
"""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in ROWS],
    ids=str,
)
def test_published_folder_equals_that_of_diffusers(tmp_path, workshop, hub, row):
    """All tensors are equal, the folder opens offline, and the result describes the source."""
    url, theirs = origin(row, workshop, hub)
    result = publish(hub, tmp_path / "store", url, row.model_type)
    published = (tmp_path / "store" / "model").resolve(strict=True)
    ours, expected = weights(published), weights(theirs)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not identical(ours[name], expected[name])] == []
    pipeline = _diffusers().DiffusionPipeline.from_pretrained(
        published, local_files_only=True, dtype=torch.float16
    )
    assert type(pipeline).__name__ == result.artifact.pipeline_class
    is_file = "repo with .bin" not in row.container
    assert (result.source.sha256 is not None) == is_file
    on_hub = row.model_type == "huggingface"
    assert result.source.commit == (hub.repos["org/model"].commit() if on_hub else None)
    known = {LEGACY: "ckpt", "zip of a diffusers folder": "diffusers"}
    kind = known.get(row.container, "safetensors") if is_file else "diffusers"
    assert result.source.format == kind


def test_new_name_of_a_renamed_repo_is_reported(tmp_path, workshop, hub):
    """The message of the result, which the model's condition repeats, has the new name."""
    file = workshop.file(SD1, ".safetensors")
    shutil.copy(file, hub.repos["org/model"].folder / "model.safetensors")
    hub.renamed["old/name"] = "org/model"
    result = publish(hub, tmp_path / "store", "old/name", "huggingface")
    assert result.outcome == "loaded"
    assert "the repo old/name is now called org/model" in result.message


def test_ema_weights_of_a_folder_are_refused(tmp_path, workshop, hub):
    """A diffusers folder has only one set of weights. Nothing is published."""
    url, _ = origin(ROWS[-1], workshop, hub)
    with pytest.raises(LoaderError, match="one set of weights") as caught:
        publish(hub, tmp_path / "store", url, "api_trained", weights="ema")
    assert caught.value.reason is Reason.INVALID_SPEC
    assert list((tmp_path / "store").iterdir()) == []
