"""A url is read in every usual form, or refused with the form to give instead."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sd_api.choices import ModelType
from sd_api.crd import RULES
from sd_api.loadhash import load_hash
from sd_api.sources import (
    CivitaiModel,
    FileChoice,
    HubFile,
    HubRepo,
    Link,
    Meaning,
    TrainedId,
    Unreadable,
    civitai_download,
    read_source,
)
from sd_api.spec import Spec
from sd_api.url_forms import HUB_REPO_PATTERN
from tests.support.crdrules import broken
from tests.support.modelurls import (
    HUB,
    MEANT,
    NOT_ON_THE_HUB,
    OTHER_TYPES,
    REFUSED,
    REPO,
    TRAINED,
)

CKPT, LORA = ModelType.CUSTOM_CKPT, ModelType.LORA
WHOLE, API_TRAINED = ModelType.HUGGINGFACE, ModelType.API_TRAINED
MIRROR = "https://mirror.example/hub"


@pytest.mark.parametrize("url", MEANT)
def test_a_url_has_one_meaning(url: str) -> None:
    """A url is read as the meaning in the table MEANT; for the Hub, with any model type."""
    for model_type in (ModelType.CUSTOM_CKPT, ModelType.LORA, ModelType.VAE):
        assert read_source(url, model_type) == MEANT[url]
    if not isinstance(MEANT[url], Link | CivitaiModel):
        assert read_source(url, WHOLE) == MEANT[url]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_of_another_form_is_refused_with_its_own_message(url: str) -> None:
    """The words say what is wrong and which form is right, for every model type."""
    for model_type in OTHER_TYPES:
        meaning = read_source(url, model_type)
        assert isinstance(meaning, Unreadable)
        assert meaning.words.startswith(REFUSED[url])


@pytest.mark.parametrize("url", TRAINED)
def test_a_trained_model_has_an_id_or_a_link(url: str) -> None:
    """With modelType api_trained, a bare id or a link is read; a repo id is refused."""
    meaning, expected = read_source(url, API_TRAINED), TRAINED[url]
    if isinstance(expected, str):
        assert isinstance(meaning, Unreadable)
        assert meaning.words.startswith(expected)
    else:
        assert meaning == expected


@pytest.mark.parametrize(
    "url", [url for url, place in MEANT.items() if isinstance(place, Link | CivitaiModel)]
)
def test_an_ordinary_link_is_not_a_whole_repo(url: str) -> None:
    """With modelType huggingface, a link to another host than the Hub or its mirror is refused."""
    meaning = read_source(url, WHOLE)
    assert isinstance(meaning, Unreadable)
    assert meaning.words.startswith(NOT_ON_THE_HUB)


@pytest.mark.parametrize("model_type", ModelType)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_repos_page_means_the_repo_for_every_model_type(
    model_type: ModelType, slash: str
) -> None:
    """The page may be given with the default endpoint and with that of a mirror."""
    for endpoint in (HUB, f"{HUB}/", MIRROR):
        assert read_source(f"{HUB}/org/name{slash}", model_type, None, endpoint) == REPO


@pytest.mark.parametrize(
    ("url", "model_type", "expected"),
    [
        (f"{MIRROR}/org/name", WHOLE, REPO),
        (f"{MIRROR}/org/name/tree/v2", WHOLE, HubRepo("org/name", "v2")),
        (f"{MIRROR}/org/name", CKPT, Link(f"{MIRROR}/org/name")),
        (f"{MIRROR}/org/name/resolve/main/x", LORA, HubFile("org/name", "main", "x")),
        (f"{MIRROR}.evil.example/org/name/resolve/main/x", LORA, Link),
        ("https://mirror.example/org/name/resolve/main/x", LORA, Link),
    ],
)
def test_a_mirrors_url_is_read_like_the_hubs(
    url: str, model_type: ModelType, expected: Meaning | type[Link]
) -> None:
    """A path of two words may be a file of the mirror, unless the type asks for a repo."""
    meaning = read_source(url, model_type, None, MIRROR)
    assert meaning == (Link(url) if expected is Link else expected)


@pytest.mark.parametrize(
    ("url", "git_revision", "expected"),
    [
        ("org/name", "v2", HubRepo("org/name", "v2")),
        ("org/name@v2", "v2", HubRepo("org/name", "v2")),
        ("hf://org/name/x.ckpt", "v2", HubFile("org/name", "v2", "x.ckpt")),
        (f"{HUB}/org/name/tree/my%2Fbranch", "my/branch", HubRepo("org/name", "my/branch")),
        ("org/name@v1", "v2", "links to v1, but spec.gitRevision is v2; remove one of them"),
        (f"{HUB}/org/name/blob/main/x", "v2", "links to main, but spec.gitRevision is v2"),
        (f"{HUB}/org/name/tree/a%0Ab", "v2", "links to another revision, but spec.gitRevision"),
        ("https://example.com/x", "v2", "is not a repo of the Hub, and spec.gitRevision is only"),
        ("civitai:1@2", "v2", "is not a repo of the Hub, and spec.gitRevision is only"),
    ],
)
def test_url_and_git_revision_must_agree(
    url: str, git_revision: str, expected: Meaning | str
) -> None:
    """A gitRevision is refused for anything but a Hub repo, and if the url contradicts it."""
    meaning = read_source(url, CKPT, git_revision)
    if isinstance(expected, str):
        assert isinstance(meaning, Unreadable)
        assert meaning.words.startswith(expected)
    else:
        assert meaning == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://civitai.com/api/download/models/2", CivitaiModel(None, 2)),
        ("https://civitai.red/api/download/models/2/?token=x", CivitaiModel(None, 2)),
        (
            "https://civitai.com/api/download/models/2?type=Model&format=SafeTensor&fileId=3",
            CivitaiModel(None, 2, FileChoice(file_id=3, type="Model", format="SafeTensor")),
        ),
        (f"{MIRROR}/api/download/models/2", CivitaiModel(None, 2)),
        ("https://civitai.com.evil.example/api/download/models/2", None),
        ("https://civitai.com/api/download/models/x", None),
        ("https://civitai.com/models/2", None),
        (f"{MIRROR}x/api/download/models/2", None),
    ],
)
def test_a_download_link_of_civitai_names_a_version(
    url: str, expected: CivitaiModel | None
) -> None:
    """The version of a download link is recognised, so that it can be looked up in the API."""
    assert civitai_download(url, MIRROR) == expected


@pytest.mark.parametrize("url", [*MEANT, *TRAINED, *REFUSED])
def test_the_default_model_type_fits_the_meaning(url: str) -> None:
    """The default model type is huggingface for a whole repo, otherwise custom_ckpt."""
    is_repo = isinstance(read_source(url, CKPT), HubRepo)
    if not isinstance(read_source(url, CKPT), Unreadable):
        assert (Spec(url=url).effective_model_type() is WHOLE) == is_repo


URL_RULES = [rule for rule in RULES if rule[0] == ".spec.url"]


def rejections(url: str, model_type: ModelType | None) -> list[str]:
    """Return the messages with which the CRD's rules reject a url."""
    return broken(URL_RULES, {"url": url} | ({"modelType": model_type.value} if model_type else {}))


