"""Every published folder opens, whatever values the configs of its repo have."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from sd_api.wire import Source
from sd_loader.convert.plan.repo_configs import SCHEDULER_CONFIG, scheduler_config
from sd_loader.convert.run import convert
from sd_loader.convert.write.files import json_file
from sd_loader.diffusers_repo.config_keys import known_classes
from sd_loader.diffusers_repo.index import Pipeline
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from tests.support.models import controlnets
from tests.support.models.conversions import conversion
from tests.support.models.mutatedconfigs import mutated
from tests.support.models.openall import open_all
from tests.support.models.tinyrepo import copy_repo, replace, save_repo

OPTIONAL = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}
"""Schedulers that need a library which the test environment does not have."""
SCHEDULERS = sorted(
    name for name in known_classes() if name.endswith("Scheduler") and name not in OPTIONAL
)
PIPELINE = {
    "unet/config.json": "UNet2DConditionModel",
    "vae/config.json": "AutoencoderKL",
    "text_encoder/config.json": "CLIPTextModel",
}
CONTROLNET = {"config.json": "ControlNetModel"}


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny repos by model type, whose configs the tests change in copies."""
    folder = tmp_path_factory.mktemp("origin")
    return {
        "huggingface": save_repo(folder / "pipeline", "sd15", torch.float16),
        "controlnet": controlnets.save_repo(folder, "SD 1.x"),
    }


def published_model(rng: random.Random, model_type: str, origin: Path, folder: Path) -> Path | None:
    """Load a repo with changed configs. Return the published folder, or None if it is refused."""
    folder.mkdir()
    repo = copy_repo(origin, folder / "repo")
    classes = PIPELINE if model_type == "huggingface" else CONTROLNET
    for name in rng.sample(list(classes), min(len(classes), rng.choice((1, 1, 2)))):
        config = mutated(rng, json.loads((repo / name).read_text()), classes[name])
        replace(repo / name, json.dumps(config))
    (folder / "out").mkdir()
    fetched = Fetched(kind="repo", path="repo", source=Source())
    options = conversion(model_type=model_type)
    try:
        convert(fetched, folder, options, folder / "out", lambda _: None)
    except LoaderError:
        return None
    return folder / "out"


def published_scheduler(rng: random.Random, folder: Path) -> Path | None:
    """Publish a scheduler's changed config. Return the folder.

    Return None if the config is refused, or if the scheduler needs scipy.
    """
    class_name = rng.choice(SCHEDULERS)
    pipeline = Pipeline("StableDiffusionPipeline", {"scheduler": class_name}, {})
    options = conversion(model_type="huggingface")
    try:
        config = scheduler_config(mutated(rng, {}, class_name), pipeline, options)
    except LoaderError:
        return None
    if config.get("use_beta_sigmas"):
        return None  # it needs scipy
    folder.mkdir()
    name = SCHEDULER_CONFIG.rpartition("/")[2]
    (folder / name).write_bytes(json_file(name, config, infinite=True).content)
    return folder


SOME = {"huggingface": 6, "controlnet": 4, "scheduler": 30}
MANY = {"huggingface": 500, "controlnet": 300, "scheduler": 1500}


# Other tests open the published configs of each pipeline, scheduler and ControlNet unchanged.
@pytest.mark.slow
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(SOME, id="some"),
        pytest.param(MANY, id="many", marks=pytest.mark.timeout(3600)),
    ],
)
def test_published_folder_opens(origins, tmp_path, tally, counts):
    """Configs are changed at random. Each published folder then opens within limited memory."""
    made: list[Path | None] = []
    for kind, count in counts.items():
        for seed in range(count):
            rng, folder = random.Random(f"{kind} {seed}"), tmp_path / f"{kind}{seed}"
            made.append(
                published_scheduler(rng, folder)
                if kind == "scheduler"
                else published_model(rng, kind, origins[kind], folder)
            )
    folders = [folder for folder in made if folder is not None]
    assert len(folders) > len(made) // 10
    failed = {
        folder: error
        for folder, error in zip(folders, open_all(folders), strict=True)
        if error is not None
    }
    assert not failed, "\n".join(f"{folder}: {error}" for folder, error in failed.items())
    tally("changed configs that were refused", len(made) - len(folders))
    tally("changed configs that were published and opened", len(folders))
