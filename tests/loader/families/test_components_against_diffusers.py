"""ControlNets and VAEs of other families, loaded by the command line, equal those of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.opening import python_code
from sd_api.spec import ModelType
from tests.support.loader.loadercli import Containers, artifact_of, load_request
from tests.support.models import controlnetrepos, tinycomponents
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import random_tensors, save_safetensors
from tests.support.models.conversions import identical
from tests.support.models.vaeshapes import original_vae, vae_config, vae_of_diffusers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # diffusers' own ControlNet uses a class that diffusers deprecates.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    # The snippet for users has the old name of `dtype`, which every version of diffusers knows.
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

DTYPES = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = "diffusion_pytorch_model.safetensors"
REPO, FILE = "AutoencoderKL.from_pretrained", "AutoencoderKL.from_single_file"
CONTROLNETS = tuple(
    Row("controlnet", form, "diffusers repo", f"{name}.from_pretrained", name)
    for form, (name, _) in controlnetrepos.FORMS.items()
)
FACTORS = {"SD 3": ("sd-3", 1.5305, 0.0609), "FLUX.1": ("flux", 0.3611, 0.1159)}
VAES = tuple(
    Row("vae", family, container, REPO if "repo" in container else FILE, "AutoencoderKL")
    for family in FACTORS
    for container in ("diffusers repo", "original .safetensors", "diffusers .safetensors")
)
OTHER_VAES = {
    Row("vae", family, "diffusers repo", f"{name}.from_pretrained", name): make
    for family, name, make in (
        ("Wan", "AutoencoderKLWan", tinycomponents.wan_vae),
        ("FLUX.2", "AutoencoderKLFlux2", tinycomponents.flux2_vae),
    )
}
ROWS = (*CONTROLNETS, *VAES, *OTHER_VAES)


def made(row: Row) -> Any:
    """Return a model with random weights."""
    torch.manual_seed(0)
    if row in OTHER_VAES:
        return OTHER_VAES[row]()
    kind = getattr(diffusers, row.opens_with)
    if row in CONTROLNETS:
        return kind.from_config(controlnetrepos.configured(row.architecture))
    _family, scaling, shift = FACTORS[row.architecture]
    return kind.from_config(vae_config(16, scaling_factor=scaling, shift_factor=shift))


def family_of(row: Row) -> str:
    """Return the family that the status must state."""
    if row.architecture.startswith("SD"):
        return "sd-3"
    return {"Wan": "wan", "FLUX.2": "flux2"}.get(row.architecture, "flux")


def compare(published: Path, peer: Any) -> None:
    """Assert that a folder has the tensors and the config of a model, and opens."""
    mine, yours = load_file(published / WEIGHTS), peer.state_dict()
    assert mine.keys() == yours.keys()
    assert not [name for name in yours if not identical(mine[name], yours[name])]
    opened = type(peer).from_pretrained(published, local_files_only=True, dtype=peer.dtype)
    assert public(opened.config) == public(peer.config)


def public(config: Any) -> dict[str, Any]:
    """Return the config without private keys and without the size of the training images."""
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key != "sample_size"
    }
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return found


@pytest.mark.parametrize("revision", DTYPES)
@pytest.mark.parametrize("row", [row for row in ROWS if "repo" in row.container], ids=str)
def test_a_repo_is_published_as_diffusers_saves_it(
    tmp_path: Path, hub: FakeHub, containers: Containers, row: Row, revision: str | None
) -> None:
    """Weights, config and class are equal, and the snippet for users opens the folder."""
    repo = tmp_path / "repo"
    made(row).save_pretrained(repo)
    hub.add_repo("org/model", repo)
    ended = containers.load(load_request("org/model", model_type=row.model_type, revision=revision))
    artifact = artifact_of(ended)
    kind = getattr(diffusers, row.opens_with)
    compare(containers.store / "model", kind.from_pretrained(repo, dtype=DTYPES[revision]))
    assert (artifact.base_model, artifact.pipeline_class) == (family_of(row), row.opens_with)
    assert artifact.checked == (None if row in (*CONTROLNETS, *VAES) else "names")
    code = python_code(ModelType(row.model_type), artifact, str(containers.store / "model"))
    variables: dict[str, Any] = {}
    exec(code, variables)
    assert type(variables[row.model_type]) is kind


@pytest.mark.parametrize("row", [row for row in VAES if "repo" not in row.container], ids=str)
def test_a_file_is_published_as_diffusers_converts_it(
    tmp_path: Path, hub: FakeHub, containers: Containers, row: Row
) -> None:
    """spec.baseModel decides between SD 3 and FLUX.1, as the given config does for diffusers."""
    is_original = "original" in row.container
    shapes = original_vae(16) if is_original else vae_of_diffusers(16)
    path = save_safetensors(tmp_path / "ae.safetensors", random_tensors(shapes, torch.bfloat16))
    family, scaling, shift = FACTORS[row.architecture]
    link = hub.serve_file("/ae.safetensors", path)
    ended = containers.load(load_request(link, model_type="vae", base_model=family))
    configs = tmp_path / "configs"
    configs.mkdir()
    config = vae_config(16, scaling_factor=scaling, shift_factor=shift)
    (configs / "config.json").write_text(json.dumps(config))
    peer = diffusers.AutoencoderKL.from_single_file(
        str(path), config=str(configs), local_files_only=True, dtype=torch.bfloat16
    )
    compare(containers.store / "model", peer)
    assert artifact_of(ended).base_model == family


@pytest.mark.parametrize("form", controlnetrepos.FORMS)
def test_the_known_tensors_are_those_that_diffusers_makes(form: str) -> None:
    """Names and shapes that the loader's list has for a ControlNet are those of diffusers."""
    config = controlnetrepos.configured(form)
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert controlnetrepos.shapes(form) == shapes
