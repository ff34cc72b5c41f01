"""Tests of how a url is resolved to a source."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_api.spec import ModelType, Spec
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source.locate import HubFile, HubRepo, Link, LocalFile, locate
from sd_loader.source.ref import SourceRef

HUB = "https://huggingface.co"
MIRROR = Settings(
    hub_endpoint="https://mirror.example/hub",
    trained_url_template="https://trained.example/models/{id}/download",
)
CKPT, REPO, TRAINED = ModelType.CUSTOM_CKPT, ModelType.HUGGINGFACE, ModelType.API_TRAINED
LORA = ModelType.LORA


def ref(url: str, model_type: ModelType) -> SourceRef:
    """A source that the spec names."""
    return SourceRef(url, "spec.vae.url", model_type)


@pytest.mark.parametrize(
    ("url", "model_type", "expected"),
    [
        pytest.param("org/name", REPO, HubRepo("org/name"), id="a repo"),
        pytest.param("org/name", LORA, HubRepo("org/name"), id="a repo of a LoRA"),
        pytest.param("org/name", CKPT, HubRepo("org/name"), id="a repo of a checkpoint"),
        pytest.param(f"{HUB}/org/name", CKPT, HubRepo("org/name"), id="a repo's page"),
        pytest.param(
            "https://mirror.example/hub/org/name", REPO, HubRepo("org/name"), id="mirror's page"
        ),
        pytest.param(
            "https://mirror.example/hub/files/x",
            CKPT,
            Link("https://mirror.example/hub/files/x"),
            id="a mirror's file in a folder",
        ),
        *(
            pytest.param(
                f"{base}/org/name/{word}/main/a/b.safetensors{query}",
                model_type,
                HubFile("org/name", "main", "a/b.safetensors"),
                id=f"{word} of {base} for {model_type}",
            )
            for base, word, query, model_type in (
                (HUB, "resolve", "?download=true", CKPT),
                (HUB, "blob", "", CKPT),
                (HUB, "resolve", "", REPO),
                (HUB, "blob", "#L1", LORA),
                ("https://hf.co", "resolve", "", ModelType.VAE),
                ("https://www.huggingface.co", "resolve", "", ModelType.CONTROLNET),
                ("https://mirror.example/hub", "resolve", "", ModelType.EMBEDDINGS),
                ("https://mirror.example/hub", "blob", "?download=true", TRAINED),
            )
        ),
        pytest.param(
            f"{HUB}/o/n/resolve/refs/pr/1/x.ckpt",
            CKPT,
            HubFile("o/n", "refs/pr/1", "x.ckpt"),
            id="a pull request",
        ),
        pytest.param(
            f"{HUB}/o/n/resolve/refs%2Fpr%2F1/x.ckpt",
            CKPT,
            HubFile("o/n", "refs/pr/1", "x.ckpt"),
            id="a pull request in escapes",
        ),
        pytest.param(
            f"{HUB}/o/n/resolve/my%2Fbranch/x%20y.ckpt",
            CKPT,
            HubFile("o/n", "my/branch", "x y.ckpt"),
            id="escapes",
        ),
        *(
            pytest.param(url, CKPT, Link(url), id=what)
            for url, what in (
                ("https://civitai.com/api/download/models/1", "another site"),
                (f"{HUB}.evil.example/o/n/resolve/main/x", "a host that begins like the Hub's"),
                ("http://huggingface.co/o/n/resolve/main/x", "plain http"),
                ("https://me:pw@huggingface.co/o/n/resolve/main/x", "userinfo"),
                (f"{HUB}/datasets/o/n/resolve/main/x", "a dataset"),
                (f"{HUB}/o/n/resolve/main/", "no file"),
                (f"{HUB}/o/n/tree/main/x", "a folder"),
                ("https://mirror.example/o/n/resolve/main/x", "beside the mirror"),
            )
        ),
        pytest.param(
            "abc-123", TRAINED, Link("https://trained.example/models/abc-123/download"), id="id"
        ),
        pytest.param("https://t.example/x", TRAINED, Link("https://t.example/x"), id="a link"),
    ],
)
def test_url_means_one_source(url, model_type, expected):
    """A link to a file on the Hub means that file for every model type."""
    assert locate(ref(url, model_type), MIRROR) == expected


@pytest.mark.parametrize(
    ("url", "model_type", "expected"),
    [
        ("/models/x.ckpt", CKPT, LocalFile("/models/x.ckpt")),
        ("x.ckpt", CKPT, LocalFile("x.ckpt")),
        ("models/x.ckpt", LORA, LocalFile("models/x.ckpt")),
        ("org/name", LORA, HubRepo("org/name")),
        ("org/name.pt", REPO, HubRepo("org/name.pt")),
        ("/models/x.zip", TRAINED, LocalFile("/models/x.zip")),
        ("abc", TRAINED, Link("https://trained.example/models/abc/download")),
    ],
)
def test_local_path_is_accepted_at_the_command_line(url, model_type, expected):
    """The form of the text decides between a local file and a repo."""
    assert locate(ref(url, model_type), MIRROR, allow_local=True) == expected


@pytest.mark.parametrize(
    ("url", "model_type", "words"),
    [
        ("/models/x.ckpt", CKPT, "neither a repo id"),
        ("x.ckpt", CKPT, "neither a repo id"),
        ("name", LORA, "neither a repo id"),
        ("name", REPO, "neither a Hugging Face repo id"),
        (f"{HUB}/org/name/tree/main", REPO, "neither a Hugging Face repo id"),
        ("https://elsewhere.example/x", REPO, "neither a Hugging Face repo id"),
        ("org/name", TRAINED, "neither a trained model's id"),
        ("../x", TRAINED, "neither a trained model's id"),
    ],
)
def test_url_without_a_source_is_refused(url, model_type, words):
    """A request from the operator must not read the node's files."""
    with pytest.raises(LoaderError, match=words) as caught:
        locate(ref(url, model_type), MIRROR)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message.startswith("spec.vae.url: ")


