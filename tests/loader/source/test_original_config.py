"""spec.originalConfig: the loader reads a few keys of a YAML file and validates each."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from devkit.fakefiles import FileServer
from devkit.ldm_layouts import TINY_SD2, sd2_shapes
from sd_api.choices import PredictionType
from sd_api.reasons import Reason
from sd_loader.convert.conversion import refuse_impossible
from sd_loader.convert.plan.original import (
    ORIGINAL_MAX_BYTES,
    OriginalConfig,
    parse_original,
    read_original,
)
from sd_loader.convert.run import convert
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import Retries
from sd_loader.request import conversion_of
from sd_loader.settings import Settings
from sd_loader.source.small_file import fetch_small_file
from tests.support.loader.fetches import fetch
from tests.support.models.checkpoints import random_tensors, save_safetensors
from tests.support.models.conversions import conversion, load_request

# These texts are taken from the models' repositories.
V2_INFERENCE_V = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    image_size: 96
    channels: 4
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: True
        image_size: 32 # unused
        in_channels: 4
        model_channels: 320
        num_head_channels: 64 # need to fix for flash-attn
        use_linear_in_transformer: True
        context_dim: 1024
"""
V1_INFERENCE = """
model:
  params:
    linear_start: 0.00085
    linear_end: .012
    timesteps: 1000
    image_size: 64
    unet_config:
      params:
        in_channels: 4
        model_channels: 320
        num_heads: 8
        num_head_channels: -1
        context_dim: 768
"""
V2_TINY_BASE = """
model:
  params:
    image_size: 48
    unet_config:
      params:
        in_channels: 4
        model_channels: 32
        num_head_channels: 64
        context_dim: 64
"""
SD_XL_BASE = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    denoiser_config:
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}
    network_config:
      params:
        in_channels: 4
        model_channels: 320
        num_head_channels: 64
        transformer_depth: [1, 2, 10]
        context_dim: 2048
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            V2_INFERENCE_V,
            OriginalConfig(
                prediction_type=PredictionType.V_PREDICTION,
                image_size=96,
                head_channels=64,
                beta_start=0.00085,
                beta_end=0.012,
                timesteps=1000,
                in_channels=4,
                model_channels=320,
                context_dim=1024,
            ),
            id="SD 2.1",
        ),
        pytest.param(
            V1_INFERENCE,
            OriginalConfig(
                prediction_type=PredictionType.EPSILON,
                image_size=64,
                heads=8,
                beta_start=0.00085,
                beta_end=0.012,
                timesteps=1000,
                in_channels=4,
                model_channels=320,
                context_dim=768,
            ),
            id="SD 1",
        ),
        pytest.param(
            SD_XL_BASE.format(scaling="EpsScaling"),
            OriginalConfig(
                prediction_type=PredictionType.EPSILON,
                head_channels=64,
                in_channels=4,
                model_channels=320,
                context_dim=2048,
            ),
            id="SDXL",
        ),
        pytest.param(
            "model: {params: {network_config: {params: {}}}}", OriginalConfig(), id="no known keys"
        ),
    ],
)
def test_known_keys_are_read(text, expected):
    """Other keys of the config are ignored."""
    assert parse_original(text.encode()) == expected


def in_params(text):
    """Put these lines under model.params."""
    return "model:\n  params:\n" + textwrap.indent(text, "    ")


