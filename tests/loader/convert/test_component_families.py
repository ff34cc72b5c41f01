"""Repos of ControlNets and VAEs of other families than SD 1, 2 and XL, without torch."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from devkit.layers import Shapes
from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_api.taxonomy import LOADED, UNETS
from sd_loader.diffusers_repo import classes
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.diffusers_repo.listed_files import choose_single
from sd_loader.diffusers_repo.single_component import OTHER_FAMILIES, parse_component
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from tests.support.models.controlnetrepos import FORMS, STEM, configured, repo, shapes
from tests.support.models.familyrepos import NF4, Files, lay
from tests.support.models.repoconversions import convert_repo
from tests.support.models.vaeshapes import empty_weights

WEIGHTS = f"{STEM}.safetensors"
WAN_VAE: Shapes = {"decoder.conv_in.weight": (4, 4, 3, 3, 3), "encoder.norm.gamma": (4,)}


def publish(
    files: Files, tmp_path: Path, model_type: str = "controlnet", **fields: Any
) -> tuple[Path, Converted]:
    """Write the files of a repo, and convert it. Return the published folder and the result."""
    return convert_repo(lay(files, tmp_path / "repo"), model_type=model_type, **fields)


@pytest.mark.parametrize("form", FORMS)
def test_a_controlnet_is_published_as_its_repo_has_it(tmp_path: Path, form: str) -> None:
    """The weights are linked, and config keys that the loader does not list are dropped.

    The result has no `checked`, since all shapes were compared.
    """
    files = repo(form, _name_or_path="/home/author/net", auto_upcast="evil/kernel")
    out, converted = publish(files, tmp_path)
    assert (out / WEIGHTS).samefile(tmp_path / "repo" / WEIGHTS)
    assert json.loads((out / "config.json").read_text()) == configured(form)
    family = "flux" if form.startswith("FLUX") else "sd-3"
    assert (converted.base_model, converted.pipeline_class) == (family, FORMS[form][0])
    assert (converted.precision, converted.checked) == ("bf16", None)
    assert sorted(converted.files) == ["config.json", WEIGHTS]


def test_shards_stay_as_they_are(tmp_path: Path) -> None:
    """Each shard is linked, and the published index lists every tensor."""
    out, _converted = publish(repo("FLUX.1", shards=2), tmp_path)
    index = json.loads((out / f"{WEIGHTS}.index.json").read_text())
    assert index["weight_map"].keys() == shapes("FLUX.1").keys()
    for number in (1, 2):
        name = f"{STEM}-{number:05d}-of-00002.safetensors"
        assert (out / name).samefile(tmp_path / "repo" / name)


def test_a_controlnet_in_a_subfolder_is_published(tmp_path: Path) -> None:
    """A ControlNet in the folder `controlnet` of its repo is published like one at the root."""
    files = {f"controlnet/{name}": content for name, content in repo("SD 3").items()}
    out, converted = publish(files, tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", WEIGHTS]
    assert converted.base_model == "sd-3"


def test_the_index_of_shards_is_fetched_and_code_is_not() -> None:
    """The config, the shards and their index are downloaded; other files, such as code, are not."""
    files = {name: RepoFile(name, len(it)) for name, it in repo("FLUX.1", shards=2).items()}
    others = {name: RepoFile(name, 1) for name in ("net.py", "README.md", "net.safetensors")}
    component = parse_component(repo("FLUX.1")["config.json"], ModelType.CONTROLNET)
    chosen = choose_single({**files, **others}, PurePosixPath(), component, None)
    assert {file.path for file in chosen} == files.keys()


def test_a_class_without_known_tensors_is_checked_by_names(tmp_path: Path) -> None:
    """The loader does not know this class's tensors, so `checked` is "names", as for pipelines."""
    config = {"_class_name": "AutoencoderKLWan", "z_dim": 4, "base_dim": 4}
    files = {"config.json": json.dumps(config).encode(), WEIGHTS: empty_weights(WAN_VAE)}
    out, converted = publish(files, tmp_path, "vae")
    assert (out / WEIGHTS).samefile(tmp_path / "repo" / WEIGHTS)
    assert (converted.base_model, converted.pipeline_class) == ("wan", "AutoencoderKLWan")
    assert converted.checked == "names"


def test_each_class_is_a_model_of_the_generated_list() -> None:
    """The list has the config keys of each class, so only documented keys are published."""
    for names in OTHER_FAMILIES.values():
        for name in names:
            assert classes.role("diffusers", name) is classes.Role.MODEL
            assert classes.entry(name)["keys"]


def test_the_families_are_those_that_spec_base_model_may_name() -> None:
    """SD 1, 2, XL, 3 and FLUX.1 are not compared: the class of their VAEs is not in the list."""
    of_unets = {*UNETS, BaseModelName.SD3, BaseModelName.FLUX}
    for model_type, names in OTHER_FAMILIES.items():
        assert LOADED[model_type] - of_unets == set(names.values()) - of_unets


def lacking(name: str) -> Files:
    """Return the repo of FLUX.1's ControlNet without this tensor."""
    own = {key: shape for key, shape in shapes("FLUX.1").items() if key != name}
    return {**repo("FLUX.1"), WEIGHTS: empty_weights(own)}


REFUSED = [
    pytest.param(
        lacking("controlnet_blocks.0.bias"),
        {},
        Reason.CONVERSION_FAILED,
        "controlnet lacks the tensor controlnet_blocks.0.bias, which its config.json asks for",
        id="a missing tensor",
    ),
    pytest.param(
        {
            name: content
            for name, content in repo("FLUX.1", shards=2).items()
            if name != f"{STEM}-00002-of-00002.safetensors"
        },
        {},
        Reason.UNSUPPORTED_FORMAT,
        f"the repo lacks {STEM}-00002-of-00002.safetensors, one of the 2 shards of its weights",
        id="a missing shard",
    ),
    pytest.param(
        repo("FLUX.1", quantization_config={"quant_method": "bitsandbytes", **NF4}),
        {"revision": "fp16"},
        Reason.INVALID_SPEC,
        "spec.revision is fp16, but the weights of controlnet are quantized (nf4, by bitsandbytes)",
        id="a quantized repo with a precision",
    ),
    pytest.param(
        repo("FLUX.1", num_mode=10),
        {},
        Reason.CONVERSION_FAILED,
        "controlnet lacks the tensor controlnet_mode_embedder.weight",
        id="a config of a union",
    ),
    pytest.param(
        repo("SD 3", num_attention_heads=3),
        {},
        Reason.CONVERSION_FAILED,
        "controlnet: pos_embed.proj.weight has the shape [16, 4, 2, 2]; it should be [24, 4, 2, 2]",
        id="another width",
    ),
    pytest.param(
        repo("SD 3", qk_norm="evil"),
        {},
        Reason.CONVERSION_FAILED,
        "controlnet/config.json: qk_norm is evil; it should be rms_norm",
        id="an unknown norm",
    ),
    pytest.param(
        repo("FLUX.1"),
        {"base_model": "sdxl"},
        Reason.INVALID_SPEC,
        "spec.baseModel is sdxl, but the repo is a FluxControlNetModel, a controlnet of flux",
        id="another family than the spec",
    ),
    pytest.param(
        repo("FLUX.1"),
        {"model_type": "vae"},
        Reason.UNSUPPORTED_FORMAT,
        "the repo is a FluxControlNetModel: it needs spec.modelType: controlnet",
        id="another type",
    ),
    pytest.param(
        repo("FLUX.1", _class_name="FluxControlNetModel3"),
        {},
        Reason.UNSUPPORTED_FORMAT,
        "config.json names the class FluxControlNetModel3; spec.modelType controlnet is for"
        " ControlNetModel and, of other families, for FluxControlNetModel,",
        id="an unknown class",
    ),
    pytest.param(
        repo("FLUX.1", auto_map={"AutoModel": "net.Net"}),
        {},
        Reason.UNSAFE_MODEL,
        "config.json asks for code of the repo (auto_map)",
        id="code",
    ),
]


@pytest.mark.parametrize(("files", "fields", "reason", "words"), REFUSED)
def test_a_bad_repo_is_refused_and_nothing_is_written(
    tmp_path: Path, files: Files, fields: dict[str, Any], reason: Reason, words: str
) -> None:
    """The message names the file, the key or the tensor."""
    with pytest.raises(LoaderError) as caught:
        publish(files, tmp_path, **fields)
    assert caught.value.reason is reason
    assert words in caught.value.message
    assert not list((tmp_path / "out").iterdir())
