"""A repo's configs must agree with its tensors, as in every model that diffusers builds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_check import checked_config
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.write.files import json_file
from sd_loader.diffusers_repo.index import Pipeline, parse_json, parse_pipeline
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor
from tests.support.models.checkpoints import tiny_configs
from tests.support.models.tinymodels import MODELS, TinyModel

PIPELINES = {
    "sd15": Pipeline("StableDiffusionPipeline", {"text_encoder": "CLIPTextModel"}, {}),
    "sdxl": Pipeline(
        "StableDiffusionXLPipeline",
        {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
        {},
    ),
}
Configs = dict[str, dict[str, Any]]
Change = Callable[[Configs], Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Configs]:
    """A function that reads the configs of a tiny pipeline, by component."""
    folder = tmp_path_factory.mktemp("configs")
    for name in PIPELINES:
        tiny_configs(folder / name, name)

    def read(family: str) -> Configs:
        return {
            path.parent.name: json.loads(path.read_text())
            for path in sorted((folder / family).glob("*/config.json"))
        }

    return read


def shapes(component: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the model that diffusers or transformers builds from a config."""
    return dict(_shapes(component, json.dumps(config, sort_keys=True)))


@cache
def _shapes(component: str, json_config: str) -> dict[str, Tensor]:
    config = json.loads(json_config)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if component.startswith("text_encoder"):
            projects = config["architectures"] == ["CLIPTextModelWithProjection"]
            kind = CLIPTextModelWithProjection if projects else CLIPTextModel
            model = kind(CLIPTextConfig(**config))
        else:
            kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
            model = kind.from_config(config)
    prefix = "text_model." if component.startswith("text_encoder") else ""
    return {
        name if name.startswith(("text_projection", prefix)) else prefix + name: Tensor(
            -1, Dtype.F32, tuple(tensor.shape), 0
        )
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }


def checked(family: str, configs: Configs, tensors: dict[str, dict[str, Tensor]]) -> Configs:
    """Check every component as a conversion does, and return the completed configs."""
    dimensions: Dimensions = {}
    return {
        component: checked_config(
            component, PIPELINES[family], config, tensors[component], dimensions
        )
        for component, config in sorted(configs.items())
    }


VARIANTS = [
    pytest.param("sd15", lambda _: None, id="SD 1.5"),
    pytest.param("sdxl", lambda _: None, id="SDXL"),
    pytest.param(
        "sd15",
        lambda it: it["unet"].update(in_channels=9),
        id="inpainting",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "sdxl",
        lambda it: it["unet"].update(in_channels=9),
        id="SDXL inpainting",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "sd15",
        lambda it: (
            it["unet"].update(use_linear_projection=True, attention_head_dim=[1, 2, 4, 4]),
            it["text_encoder"].update(num_hidden_layers=23, projection_dim=32, hidden_act="gelu"),
        ),
        id="SD 2",
    ),
    pytest.param("sd15", lambda it: it["unet"].update(time_cond_proj_dim=256), id="LCM"),
    pytest.param(
        "sd15",
        lambda it: it["unet"].update(
            down_block_types=["CrossAttnDownBlock2D"] * 3,
            up_block_types=["CrossAttnUpBlock2D"] * 3,
            block_out_channels=[32, 32, 64],
            layers_per_block=1,
            mid_block_type=None,
        ),
        id="BK-SDM",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "sdxl",
        lambda it: it["unet"].update(
            transformer_layers_per_block=[0, 2, 4],
            reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
        ),
        id="SSD-1B",
        marks=pytest.mark.slow,
    ),
]
# `make test` runs SD 2, the refiner, a model with nine input channels, and a distilled UNet.
# `make test-all` runs all.
QUICK = ("SD 2 base (512)", "SDXL refiner", "SD 1.5 inpainting", "BK-SDM tiny")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model.title in QUICK else pytest.mark.slow)
        for model in MODELS
    ],
    ids=str,
)
def test_each_architecture_is_checked_tensor_by_tensor(model: TinyModel, tmp_path: Path) -> None:
    """Each tensor that the config implies must exist, in distilled UNets, too."""
    folder = model.write_configs(tmp_path / "repo")
    pipeline = parse_pipeline((folder / "model_index.json").read_bytes())
    configs = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("*/config.json"))
    }
    tensors = {name: shapes(name, config) for name, config in configs.items()}

    def check() -> Configs:
        dimensions: Dimensions = {}
        return {
            name: checked_config(name, pipeline, config, tensors[name], dimensions)
            for name, config in sorted(configs.items())
        }

    found = check()
    assert all(config.items() <= found[name].items() for name, config in configs.items())
    del tensors["unet"]["up_blocks.1.resnets.0.conv1.weight"]
    with pytest.raises(LoaderError, match=r"unet lacks 1 tensors, first up_blocks\.1\.resnets\.0"):
        check()


