"""Repos of other families, loaded by the command line, equal what diffusers itself saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from devkit.fakehub import FakeHub
from tests.support.loader.loadercli import Containers, artifact_of, load_request
from tests.support.models import tinyfamilies
from tests.support.models.catalog import Row
from tests.support.models.conversions import assert_same_tensors
from tests.support.models.onestep import one_step
from tests.support.models.tinycomponents import PROMPT
from tests.support.models.tinyfamilies import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = tuple(
    Row(
        "huggingface",
        name,
        "diffusers repo",
        "save_pretrained",
        "DiffusionPipeline.from_pretrained",
    )
    for name, _make in FAMILIES.values()
)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def opened(folder: Path, revision: str | None) -> Any:
    """Open a folder offline, in the precision that was asked for."""
    dtype = {"dtype": DTYPES[revision]} if revision else {}
    return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **dtype)


# diffusers' own Chroma uses a class that diffusers deprecates.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
# A scheduler of diffusers passes tensors to numpy in a deprecated way.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("revision", [None, "fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_published_folder_equals_what_diffusers_saves(
    tmp_path: Path, hub: FakeHub, containers: Containers, family: str, revision: str | None
) -> None:
    """Each tensor has the same name, type and bits, and the tokenizers give the same ids.

    One denoising step gives the same latents.
    """
    repo = tinyfamilies.save_repo(tmp_path / "repo", family, shard_size="4KB")
    hub.add_repo("org/model", repo)
    request = load_request("org/model", model_type="huggingface", revision=revision)
    ended = containers.load(request)
    artifact = artifact_of(ended)
    published = containers.store / "model"

    peer = opened(repo, revision)
    peer.save_pretrained(tmp_path / "peer")
    assert_same_tensors(published, tmp_path / "peer")

    pipeline = opened(published, revision)
    assert type(pipeline) is type(peer)
    assert pipeline.components.keys() == peer.components.keys()
    for name, component in peer.components.items():
        if hasattr(component, "config"):
            assert configs(pipeline.components[name]) == configs(component)
        elif hasattr(component, "encode"):
            assert pipeline.components[name].encode(PROMPT) == component.encode(PROMPT)
            assert pipeline.components[name].chat_template == component.chat_template
    if revision is None:
        latents = one_step(pipeline, family)
        assert np.isfinite(latents).all()
        np.testing.assert_allclose(latents, one_step(peer, family), rtol=1e-3, atol=1e-4)
    assert artifact.pipeline_class == type(peer).__name__
    assert artifact.checked == "names"
    assert ended.result is not None
    assert "checked: names" in ended.result.message


def configs(component: Any) -> dict[str, Any]:
    """Return a config, without the entries that say where it came from."""
    config = component.config
    found = dict(config) if isinstance(config, dict) else config.to_dict()
    private = ("_name_or_path", "_use_default_values", "_diffusers_version")
    return {key: value for key, value in found.items() if key not in private}
