"""A file with only a transformer loads with the other components of a repo, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from sd_loader import streaming
from sd_loader.formats import open_tensor_file
from sd_loader.net import ranges
from tests.support.loader.loadercli import Containers, Ended, artifact_of, failed, load_request
from tests.support.models import familyrepos, skeletons
from tests.support.models.familyrepos import DIFFUSION, Files, typed
from tests.support.models.skeletons import file_of

pytestmark = pytest.mark.usefixtures("slim")
SKELETON = "org/flux"
TRANSFORMER = f"transformer/{DIFFUSION}.safetensors"
T5 = "text_encoder_2/model-00001-of-00001.safetensors"


def add_repo(
    hub: FakeHub, tmp_path: Path, files: Files, name: str = SKELETON, **options: Any
) -> None:
    """Serve a repo with these files."""
    hub.add_repo(name, familyrepos.lay(files, tmp_path / name.replace("/", "-")), **options)


def load(containers: Containers, url: str, **fields: Any) -> Ended:
    """Load a url with the components of SKELETON, unless `fields` gives others."""
    return containers.load(load_request(url, **{"components": {"from": SKELETON}, **fields}))


def published(containers: Containers, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the types and shapes of a published file."""
    with open_tensor_file(containers.store / "model" / name) as file:
        return {key: (it.dtype.label, it.shape) for key, it in file.tensors.items()}