DEEPER = [
    pytest.param({"transformer_layers_per_block": [1, 2, 11]}, id="more blocks than the family"),
    pytest.param({"transformer_layers_per_block": [1, [2], [4, 4]]}, id="too few attentions"),
    pytest.param({"transformer_layers_per_block": [1, [[2]], 4]}, id="nested too deep"),
    pytest.param({"reverse_transformer_layers_per_block": 1 << 20}, id="huge"),
]


@pytest.mark.parametrize("change", DEEPER)
def test_unknown_structure_is_accepted_or_refused(
    published: Callable[[str], Configs], change: dict[str, Any]
) -> None:
    """A config with an unknown structure is accepted, or refused by a LoaderError."""
    configs = published("sdxl")
    tensors = {name: shapes(name, config) for name, config in configs.items()}
    configs["unet"].update(change)
    try:
        found = checked("sdxl", configs, tensors)
    except LoaderError as error:
        assert error.reason is Reason.CONVERSION_FAILED  # noqa: PT017 - one of two right answers
    else:
        assert found["unet"] == configs["unet"]


@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_real_families_pass_the_check(
    published: Callable[[str], Configs], family: str, change: Change
) -> None:
    """The models that diffusers builds agree with their configs, which stay unchanged."""
    configs = published(family)
    change(configs)
    tensors = {name: shapes(name, config) for name, config in configs.items()}
    found = checked(family, configs, tensors)
    for component, config in configs.items():
        assert config.items() <= found[component].items()


def test_tensors_complete_a_config(published: Callable[[str], Configs]) -> None:
    """Values that an old config omits are published, because their defaults may change."""
    configs = published("sd15")
    tensors = {name: shapes(name, config) for name, config in configs.items()}
    del configs["text_encoder"]["hidden_size"]
    assert "in_channels" not in configs["unet"]
    found = checked("sd15", configs, tensors)
    assert found["text_encoder"]["hidden_size"] == 64
    assert found["unet"]["in_channels"] == 4