def expected_rejections(url: str, model_type: ModelType | None) -> list[str]:
    """Return the reader's refusal, except NOT_ON_THE_HUB: the CRD does not know the mirrors."""
    meaning = read_source(url, model_type or Spec(url=url).effective_model_type())
    if isinstance(meaning, Unreadable) and not meaning.words.startswith(NOT_ON_THE_HUB):
        return [f"spec.url {meaning.words}"]
    return []


def kind_of(url: str) -> object:
    """Return the type of a url's meaning, or the words that refuse it."""
    meaning = (MEANT | REFUSED | TRAINED)[url]
    return meaning if isinstance(meaning, str) else type(meaning)


def one_of_each_kind() -> list[Any]:
    """Return the urls as rows; the usual run tries the first of each kind."""
    rows, kinds = [], set()
    for url in dict.fromkeys(url for url in [*MEANT, *REFUSED, *TRAINED] if url):
        rows.append(pytest.param(url, marks=pytest.mark.slow if kind_of(url) in kinds else ()))
        kinds.add(kind_of(url))
    return rows


@pytest.mark.parametrize("url", one_of_each_kind())
def test_the_crd_rejects_what_the_reader_refuses_in_the_same_words(url: str) -> None:
    """The CRD's rules reject the urls that `read_source` refuses, with the same messages.

    The rules are made from its patterns, but an API server evaluates them with RE2.
    """
    for model_type in (None, API_TRAINED):
        assert rejections(url, model_type) == expected_rejections(url, model_type)


