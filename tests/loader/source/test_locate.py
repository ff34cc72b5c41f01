"""Tests of how a url is resolved to a source."""

from __future__ import annotations

from contextlib import suppress

import pytest

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.sources import HubFile, HubRepo, Link
from sd_api.spec import Spec
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source.locate import LocalFile, locate, naming_both_readings
from sd_loader.source.ref import SourceRef
from tests.support.modelurls import MEANT, OTHER_TYPES, REFUSED, TRAINED

HUB = "https://huggingface.co"
MIRROR = Settings(
    hub_endpoint="https://mirror.example/hub",
    trained_url_template="https://trained.example/models/{id}/download",
)
CKPT, REPO, TRAINED_TYPE = ModelType.CUSTOM_CKPT, ModelType.HUGGINGFACE, ModelType.API_TRAINED
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
                ("https://mirror.example/hub", "blob", "?download=true", TRAINED_TYPE),
            )
        ),
        pytest.param(
            "http://huggingface.co/o/n/resolve/main/x",
            CKPT,
            HubFile("o/n", "main", "x"),
            id="the Hub's link over plain http",
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
                ("http://example.com/o/n/resolve/main/x", "plain http"),
                ("https://me:pw@huggingface.co/o/n/resolve/main/x", "userinfo"),
                (f"{HUB}/datasets/o/n/resolve/main/x", "a dataset"),
                ("https://mirror.example/o/n/resolve/main/x", "beside the mirror"),
            )
        ),
        pytest.param(f"{HUB}/o/n/resolve/main/", CKPT, HubRepo("o/n", "main"), id="no file"),
        pytest.param(
            "abc-123",
            TRAINED_TYPE,
            Link("https://trained.example/models/abc-123/download"),
            id="id",
        ),
        pytest.param("https://t.example/x", TRAINED_TYPE, Link("https://t.example/x"), id="a link"),
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
        ("/models/x.zip", TRAINED_TYPE, LocalFile("/models/x.zip")),
        ("abc", TRAINED_TYPE, Link("https://trained.example/models/abc/download")),
    ],
)
def test_local_path_is_accepted_at_the_command_line(url, model_type, expected):
    """The form of the text decides between a local file and a repo."""
    assert locate(ref(url, model_type), MIRROR, allow_local=True) == expected


@pytest.mark.parametrize("url", ["sd.webui/models/x.safetensors", "my.models/sd/v1-5.ckpt", "a/b"])
def test_existing_file_is_meant_rather_than_a_link_or_a_repo(url, tmp_path, monkeypatch):
    """A folder may be named like a host, or like the owner of a repo."""
    path = tmp_path / url
    path.parent.mkdir(parents=True)
    path.touch()
    without = locate(ref(url, LORA), MIRROR, allow_local=True)
    assert not isinstance(without, LocalFile)
    monkeypatch.chdir(tmp_path)
    assert locate(ref(url, LORA), MIRROR, allow_local=True) == LocalFile(url)
    assert locate(ref(url, LORA), MIRROR) == without
    with suppress(LoaderError):
        assert locate(ref(url, REPO), MIRROR, allow_local=True) == without


@pytest.mark.parametrize("url", ["a.bc/c/" + "x" * 300, "a.bc/c/" + "d/" * 4000 + "x"])
def test_path_that_no_file_can_have_is_a_link(url):
    """The system rejects a path that is too long, so the loader takes it for a link."""
    assert locate(ref(url, LORA), MIRROR, allow_local=True) == Link(f"https://{url}")


@pytest.mark.parametrize(
    ("url", "allow_local", "reason", "adds"),
    [
        ("sd.webui/models/x.ckpt", True, Reason.SOURCE_UNREACHABLE, True),
        ("sd.webui/models/x.ckpt", True, Reason.NOT_A_MODEL, False),
        ("sd.webui/models/x.ckpt", False, Reason.SOURCE_UNREACHABLE, False),
        ("https://sd.webui/models/x.ckpt", True, Reason.SOURCE_UNREACHABLE, False),
        ("org/name", True, Reason.SOURCE_UNREACHABLE, False),
    ],
)
def test_failed_link_without_a_scheme_names_the_missing_file(url, allow_local, reason, adds):
    """At the command line, the person may have meant a path."""
    source = ref(url, LORA)
    place = locate(source, MIRROR, allow_local=allow_local)
    with (
        pytest.raises(LoaderError) as caught,
        naming_both_readings(source, place, allow_local=allow_local),
    ):
        raise LoaderError(reason, "it failed")
    assert caught.value.reason is reason
    words = f"; {url} was taken for a link, because it is not a file on this machine"
    assert caught.value.message == "it failed" + (words if adds else "")


@pytest.mark.parametrize(
    ("url", "model_type", "words"),
    [
        ("/models/x.ckpt", CKPT, "must be a Hugging Face repo id (ORG/NAME) or an http(s) link"),
        ("x.ckpt", CKPT, "must be a Hugging Face repo id with its owner (ORG/NAME)"),
        ("name", LORA, "must be a Hugging Face repo id with its owner (ORG/NAME)"),
        ("name", REPO, "must be a Hugging Face repo id with its owner (ORG/NAME)"),
        (f"{HUB}/org/name/tree/main/x", REPO, "is a folder of a repo, or a branch with a slash"),
        ("https://elsewhere.example/x", REPO, "must be a Hugging Face repo id (ORG/NAME), a repo"),
        ("org/name", TRAINED_TYPE, "must be a trained model's id"),
        ("../x", TRAINED_TYPE, "must be a trained model's id"),
        *((url, kind, words) for url, words in REFUSED.items() for kind in (CKPT, REPO)),
        *((url, TRAINED_TYPE, words) for url, words in TRAINED.items() if isinstance(words, str)),
    ],
)
def test_url_without_a_source_is_refused(url, model_type, words):
    """A local path is refused, too: an operator's request must not read the node's files."""
    with pytest.raises(LoaderError) as caught:
        locate(ref(url, model_type), MIRROR)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message.startswith(f"spec.vae.url {words}")


@pytest.mark.parametrize("url", MEANT)
def test_loader_reads_every_form_of_a_url(url):
    """The command line reads them like a request of the operator."""
    for settings in (Settings(), MIRROR):
        assert locate(ref(url, LORA), settings) == MEANT[url]
        assert locate(ref(url, LORA), settings, allow_local=True) == MEANT[url]


@pytest.mark.parametrize("url", REFUSED)
def test_command_line_refuses_the_same_urls(url):
    """Only a url that may be a path is not refused: it is taken for a local file."""
    for kind in OTHER_TYPES:
        source = ref(url, kind)
        if REFUSED[url].startswith("must be") and kind is not REPO and "://" not in url:
            assert locate(source, MIRROR, allow_local=True) == LocalFile(url)
            continue
        with pytest.raises(LoaderError) as caught:
            locate(source, MIRROR, allow_local=True)
        assert caught.value.message.startswith(f"spec.vae.url {REFUSED[url]}")


@pytest.mark.parametrize("model_type", ModelType)
@pytest.mark.parametrize("url", [f"{HUB}/org/name", f"{HUB}/org/name/"])
def test_page_of_a_repo_means_the_repo(url, model_type):
    """The endpoint may be the Hub itself or a mirror."""
    for settings in (Settings(), MIRROR):
        assert locate(ref(url, model_type), settings) == HubRepo("org/name")


def test_url_and_git_revision_must_agree():
    """The message names both."""
    agreed = SourceRef("org/name@v1", "spec.url", LORA, git_revision="v1")
    assert locate(agreed, Settings()) == HubRepo("org/name", "v1")
    words = "spec.url links to v1, but spec.gitRevision is v2; remove one of them"
    with pytest.raises(LoaderError, match=f"^{words}$") as caught:
        locate(SourceRef("org/name@v1", "spec.url", LORA, git_revision="v2"), Settings())
    assert caught.value.reason is Reason.INVALID_SPEC


def test_trained_model_id_needs_a_url_template():
    """The message names the setting."""
    with pytest.raises(LoaderError, match="SD_LOADER_TRAINED_URL_TEMPLATE") as caught:
        locate(ref("abc", TRAINED_TYPE), Settings())
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
        ("https://huggingface.co/org/name/tree/main/unet", None),
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
