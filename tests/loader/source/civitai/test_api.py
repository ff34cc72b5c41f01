"""Civitai's API is read field by field: a field that is missing, wrong or hostile is absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakefiles import Faults
from devkit.fakehub import sha256
from sd_api.reasons import Reason
from sd_api.sites.civitai_answers import read_model, read_version
from sd_api.sites.civitai_facts import CivitaiImage, CivitaiLicence
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.settings import Settings
from sd_loader.source.civitai_api import CivitaiApi
from tests.support.loader.fetches import QUICK

IMAGE = "https://image.civitai.com/x/original=true/1.jpeg"


@pytest.fixture
def api(civitai: FakeCivitai, settings: Settings) -> CivitaiApi:
    """The API of the Civitai on loopback."""
    return CivitaiApi(HttpClient(settings, retries=QUICK), civitai.url)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of a version."""
    path = tmp_path / "weights"
    path.write_bytes(b"weights" * 100)
    return path


def test_a_version_is_read_with_its_files_words_and_images(
    civitai: FakeCivitai, api: CivitaiApi, weights: Path
) -> None:
    """The API states SHA-256 in upper case, sizes in kilobytes, and ratings as numbers."""
    images = [{"url": IMAGE, "nsfwLevel": 4, "type": "image"}, {"url": IMAGE, "type": "video"}]
    version = Version(70, [File(700, weights)], trained_words=["a word"], images=images)
    civitai.add(Model(7, "LORA", [version], name="Tiny"))

    found = api.version(70)

    facts, (file,) = found.facts, found.files
    assert (facts.model_id, facts.version_id, facts.model_name) == (7, 70, "Tiny")
    assert (facts.model_type, facts.base_model, facts.trained_words) == (
        "LORA",
        "SD 1.5",
        ("a word",),
    )
    assert facts.images == (
        CivitaiImage(url=IMAGE, nsfw_level=4),
        CivitaiImage(url=IMAGE, is_video=True),
    )
    assert (file.id, file.name, file.type) == (700, "tiny.safetensors", "Model")
    assert (file.format, file.size, file.fp) == ("SafeTensor", "pruned", "fp16")
    assert (file.sha256, file.size_bytes) == (sha256(weights), 700)
    assert file.is_primary
    assert file.path == "/api/download/models/70?fileId=700"
    assert (found.mode, found.usage_control, found.early_access) == (None, "Download", None)


@pytest.mark.parametrize(
    ("stated", "read"),
    [
        pytest.param(["Image", "Rent"], ("Image", "Rent"), id="list"),
        pytest.param("{Image,RentCivit}", ("Image", "RentCivit"), id="words_in_braces"),
        pytest.param("None", ("None",), id="one_word"),
        pytest.param([], (), id="nothing_allowed"),
        pytest.param(None, None, id="not_stated"),
    ],
)
def test_a_model_is_read_with_its_creator_licence_and_versions(
    civitai: FakeCivitai, api: CivitaiApi, stated: Any, read: object
) -> None:
    """Commercial use is stated as a list, as one word, or as words in braces."""
    drafts = Version(72, status="Draft")
    civitai.add(Model(7, "LORA", [drafts, Version(71), Version(70)], commercial_use=stated))

    model = api.model(7)

    assert (model.name, model.type, model.creator) == ("Tiny model", "LORA", "someone")
    assert model.versions == (71, 70)
    assert model.licence == CivitaiLicence(
        no_credit=True, derivatives=True, different_licence=False, commercial_use=read
    )


@pytest.mark.parametrize(
    ("more", "until"),
    [
        pytest.param({}, None, id="free"),
        pytest.param({"earlyAccessEndsAt": "2099-02-03T00:00:00.000Z"}, "2099-02-03", id="old"),
        pytest.param(
            {"paidAccess": {"permanent": False, "endsAt": "2099-02-03T00:00:00Z"}},
            "2099-02-03",
            id="new",
        ),
        pytest.param({"paidAccess": {"permanent": True, "endsAt": None}}, "", id="for_good"),
        pytest.param({"paidAccess": {"permanent": False, "endsAt": None}}, "", id="no_date"),
        pytest.param({"availability": "EarlyAccess"}, "", id="availability"),
        pytest.param({"paidAccess": {"permanent": "yes", "endsAt": "soon"}}, "", id="wrong_types"),
    ],
)
def test_early_access_is_read_from_the_old_fields_and_the_new_one(
    more: dict[str, object], until: str | None
) -> None:
    """The field paidAccess replaces earlyAccessEndsAt."""
    assert read_version(more, 70).early_access == until


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)//api/download/models/70",
        "https://evil.example/api/download/models/70/../../x",
        "https://evil.example/model.safetensors",
        "https://civitai.com/api/download/models/70?fileId=1&next=http://evil.example/",
        "file:///api/download/models/70",
        "https://[/api/download/models/70",
        None,
        70,
    ],
)
def test_a_file_whose_link_is_not_a_download_is_left_out(link: object) -> None:
    """The loader sends no request to a host that a response names."""
    file = {"id": 1, "name": "x.safetensors", "downloadUrl": link}
    assert read_version({"files": [file]}, 70).files == ()


def test_a_download_link_at_another_host_keeps_its_path_only() -> None:
    """A mirror may repeat the links of Civitai, but the file comes from the mirror."""
    link = "https://civitai.com/api/download/models/70?type=VAE&format=SafeTensor"
    file = {"id": 1, "name": "x", "downloadUrl": link}
    (read,) = read_version({"files": [file]}, 70).files
    assert read.path == "/api/download/models/70?type=VAE&format=SafeTensor"


def test_fields_of_wrong_types_count_as_absent() -> None:
    """A wrong field does not spoil the others."""
    file = {
        "id": 1,
        "name": " x.safetensors ",
        "type": ["Model"],
        "sizeKB": "big",
        "metadata": "SafeTensor",
        "hashes": {"SHA256": "A5F58EB1C3"},
        "primary": "yes",
        "downloadUrl": "https://civitai.com/api/download/models/70",
    }
    answer = {
        "modelId": "7",
        "name": {"en": "v1"},
        "baseModel": 1.5,
        "trainedWords": ["good", 3, None, "x" * 5000, "  "],
        "images": [{"url": "javascript:alert(1)"}, {"url": IMAGE, "nsfwLevel": "Soft"}, 7],
        "model": [],
        "nsfwLevel": True,
        "files": [file, "file", {"id": True, "name": "x"}],
    }

    version = read_version(answer, 70)

    (read,) = version.files
    assert (read.name, read.type, read.size_bytes) == ("x.safetensors", "Model", None)
    assert (read.sha256, read.format, read.is_primary) == (None, None, False)
    facts = version.facts
    assert (facts.model_id, facts.version_name, facts.base_model) == (None, None, None)
    assert facts.trained_words == ("good", "x" * 200)
    assert facts.images == (CivitaiImage(url=IMAGE),)
    assert facts.nsfw_level is None


_FILE = {
    "id": 1,
    "name": "x.safetensors",
    "type": "Model",
    "sizeKB": 1.5,
    "metadata": {"format": "SafeTensor"},
    "hashes": {"SHA256": "AB" * 32},
    "downloadUrl": "https://civitai.com/api/download/models/70",
}
_ANSWER = {
    "modelId": 7,
    "name": "v1",
    "model": {"name": "Tiny", "type": "LORA"},
    "trainedWords": ["word"],
    "images": [{"url": IMAGE}],
    "creator": {"username": "someone"},
    "modelVersions": [{"id": 70}],
    "paidAccess": {"endsAt": "2099-01-01"},
    "allowCommercialUse": ["Sell"],
}
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300)
_VALUES = _PLAIN | st.lists(_PLAIN, max_size=3) | st.dictionaries(st.text(), _PLAIN, max_size=2)


@given(st.sampled_from(sorted(_ANSWER)), st.sampled_from(sorted(_FILE)), _VALUES)
def test_the_reader_accepts_any_response(field: str, of_file: str, value: Any) -> None:
    """Whatever a field contains, the reader returns valid facts and keeps the other file."""
    answer = {**_ANSWER, field: value, "files": [_FILE, {**_FILE, of_file: value}]}
    read_model(answer)
    read = read_version(answer, 70)
    assert read.files[0].name == "x.safetensors"
    assert type(read.facts).model_validate_json(read.facts.model_dump_json()) == read.facts


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"<html>maintenance</html>", "not in the format of Civitai's API", id="html"),
        pytest.param(b"[]", "not in the format of Civitai's API", id="list"),
        pytest.param(b"", "not in the format of Civitai's API", id="empty"),
        pytest.param(b'{"a":' * 5000, "not in the format of Civitai's API", id="deep"),
        pytest.param(
            b'{"description": "%s"}' % (b"x" * (10 << 20)), "a response of more than", id="huge"
        ),
    ],
)
def test_an_unreadable_response_is_refused(
    civitai: FakeCivitai, api: CivitaiApi, body: bytes, message: str
) -> None:
    """The message says what is wrong. A response of more than 4 MiB is too large."""
    civitai.serve_file("/api/v1/model-versions/70", body)
    with pytest.raises(LoaderError, match=message) as caught:
        api.version(70)
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE


def test_a_version_that_is_not_published_is_not_found(
    civitai: FakeCivitai, api: CivitaiApi, weights: Path
) -> None:
    """Civitai responds with 404 for a deleted version, and for one that was withdrawn."""
    civitai.add(Model(7, "LORA", [Version(70, [File(700, weights)], status="Unpublished")]))
    with pytest.raises(LoaderError, match="Civitai has no published version 70") as caught:
        api.version(70)
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND


def test_a_request_is_repeated_after_a_rate_limit(civitai: FakeCivitai, api: CivitaiApi) -> None:
    """The status 429 is temporary."""
    civitai.add(Model(7, "LORA", [Version(70)]))
    civitai.api_faults = Faults(status=429, fails=2)
    assert api.version(70).facts.model_id == 7


def test_a_lasting_rate_limit_is_reported(civitai: FakeCivitai, api: CivitaiApi) -> None:
    """The operator tries again later."""
    civitai.api_faults = Faults(status=429)
    with pytest.raises(LoaderError, match="too many requests") as caught:
        api.version(70)
    assert caught.value.reason is Reason.RATE_LIMITED