@pytest.mark.slow
@pytest.mark.parametrize("url", [url for url in [*MEANT, *REFUSED, *TRAINED] if url])
def test_the_crd_rejects_the_same_urls_with_and_without_a_model_type(url: str) -> None:
    """An explicit model type other than api_trained does not change which urls are rejected."""
    for model_type in (CKPT, WHOLE):
        assert rejections(url, model_type) == expected_rejections(url, model_type)


PIECES = st.sampled_from(
    [
        *("http", "https", "hf", "s3", "git+ssh", "://", ":", "//", "/", "@", "?", "#", "%2F", "."),
        *("huggingface.co", "hf.co", "www.", "civitai.com", "example.com", "127.0.0.1", ":443"),
        *("org", "name", "datasets", "models", "tree", "resolve", "blob", "main", "refs", "pr"),
        *("civitai:", "1", "+2", "modelVersionId=", "modelscope.cn", "github.com", "api", ".html"),
        *("air:", "git@", ".git", "x.ckpt", "-", "--", "..", "_", "\n", " ", "\xa0", "é", "\0"),
    ]
)
URLS = (
    st.lists(PIECES, max_size=9).map("".join)
    | st.sampled_from([*MEANT, *REFUSED, *TRAINED])
    | st.text(max_size=40)
)
TYPES = st.sampled_from(ModelType)


def spelling(meaning: Meaning) -> str:
    """Return the plainest url with this meaning."""
    match meaning:
        case HubRepo(repo_id, None):
            return repo_id
        case HubRepo(repo_id, revision):
            return f"hf://{repo_id}@{quote(revision or '', safe='')}"
        case HubFile(repo_id, revision, path):
            return f"hf://{repo_id}@{quote(revision, safe='')}/{quote(path)}"
        case CivitaiModel(model_id, version, choice):
            asked = {
                "modelVersionId": version,
                "fileId": choice.file_id,
                "type": choice.type,
                "format": choice.format,
                "size": choice.size,
                "fp": choice.fp,
            }
            page = f"model-versions/{version}" if model_id is None else f"models/{model_id}"
            query = urlencode({name: value for name, value in asked.items() if value is not None})
            return f"https://civitai.com/{page}?{query}"
        case Link(url):
            return url
        case TrainedId(model):
            return model
        case Unreadable():
            raise AssertionError("it has no meaning")


@given(URLS, TYPES, st.none() | st.sampled_from(["main", "v2"]), st.sampled_from([HUB, MIRROR]))
@example("hf://org/name@refs/pr/1/refs/pr/2", LORA, None, HUB)
def test_every_text_is_read_or_refused(
    url: str, model_type: ModelType, git_revision: str | None, endpoint: str
) -> None:
    """Reading never raises, and the plainest spelling of a meaning has this meaning."""
    meaning = read_source(url, model_type, git_revision, endpoint)
    if isinstance(meaning, HubRepo | HubFile):
        assert re.fullmatch(HUB_REPO_PATTERN.strip("^$"), meaning.repo_id)
        assert meaning.revision != ""
    if not isinstance(meaning, Unreadable):
        kind = model_type if isinstance(meaning, TrainedId) else LORA
        assert read_source(spelling(meaning), kind) == meaning


@given(URLS, st.none() | TYPES)
def test_the_crd_and_the_reader_agree_on_every_text(url: str, model_type: ModelType | None) -> None:
    """CRD and `read_source` differ only for links that may be on a mirror: the CRD accepts them."""
    if url:
        assert rejections(url, model_type) == expected_rejections(url, model_type)


@given(URLS)
def test_no_path_chooses_the_host(path: str) -> None:
    """Whatever path follows the host in a url, the link that is called has this host."""
    meaning = read_source(f"https://models.example.com/{path}", LORA)
    if isinstance(meaning, Link):
        assert urlsplit(meaning.url).netloc == "models.example.com"
    else:
        assert isinstance(meaning, Unreadable)
    meaning = read_source(f"{HUB}/{path}", LORA)
    if isinstance(meaning, Link):
        assert urlsplit(meaning.url).netloc == "huggingface.co"


def test_the_url_is_hashed_as_it_is_written() -> None:
    """The load hash has the url as it is written, so reading further forms reloads no model."""
    hashes = {load_hash(Spec(url=url), "m", None) for url in MEANT}
    assert len(hashes) == len(MEANT)