CONTRADICTIONS = [
    pytest.param("text_encoder", {"hidden_size": "x"}, "hidden_size is x", id="text"),
    pytest.param("text_encoder", {"hidden_size": None}, "hidden_size is null", id="null"),
    pytest.param("text_encoder", {"hidden_size": 128}, "it should be 64", id="other width"),
    pytest.param("text_encoder", {"hidden_size": True}, "hidden_size is true", id="boolean"),
    pytest.param("text_encoder", {"vocab_size": 7}, "vocab_size is 7", id="vocabulary"),
    pytest.param("text_encoder", {"num_hidden_layers": 10**9}, "from 1 to", id="huge"),
    pytest.param("text_encoder", {"num_hidden_layers": -1}, "from 1 to", id="negative"),
    pytest.param("text_encoder", {"num_hidden_layers": 3}, "num_hidden_layers is 3", id="layers"),
    pytest.param("text_encoder", {"num_attention_heads": 0}, "num_attention_heads", id="0 heads"),
    pytest.param("text_encoder", {"num_attention_heads": 7}, "divide into 7", id="7 heads"),
    pytest.param(
        "text_encoder",
        {"layers_per_block": 3, "hidden_size": 128},
        "hidden_size is 128",
        id="a UNet's field in a text encoder hides nothing",
    ),
    pytest.param("unet", {"block_out_channels": "x"}, "block_out_channels is x", id="channels"),
    pytest.param("unet", {"block_out_channels": []}, "block_out_channels", id="no channels"),
    pytest.param("unet", {"down_block_types": ["x"]}, "down_block_types", id="unknown block"),
    pytest.param("unet", {"up_block_types": [{}] * 4}, "up_block_types", id="no block"),
    pytest.param("unet", {"down_block_types": ["DownBlock2D"]}, "one for each", id="one level"),
    pytest.param("unet", {"cross_attention_dim": [1, 2]}, "cross_attention_dim", id="two contexts"),
    pytest.param("unet", {"cross_attention_dim": 128}, "it should be 64", id="other context"),
    pytest.param("unet", {"in_channels": 9}, "in_channels is 9", id="inputs"),
    pytest.param("unet", {"attention_head_dim": [[8]] * 4}, "attention_head_dim", id="nested"),
    pytest.param("unet", {"layers_per_block": 10**9}, "layers_per_block", id="many layers"),
    pytest.param("unet", {"sample_size": "x"}, "sample_size is x", id="size"),
    pytest.param("unet", {"use_linear_projection": True}, "proj_in.weight", id="projection"),
    pytest.param("vae", {"latent_channels": 16}, "latent_channels is 16", id="latents"),
    pytest.param("vae", {"block_out_channels": [8, 8, 8, 8]}, "it should be", id="VAE's channels"),
]


@pytest.mark.parametrize(("component", "change", "message"), CONTRADICTIONS)
def test_config_that_its_tensors_contradict_is_refused(
    published: Callable[[str], Configs], component: str, change: dict[str, Any], message: str
) -> None:
    """The message names the component, the field and the expected value."""
    configs = published("sd15")
    tensors = {name: shapes(name, config) for name, config in configs.items()}
    configs[component].update(change)
    with pytest.raises(LoaderError) as caught:
        checked("sd15", configs, tensors)
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert caught.value.message.startswith(component)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("text_encoder", "text_model.embeddings.token_embedding.weight"),
        ("text_encoder_2", "text_projection.weight"),
        ("unet", "conv_in.weight"),
        ("unet", "up_blocks.1.resnets.2.conv1.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_truncated_tensor_is_refused(
    published: Callable[[str], Configs], component: str, name: str
) -> None:
    """A tensor of another shape than its config implies is refused."""
    configs = published("sdxl")
    tensors = {part: shapes(part, config) for part, config in configs.items()}
    whole = tensors[component][name]
    tensors[component][name] = Tensor(-1, whole.dtype, (1, *whole.shape[1:]), 0)
    with pytest.raises(LoaderError) as caught:
        checked("sdxl", configs, tensors)
    assert caught.value.reason is Reason.CONVERSION_FAILED


def test_sdxl_unet_needs_both_text_encoders(published: Callable[[str], Configs]) -> None:
    """If a text encoder is missing, the message names the two encoders."""
    configs = published("sdxl")
    del configs["text_encoder"]
    tensors = {name: shapes(name, config) for name, config in configs.items()}
    with pytest.raises(LoaderError, match=r"text_encoder\+text_encoder_2"):
        checked("sdxl", configs, tensors)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "Infinity", "NaN"])
def test_non_finite_numbers_are_refused(number: str) -> None:
    """NaN and Infinity in a JSON file are refused: other JSON parsers cannot read these words."""
    with pytest.raises(LoaderError, match="not valid JSON"):
        parse_json(f'{{"sample_size": {number}}}'.encode(), "unet/config.json")
    with pytest.raises(ValueError, match="JSON"):
        json_file("x.json", math.inf)