REFUSED = [
    pytest.param("", "no model.params", id="nothing"),
    pytest.param("model: 1", "no model.params", id="another document"),
    pytest.param("<html><body>Sign in</body></html>", "no model.params", id="a page"),
    pytest.param("model: [", "not valid YAML", id="not YAML"),
    pytest.param("a: 1\n---\nb: 2", "not valid YAML", id="two documents"),
    pytest.param("[" * 30_000, "not valid YAML", id="nested"),
    pytest.param("? [a]\n: b", "not valid YAML", id="a key that is a list"),
    pytest.param("a: &a [*a]", "not valid YAML", id="a loop"),
    pytest.param(
        "#" * (ORIGINAL_MAX_BYTES + 1), f"larger than {ORIGINAL_MAX_BYTES} bytes", id="too large"
    ),
    pytest.param(in_params("parameterization: x0"), "parameterization is x0", id="prediction"),
    pytest.param(in_params("parameterization: [v]"), "parameterization is", id="a list"),
    pytest.param(in_params("image_size: 64.5"), "image_size is 64.5", id="not a whole number"),
    pytest.param(in_params("image_size: 0"), "image_size is 0", id="zero size"),
    pytest.param(in_params("image_size: {a: b}"), "image_size is {", id="a mapping"),
    pytest.param(in_params("timesteps: 99999999"), "timesteps is 99999999", id="too many"),
    pytest.param(
        in_params("timesteps: 4097"),
        "timesteps is 4097; it should be at most 4,096",
        id="more than a scheduler has",
    ),
    pytest.param(
        in_params("image_size: 65537"),
        "image_size is 65537; it should be at most 65,536",
        id="too large",
    ),
    pytest.param(in_params("linear_start: .nan"), "linear_start is .nan", id="not a number"),
    pytest.param(in_params("linear_end: 1e999"), "linear_end is 1e999", id="infinite"),
    pytest.param(
        SD_XL_BASE.format(scaling="EDMScaling"), "known are EpsScaling", id="another scaling"
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_invalid_config_is_refused(text, message):
    """The message begins with the field's name and describes the problem."""
    with pytest.raises(LoaderError) as caught:
        parse_original(text.encode())
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message.startswith("spec.originalConfig: ")
    assert message in caught.value.message


def test_yaml_tag_creates_no_object():
    """A tagged value is read as plain data and then refused."""
    text = in_params('parameterization: !!python/object/apply:os.system ["v"]')
    with pytest.raises(LoaderError, match="parameterization is"):
        parse_original(text.encode())


WORDS = st.sampled_from(
    ["model:", "params:", "unet_config:", "timesteps:", "&a", "*a", "<<:", "\n  ", "-", "!!", "1"]
)


@given(st.binary(max_size=200) | st.lists(WORDS, max_size=40).map(lambda w: " ".join(w).encode()))
@example(b"\xff\xfe\x00")
def test_any_bytes_are_parsed_or_refused(content):
    """An error message is short and printable."""
    message = ""
    try:
        parse_original(content)
    except LoaderError as error:
        message = error.message
    assert message.isprintable()
    assert len(message) < 300


@pytest.fixture
def server():
    """A file server on loopback."""
    with FileServer() as server:
        yield server


@pytest.fixture
def fetching(tmp_path):
    """A function that fetches a config. Its extra arguments are fields of the settings."""

    def fetch_config(url, *, request=None, allow_local=False, **fields):
        loader_settings = Settings(
            allowed_hosts=frozenset({"127.0.0.1"}),
            credentials_dir=tmp_path / "secret",
            **fields,
        )
        client = HttpClient(
            loader_settings,
            has_token=request is not None and request.credentials,
            retries=Retries(delays=()),
        )
        path = tmp_path / "config"
        fetch_small_file(
            url, "spec.originalConfig", ORIGINAL_MAX_BYTES, client, path, allow_local=allow_local
        )
        read_original(path)
        return path

    return fetch_config


def test_config_is_downloaded_and_checked(server, fetching):
    """A valid config is kept unchanged, and a page in its place is refused."""
    url = server.serve_file("/v2-inference-v.yaml", V2_INFERENCE_V.encode())
    assert fetching(url).read_text() == V2_INFERENCE_V
    with pytest.raises(LoaderError, match=r"originalConfig: it has no model\.params"):
        fetching(server.serve_file("/page", b"<html></html>"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param("v2-inference-v.yaml", Reason.INVALID_SPEC, id="a path"),
        pytest.param("http://10.0.0.1/x.yaml", Reason.ADDRESS_REFUSED, id="a private address"),
        pytest.param("https://[::1]/x.yaml", Reason.ADDRESS_REFUSED, id="this host"),
    ],
)
def test_config_url_outside_the_policy_is_refused(fetching, url, reason):
    """The config must obey the same address rules as the source."""
    with pytest.raises(LoaderError, match=r"^spec\.originalConfig: ") as caught:
        fetching(url)
    assert caught.value.reason is reason


@pytest.mark.parametrize("is_local", [False, True], ids=["a link", "a path"])
def test_too_large_config_is_refused(tmp_path, server, fetching, is_local):
    """The limit is ORIGINAL_MAX_BYTES."""
    content = b"#" * (ORIGINAL_MAX_BYTES + 1)
    (tmp_path / "large.yaml").write_bytes(content)
    url = str(tmp_path / "large.yaml") if is_local else server.serve_file("/large.yaml", content)
    with pytest.raises(LoaderError, match=r"spec\.originalConfig: .* limit is") as caught:
        fetching(url, allow_local=is_local)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(("host", "sent"), [("own", True), ("huggingface.co", False)])
def test_token_is_sent_only_to_its_host(tmp_path, server, fetching, host, sent):
    """A config on another host is requested without the token."""
    url = server.serve_file("/x.yaml", V1_INFERENCE.encode())
    own = url.split("/")[2]
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "token").write_text("s3cret")
    (folder / "host").write_text(own if host == "own" else host)
    fetching(url, request=load_request(credentials=True))
    (received,) = [it for it in server.requests if it.path == "/x.yaml"]
    assert ("authorization" in received.headers) is sent


def test_conversion_uses_the_original_config(tmp_path, server):
    """The prediction type and the image size of the SD 2 model come from the config."""
    model = save_safetensors(
        tmp_path / "model.safetensors", random_tensors(sd2_shapes(TINY_SD2), torch.float16)
    )
    url = server.serve_file("/v2.yaml", V2_TINY_BASE.encode())
    request = load_request(url=str(model), original_config=url)
    into, out = tmp_path / "source", tmp_path / "out"
    into.mkdir()
    out.mkdir()
    loader_settings = Settings(allowed_hosts=frozenset({"127.0.0.1"}))

    fetched = fetch(request, loader_settings, into, lambda _progress: None, allow_local=True)
    converted = convert(fetched, into, conversion_of(request), out, lambda _progress: None)

    assert fetched.original_config == "config"
    assert converted.prediction_type == "epsilon"
    assert converted.warnings == ()
    unet = json.loads((out / "unet/config.json").read_text())
    assert unet["sample_size"] == 48


@pytest.mark.parametrize("model_type", ["huggingface"])
def test_original_config_is_refused_for_a_repo(model_type):
    """A repo has its own configs."""
    with pytest.raises(LoaderError, match=r"spec\.originalConfig is for checkpoints") as caught:
        refuse_impossible(conversion(model_type=model_type, original_config="https://x.y/z"))
    assert caught.value.reason is Reason.INVALID_SPEC


def test_load_accepts_a_local_config(tmp_path, fetching):
    """A missing local file has the reason SourceNotFound."""
    path = Path(tmp_path / "mine.yaml")
    path.write_text(V1_INFERENCE)
    assert fetching(str(path), allow_local=True).name == "config"
    with pytest.raises(LoaderError, match="cannot be read") as caught:
        fetching(str(tmp_path / "no.yaml"), allow_local=True)
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND
