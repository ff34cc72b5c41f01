"""The models of the demo, and the stand-ins for the Hub and Civitai that serve them.

The weights are tiny and random, and the pictures are drawn. Each model has the structure of its
type, so the loader does the work that it does for real models.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from devkit.controlnet_layouts import TINY as TINY_CONTROLNETS
from devkit.controlnet_layouts import controlnet_shapes
from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakefiles import Faults
from devkit.fakehub import FakeHub
from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, sd15_shapes, sdxl_shapes, vae_shapes
from devkit.pictures import landscape
from devkit.tiny import EMBEDDING, SMALLEST_SDXL, lora_shapes, write_checkpoint
from tools.demo.processes import run

SLOW = 60_000
"""Bytes per second of the model that loads slowly: it takes ten minutes."""
FIRST_ID = 900_000_001
"""Civitai's own ids are smaller, so the demo's links never lead to a real model."""


@dataclass(frozen=True)
class OnCivitai:
    """A model of the stand-in for Civitai."""

    name: str
    type: str
    """Civitai's word for the type."""
    shapes: Shapes
    title: str
    words: tuple[str, ...] = ()
    """The words that trigger the model in a prompt."""
    base: str = "SD 1.5"
    rate: int | None = None
    """Bytes per second of the download; None: as fast as possible."""


ON_CIVITAI = (
    OnCivitai("lighthouse-mix", "Checkpoint", sd15_shapes(TINY_SD15), "Lighthouse Mix"),
    OnCivitai("aurora-xl", "Checkpoint", sdxl_shapes(SMALLEST_SDXL), "Aurora XL", base="SDXL 1.0"),
    OnCivitai("watercolor", "LORA", lora_shapes(), "Watercolor", ("wtrclr", "soft wash")),
    OnCivitai("no-fog", "TextualInversion", EMBEDDING, "No Fog", ("no-fog",)),
    OnCivitai(
        "edge-lines", "Controlnet", controlnet_shapes(TINY_CONTROLNETS["sd-1"]), "Edge Lines"
    ),
    OnCivitai("clear-colors", "VAE", vae_shapes(TINY_SD15), "Clear Colors"),
    OnCivitai("slow-river", "Checkpoint", sd15_shapes(TINY_SD15), "Slow River", rate=SLOW),
    OnCivitai("film-grain", "LORA", lora_shapes(), "Film Grain", ("flmgrn",)),
)
TO_PASTE = "film-grain"
"""The model on Civitai that the demo leaves for its user to load."""
REPO = "demo/tiny-stable-diffusion"
REPO_TO_PASTE = "demo/little-dream"
GATED_REPO = "demo/members-only"
TRAINED_ID = "my-dreambooth-1"
SLOW_MODEL = "slow-river"
FAILED_MODEL = "wrong-type"


def specs() -> dict[str, dict[str, str]]:
    """Return the specs of the models that the demo loads, by name."""
    loaded = [model.name for model in ON_CIVITAI if model.name != TO_PASTE]
    return {
        **{name: {"url": civitai_link(name)} for name in loaded},
        "tiny-stable-diffusion": {"url": REPO},
        "my-dreambooth": {"url": TRAINED_ID, "modelType": "api_trained"},
        FAILED_MODEL: {"url": civitai_link("watercolor"), "modelType": "vae"},
    }


def civitai_link(name: str) -> str:
    """Return the link of a model's page, as people copy it from the address bar."""
    return f"https://civitai.com/models/{_number(name)}/{name}"


def trained_template(hub_url: str) -> str:
    """Return the link template of trained models, which the stand-in for the Hub serves."""
    return f"{hub_url}/trained/{{id}}.safetensors"


def fill(work: Path, hub: FakeHub, civitai: FakeCivitai) -> None:
    """Make all models, and serve them."""
    files = work / "files"
    files.mkdir()
    for model in ON_CIVITAI:
        path = files / f"{model.name}.safetensors"
        number = _number(model.name)
        write_checkpoint(path, model.shapes, seed=number)
        picture = civitai.serve_file(f"/images/{model.name}.png", landscape(number))
        file = File(number, path, name=path.name, faults=Faults(rate=model.rate))
        version = Version(
            number,
            [file],
            base_model=model.base,
            trained_words=model.words,
            images=[{"url": picture, "type": "image", "nsfwLevel": 1}],
        )
        civitai.add(Model(number, model.type, [version], name=model.title, creator="demo"))
    checkpoint = files / "lighthouse-mix.safetensors"
    hub.serve_file(f"/trained/{TRAINED_ID}.safetensors", checkpoint)
    repo = make_repo(work, checkpoint)
    card = {"license": "creativeml-openrail-m"}
    hub.add_repo(REPO, repo, card_data=card)
    hub.add_repo(REPO_TO_PASTE, repo, card_data=card)
    hub.add_repo(GATED_REPO, repo, card_data=card, gated=True, token=secrets.token_hex())


def make_repo(work: Path, checkpoint: Path) -> Path:
    """Let the loader convert a checkpoint to a diffusers folder; return the folder."""
    run("sd-loader", "load", "--url", checkpoint, "--model-id", "repo", "--store", work / "made")
    repo = work / "repo"
    shutil.copytree(work / "made" / "repo", repo, ignore=shutil.ignore_patterns(".*"))
    return repo


def _number(name: str) -> int:
    """Return the id of a model on Civitai, which is also the id of its version and of its file."""
    return FIRST_ID + [model.name for model in ON_CIVITAI].index(name)