def test_second_fine_tune_downloads_only_its_transformer(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The first load takes the other components from the repo, and states its commit.

    The second load does not download the text encoder T5 again: both models share its file.
    """
    repo = skeletons.flux()
    add_repo(hub, tmp_path, repo)
    first = load(containers, hub.serve_file("/one.safetensors", file_of("flux", seed=1)))
    artifact = artifact_of(first)
    assert (artifact.base_model, artifact.pipeline_class) == ("flux", "FluxPipeline")
    assert first.result is not None
    assert first.result.source is not None
    commit = hub.repos[SKELETON].commit()
    assert first.result.source.components_from == f"{SKELETON}@{commit}"
    assert f"taken from {SKELETON}@{commit[:7]}" in first.result.message
    folder = containers.store / "model"
    assert (folder / "text_encoder_2/model.safetensors").read_bytes() == repo[T5]
    config = json.loads((folder / "transformer/config.json").read_text())
    assert config == skeletons.FLUX_CONFIG
    shapes = typed(skeletons.published_shapes("flux"))
    assert published(containers, TRANSFORMER) == shapes
    assert not any(path.endswith(".safetensors") and "/transformer/" in path for path in hub.served)

    second = file_of("flux", seed=2)
    add_repo(hub, tmp_path, {"two.safetensors": second}, "org/two")
    hub.forget()
    url = f"{hub.url}/org/two/resolve/main/two.safetensors"
    artifact_of(load(containers, url, model_id="other"))
    small = sum(len(content) for name, content in repo.items() if name != T5)
    assert hub.served["org/two/two.safetensors"] == len(second)
    assert hub.bytes_served <= len(second) + small
    assert (containers.store / "other/text_encoder_2/model.safetensors").samefile(
        folder / "text_encoder_2/model.safetensors"
    )


def test_default_repo_of_the_family_gives_the_components(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A setting names the repo, and the result states its commit."""
    add_repo(hub, tmp_path, skeletons.qwen())
    add_repo(hub, tmp_path, {"model.safetensors": file_of("qwen-image")}, "org/file")
    containers.env["SD_LOADER_DEFAULT_PARTS"] = f"flux=org/other,qwen-image={SKELETON}@main"
    url = f"{hub.url}/org/file/resolve/main/model.safetensors"
    ended = load(containers, url, components={})
    assert artifact_of(ended).base_model == "qwen-image"
    assert ended.result is not None
    assert ended.result.source is not None
    assert ended.result.source.components_from == f"{SKELETON}@{hub.repos[SKELETON].commit()}"
    shapes = typed(skeletons.published_shapes("qwen-image"))
    assert published(containers, TRANSFORMER) == shapes


def test_wan_gets_its_second_transformer_from_a_file(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The spec decides which of the two transformers a file is; the tensors do not show it."""
    add_repo(hub, tmp_path, skeletons.wan())
    high, low = (hub.serve_file(f"/{seed}", file_of("wan", seed=seed)) for seed in (1, 2))
    ended = load(containers, high, components={"from": SKELETON, "transformer_2": {"url": low}})
    assert artifact_of(ended).pipeline_class == "WanPipeline"
    folder = containers.store / "model"
    one, two = (
        folder / f"{name}/{DIFFUSION}.safetensors" for name in ("transformer", "transformer_2")
    )
    assert published(containers, TRANSFORMER) == published(containers, f"transformer_2/{two.name}")
    assert one.read_bytes() != two.read_bytes()
    assert json.loads((folder / "model_index.json").read_text())["boundary_ratio"] == 0.875
    assert not any("/transformer" in path and "safetensors" in path for path in hub.served)


def test_gated_repo_is_refused_before_the_file_is_requested(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The user does not wait for a download of many gigabytes to learn of the licence."""
    add_repo(hub, tmp_path, skeletons.flux(), gated=True, token="hf_token")
    ended = load(containers, hub.serve_file("/file", file_of("flux")))
    failed(
        ended, Reason.AUTHENTICATION_REQUIRED, f"spec.components.from: {hub.url}/{SKELETON} is a"
    )
    assert hub.served["/file"] == 0


def test_gated_default_repo_is_refused_before_a_large_file_is_downloaded(
    containers: Containers, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of the file shows the family. Only the header is downloaded."""
    monkeypatch.setattr(streaming, "LEAST_BYTES", 1)
    monkeypatch.setattr(ranges, "HEAD_BYTES", 1 << 14)
    add_repo(hub, tmp_path, skeletons.flux(), gated=True, token="hf_token")
    file = file_of("flux")
    add_repo(hub, tmp_path, {"model.safetensors": file}, "org/file")
    containers.env["SD_LOADER_DEFAULT_PARTS"] = f"flux={SKELETON}"
    url = f"{hub.url}/org/file/resolve/main/model.safetensors"
    ended = load(containers, url, components={})
    failed(ended, Reason.AUTHENTICATION_REQUIRED, "the default components of flux: ")
    assert 0 < hub.served["org/file/model.safetensors"] < len(file) / 10


WHOLE = {"components": {"from": SKELETON}}
REFUSED = [
    pytest.param(
        lambda: skeletons.flux() | skeletons.with_class("transformer", "my_module", "Net"),
        WHOLE,
        Reason.UNSAFE_MODEL,
        "spec.components.from: a FLUX pipeline (FluxPipeline): model_index.json: transformer comes"
        " from my_module, which is code of the repo's own or of an unknown library",
        id="a class of the repo's own",
    ),
    pytest.param(
        lambda: skeletons.changed(skeletons.flux(), auto_map={"AutoModel": "net.Net"}),
        WHOLE,
        Reason.UNSAFE_MODEL,
        "transformer/config.json asks for code of the repo (auto_map)",
        id="a config that names code",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        skeletons.qwen,
        WHOLE,
        Reason.INVALID_SPEC,
        "spec.components.from: the repo is a Qwen-Image pipeline (QwenImagePipeline), and the file"
        " is the transformer of FLUX.1, without its text encoders and VAE: name a diffusers repo of"
        " FLUX.1",
        id="another family",
    ),
    pytest.param(
        lambda: skeletons.flux() | skeletons.with_class("transformer", None, None),
        WHOLE,
        Reason.INVALID_SPEC,
        "spec.components.from: the repo is a FLUX pipeline (FluxPipeline) without the component"
        " transformer, whose config the file needs: name a diffusers repo of FLUX.1 that has it",
        id="a repo without a transformer",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: skeletons.changed(skeletons.flux(), num_layers=19),
        WHOLE,
        Reason.CONVERSION_FAILED,
        "spec.url: the file is the transformer of another variant of FLUX.1 than"
        " transformer/config.json of the repo describes (num_layers is 19, but 2 in the file); name"
        " the repo of this variant",
        id="another variant",
    ),
    pytest.param(
        skeletons.flux,
        {"components": {"from": SKELETON, "transformer_2": {"url": "org/flux"}}},
        Reason.INVALID_SPEC,
        "the repo is a FLUX pipeline (FluxPipeline) without the component transformer_2; its"
        " components with weights are text_encoder, text_encoder_2, transformer, vae",
        id="a repo without the component",
    ),
    pytest.param(
        lambda: {"config.json": b"{}", "model.safetensors": b"x"},
        WHOLE,
        Reason.UNSUPPORTED_FORMAT,
        "spec.components.from: the repo has no model_index.json, so it is not a diffusers pipeline",
        id="not a pipeline",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        skeletons.flux,
        {"components": {"from": "https://example.com/flux.safetensors"}},
        Reason.INVALID_SPEC,
        "spec.components.from: must be a diffusers repo of the Hub",
        id="not a repo",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        skeletons.flux,
        {"components": {}},
        Reason.UNSUPPORTED_FORMAT,
        "the file is the transformer of FLUX.1, without its text encoders and VAE: name a diffusers"
        " repo that gives the other components in spec.components.from",
        id="no repo",
    ),
    pytest.param(
        skeletons.flux,
        {**WHOLE, "prediction_type": "epsilon"},
        Reason.INVALID_SPEC,
        "spec.predictionType does not apply: the file is the transformer of FLUX.1",
        id="a field of Stable Diffusion",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("make", "fields", "reason", "message"), REFUSED)
def test_repo_that_does_not_fit_is_refused(
    containers: Containers,
    hub: FakeHub,
    tmp_path: Path,
    make: Callable[[], Files],
    fields: dict[str, Any],
    reason: Reason,
    message: str,
) -> None:
    """The repo's weights are not downloaded, and no model is published."""
    add_repo(hub, tmp_path, make())
    ended = load(containers, hub.serve_file("/file", file_of("flux")), **fields)
    failed(ended, reason, message)
    assert not [path for path in hub.served if "text_encoder" in path and "safetensors" in path]
    assert list(containers.store.iterdir()) == []


def test_component_of_a_repo_is_replaced_by_a_file(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A repo in spec.url needs no other repo. The replaced component is not downloaded."""
    add_repo(hub, tmp_path, skeletons.wan())
    url = hub.serve_file("/low", file_of("wan", seed=2))
    ended = load(containers, SKELETON, components={"transformer_2": {"url": url}})
    assert artifact_of(ended).pipeline_class == "WanPipeline"
    names = skeletons.published_shapes("wan").keys()
    assert published(containers, f"transformer_2/{DIFFUSION}.safetensors").keys() == names
    assert not [path for path in hub.served if "/transformer_2/" in path and "safetens" in path]
    listings = [it.path for it in hub.requests if it.path.startswith(f"/api/models/{SKELETON}")]
    assert len(listings) == 1, "two listings of a branch that moves could name different commits"


NEEDLESS = [
    pytest.param(
        WHOLE,
        "spec.components.from is for single files, which lack components, but the repo is a FLUX",
        id="components of a whole repo",
    ),
    pytest.param(
        {"components": {"transformer_2": {"url": "org/none"}}},
        "the repo is a FLUX pipeline (FluxPipeline) without the component transformer_2",
        id="a component that the repo lacks",
    ),
    pytest.param(
        {"vae": {"url": "org/a"}, "components": {"vae": {"url": "org/b"}}},
        "spec.components.vae: spec.vae gives a VAE as well; remove one of them",
        id="two VAEs",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("fields", "message"), NEEDLESS)
def test_components_without_a_use_are_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    """Only model_index.json is downloaded."""
    add_repo(hub, tmp_path, skeletons.flux())
    failed(load(containers, SKELETON, **fields), Reason.INVALID_SPEC, message)
    assert not [path for path in hub.served if not path.endswith("model_index.json")]


def test_components_for_a_whole_checkpoint_are_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path, checkpoint: Path
) -> None:
    """A field without an effect is refused, because it would hide a mistake."""
    add_repo(hub, tmp_path, skeletons.flux())
    ended = load(containers, hub.serve_file("/sd15.safetensors", checkpoint))
    failed(ended, Reason.INVALID_SPEC, "spec.components.from: does not apply: the file has all")
    add_repo(hub, tmp_path, {"config.json": b"{}", "model.safetensors": b"x"}, "org/clip")
    fields = {"components": {"text_encoder": {"url": "org/clip"}}}
    ended = load(containers, hub.serve_file("/sd15.safetensors", checkpoint), **fields)
    failed(ended, Reason.INVALID_SPEC, "spec.components.text_encoder is not for models of Stable")


def test_load_by_hand_takes_components_from_local_files(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """An unknown component is refused, and the message names the known ones."""
    add_repo(hub, tmp_path, skeletons.wan())
    for name, seed in (("high", 1), ("low", 2)):
        (tmp_path / f"{name}.safetensors").write_bytes(file_of("wan", seed=seed))
    arguments = ["load", "--url", tmp_path / "high.safetensors", "--model-id", "model", "--store",
                 containers.store, "--components-from", SKELETON]  # fmt: skip
    ended = containers.run(*arguments, "--component", f"transformer_2={tmp_path}/low.safetensors")
    assert ended.code == 0, ended.stderr
    ended = containers.run(*arguments, "--component", "unet=a/b")
    assert "must be NAME=URL, where NAME is one of transformer, transformer_2, vae" in ended.stderr
