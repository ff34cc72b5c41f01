"""The list of classes is the one that the installed libraries give."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import pytest
from diffusers import ModelMixin

from sd_loader.diffusers_repo.classes import PATH, Role, known
from sd_loader.diffusers_repo.index import SCHEDULERS, SD_PIPELINES, SDXL_PIPELINES
from sd_loader.diffusers_repo.listed_config import listed_config
from sd_loader.errors import LoaderError
from tools.make_classes import EXTRA_CLASSES, FORBIDDEN_KEYS, make_list, render

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_list_in_the_loader_is_up_to_date():
    """Run `python -m tools.make_classes` after an update of diffusers or transformers."""
    assert render(make_list()) == PATH.read_text()


def test_classes_of_stable_diffusion_are_on_the_list():
    """The list has Stable Diffusion's pipelines, schedulers, VAE and UNet."""
    assert known()["pipelines"].keys() >= SD_PIPELINES | SDXL_PIPELINES
    of_diffusers = known()["components"]["diffusers"]
    assert of_diffusers.keys() >= SCHEDULERS | {"AutoencoderKL", "UNet2DConditionModel"}


def test_no_class_on_the_list_stands_for_others():
    """An `Auto` class loads whichever class of its library a config names."""
    found = [name for names in known()["components"].values() for name in names]
    assert not [name for name in found if name.startswith("Auto") and "Model" in name]
    assert not [name for name in found if name.startswith("PreTrained") and "Fast" not in name]
    assert EXTRA_CLASSES.keys() <= known()["components"]["transformers"].keys()


def test_each_default_of_a_model_is_allowed():
    """A config that states the defaults is published completely, except for forbidden keys."""
    wrong = []
    for name, role in known()["components"]["diffusers"].items():
        kind: Any = getattr(diffusers, name)
        if role != Role.MODEL or not issubclass(kind, ModelMixin):
            continue
        parameters = inspect.signature(kind.__init__).parameters.items()
        given = {key: it.default for key, it in parameters if it.default is not it.empty}
        config = json.loads(json.dumps(given, default=lambda _value: None))
        try:
            kept = listed_config(config, name, name)
        except LoaderError as error:
            wrong.append(str(error))
            continue
        wrong += [
            f"{name}: {key}" for key in config.keys() - kept.keys() - {"kwargs"} - FORBIDDEN_KEYS
        ]
    assert not wrong