def test_trained_model_id_needs_a_url_template():
    """The message names the setting."""
    with pytest.raises(LoaderError, match="SD_LOADER_TRAINED_URL_TEMPLATE") as caught:
        locate(ref("abc", TRAINED), Settings())
    assert caught.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    "template", ["https://{id}/x", "https://{id}.example/x", "ftp://x/{id}", "https://x/y", "{id}"]
)
def test_invalid_url_template_is_refused(template):
    """The id must appear in the path and must not choose the host."""
    with pytest.raises(LoaderError, match="SD_LOADER_TRAINED_URL_TEMPLATE"):
        Settings.from_env({"SD_LOADER_TRAINED_URL_TEMPLATE": template})


def test_host_of_the_url_template_is_allowed():
    """The administrator chose the host, so plain http and private addresses are allowed."""
    settings = Settings.from_env({"SD_LOADER_TRAINED_URL_TEMPLATE": "http://trainer:8000/{id}"})
    assert settings.guard().allows("trainer", 8000)


@pytest.mark.parametrize("word", ["resolve", "blob"])
def test_link_to_a_hub_file_is_a_checkpoint_by_default(word):
    """Only a link to a repo's page means a repo."""
    assert Spec(url=f"{HUB}/o/n/{word}/main/x.ckpt").effective_model_type() is CKPT


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("org/name", "org/name"),
        ("https://huggingface.co/org/name", "org/name"),
        ("https://www.huggingface.co/org/name/", "org/name"),
        ("https://hf.co/org/name", "org/name"),
        ("https://mirror.example/hub/org/name", "org/name"),
        ("https://huggingface.co/org/name/tree/main", None),
        ("https://huggingface.co/org", None),
        ("https://elsewhere.example/org/name", None),
        ("https://huggingface.co.evil.example/org/name", None),
        ("name", None),
        ("../../etc", None),
        ("org/name/more", None),
    ],
)
def test_repo_is_named_by_its_id_or_page(url, expected):
    """The page may be that of the Hub or of the configured mirror."""
    if expected is None:
        with pytest.raises(LoaderError) as caught:
            locate(ref(url, REPO), MIRROR)
        assert caught.value.reason is Reason.INVALID_SPEC
    else:
        assert locate(ref(url, REPO), MIRROR) == HubRepo(expected)
