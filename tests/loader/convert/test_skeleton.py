"""A transformer's file, the components of the spec and the rest of a repo become one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.wire import Source
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.run import convert
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Converted, ExtraComponent, Fetched
from tests.support.loader.arrivals import arrived_in
from tests.support.models import familyrepos, skeletons
from tests.support.models.familyrepos import DIFFUSION, Files, encoded, lay, packed, typed, zeros
from tests.support.models.skeletons import file_of
from tests.support.models.transformershapes import original_shapes
from tests.support.models.vaeshapes import original_vae, vae_config

VAE = f"vae/{DIFFUSION}.safetensors"
VAE_CONFIG = vae_config(16, scaling_factor=0.3611)


def flux(**vae: object) -> Files:
    """Return FLUX.1 with a VAE of the tiny sizes."""
    return {**skeletons.flux(), "vae/config.json": encoded({**VAE_CONFIG, **vae})}


def made(
    tmp_path: Path,
    file: bytes,
    repo: Files,
    given: Mapping[str, bytes | Files] | None = None,
    **options: Any,
) -> tuple[Path, Converted]:
    """Write a file, a repo and extra components as the fetch stage leaves them, and convert them.

    Return the published folder and the result.
    """
    extras = []
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "download").write_bytes(file)
    lay(repo, tmp_path / "skeleton/repo")
    for name, content in (given or {}).items():
        kind: Literal["file", "repo"] = "file" if isinstance(content, bytes) else "repo"
        if isinstance(content, bytes):
            lay({"file": content}, tmp_path / name)
        else:
            lay(content, tmp_path / name / "repo")
        extras.append(ExtraComponent(components=(name,), kind=kind, path=f"{name}/{kind}"))
    fetched = Fetched(
        kind="file",
        path="download",
        source=Source(),
        files=arrived_in(tmp_path),
        extras=tuple(extras),
        skeleton="skeleton/repo",
    )
    out = tmp_path / "out"
    out.mkdir()
    conversion = Conversion(
        ModelType.CUSTOM_CKPT, "model", replaced=frozenset(given or {}), **options
    )
    return out, convert(fetched, tmp_path, conversion, out, lambda _: None)


def names(path: Path) -> set[str]:
    """Return the names of a file's tensors."""
    with open_tensor_file(path) as file:
        return set(file.tensors)


def config(out: Path, name: str) -> dict[str, Any]:
    """Return a component's published config."""
    value: dict[str, Any] = json.loads((out / name / "config.json").read_text())
    return value


def test_file_in_diffusers_layout_keeps_its_names(tmp_path: Path) -> None:
    """The tensors of the transformer, and of the repo's T5 and VAE, keep their names."""
    shapes = skeletons.published_shapes("flux")
    file = packed(typed(shapes))
    out, result = made(tmp_path, file, flux())
    assert names(out / f"transformer/{DIFFUSION}.safetensors") == shapes.keys()
    repo = tmp_path / "skeleton/repo"
    assert (out / VAE).samefile(repo / VAE)
    for folder in ("text_encoder_2", "vae"):
        published = [names(path) for path in (out / folder).glob("*.safetensors")]
        assert published == [names(path) for path in (repo / folder).glob("*.safetensors")]
    assert (result.pipeline_class, result.checked) == ("FluxPipeline", "names")


def test_vae_of_the_file_is_used(tmp_path: Path) -> None:
    """A VAE in the file, as in files of Stable Diffusion 3.5, gets the config of the repo's VAE."""
    vae = original_vae(16, "first_stage_model.")
    file = packed(typed({**original_shapes("flux"), **vae}))
    repo = flux()
    del repo[VAE]
    out, _result = made(tmp_path, file, repo)
    assert "decoder.up_blocks.0.resnets.0.conv1.weight" in names(out / VAE)
    assert config(out, "vae") == VAE_CONFIG


def test_vae_that_no_table_describes_comes_from_the_repo(tmp_path: Path) -> None:
    """A warning states that the file's own VAE is not used."""
    file = packed(typed({**original_shapes("wan"), "vae.encoder.conv1.weight": (4,)}))
    _out, result = made(tmp_path, file, skeletons.wan())
    assert "not used from the file: VAE; the repo gives them" in result.warnings


@pytest.mark.parametrize("layout", ["original", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_vae_of_the_spec_replaces_the_others(tmp_path: Path, layout: str) -> None:
    """The VAE's file may have either layout. The published config is that of the repo."""
    vae = typed(original_vae(16))
    if layout == "diffusers":
        _, result = made(tmp_path / "first", file_of("flux"), flux(), {"vae": packed(vae)})
        with open_tensor_file(tmp_path / "first/out" / VAE) as file:
            vae = {name: ("BF16", it.shape) for name, it in file.tensors.items()}
        assert result.warnings == ()
    out, _ = made(tmp_path / "second", file_of("flux"), flux(), {"vae": packed(vae)})
    assert "decoder.up_blocks.0.resnets.0.conv1.weight" in names(out / VAE)
    assert config(out, "vae") == VAE_CONFIG


def test_text_encoder_of_another_repo_replaces_the_pipelines_own(tmp_path: Path) -> None:
    """The text encoder keeps its own config and its shards."""
    other = familyrepos.sharded("", "model", [{"x": ("BF16", (8,))}, {"y": ("BF16", (8,))}])
    given = {name.removeprefix("/"): content for name, content in other.items()}
    own = familyrepos.t5_config() | {"d_ff": 24}
    out, result = made(
        tmp_path,
        file_of("flux"),
        flux(),
        {"text_encoder_2": {"config.json": encoded(own), **given}},
    )
    assert config(out, "text_encoder_2")["d_ff"] == 24
    assert sorted(path.name for path in (out / "text_encoder_2").glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert result.precision == "bf16"


T5_CONFIG = familyrepos.t5_config()
X = packed({"x": ("BF16", (8,))})
BAD: list[Any] = [
    pytest.param(
        {"vae": packed(typed(original_vae(4)))},
        Reason.CONVERSION_FAILED,
        "vae from elsewhere: vae: encoder.conv_out.weight has the shape [8, ",
        id="a VAE of other latents",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"text_encoder_2": X},
        Reason.UNSUPPORTED_FORMAT,
        "text_encoder_2 from elsewhere: a T5EncoderModel is read from a repo only",
        id="a text encoder's file",
    ),
    pytest.param(
        {"text_encoder": {"config.json": encoded(T5_CONFIG), "model.safetensors": X}},
        Reason.UNSUPPORTED_FORMAT,
        "text_encoder from elsewhere: config.json has the model_type t5, and the pipeline needs"
        " clip_text_model (a CLIPTextModel)",
        id="an encoder of another class",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {
            "text_encoder_2": {
                "config.json": encoded(T5_CONFIG | {"d_model": 16}),
                "model.safetensors": X,
            }
        },
        Reason.CONVERSION_FAILED,
        "text_encoder_2 from elsewhere: d_model is 16, and the pipeline needs 8",
        id="an encoder of another width",
    ),
    pytest.param(
        {"transformer": file_of("flux")},
        Reason.INVALID_SPEC,
        "spec.components.transformer does not apply: the file of spec.url is the transformer of",
        id="a second first transformer",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("given", "reason", "message"), BAD)
def test_component_that_does_not_fit_is_refused(
    tmp_path: Path, given: dict[str, bytes | Files], reason: Reason, message: str
) -> None:
    """The message names the component and the reason."""
    with pytest.raises(LoaderError) as caught:
        made(tmp_path, file_of("flux"), flux(), given)
    assert caught.value.reason is reason
    assert message in caught.value.message


def test_second_transformer_must_be_of_the_same_family(tmp_path: Path) -> None:
    """A transformer of FLUX.1 is refused as the second transformer of Wan 2.2."""
    with pytest.raises(LoaderError, match="transformer_2 from elsewhere: the file is the transf"):
        made(tmp_path, file_of("wan"), skeletons.wan(), {"transformer_2": file_of("flux")})


def test_scaled_fp8_becomes_fp16(tmp_path: Path) -> None:
    """All weights become fp16, and the scales are not published."""
    shapes = original_shapes("qwen-image")
    tensors = typed(shapes, "F8_E4M3")
    tensors["img_in.scale_weight"] = ("F32", (1,))
    tensors["scaled_fp8"] = ("F8_E4M3", (2,))
    out, _ = made(tmp_path, zeros(tensors), skeletons.qwen())
    with open_tensor_file(out / f"transformer/{DIFFUSION}.safetensors") as file:
        assert {tensor.dtype.label for tensor in file.tensors.values()} == {"F16"}
        assert file.tensors.keys() == shapes.keys()
