"""A model on Civitai is found by its page, and stays at the version that was found first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakefiles import Faults
from devkit.fakehub import sha256
from sd_api.card import NO_CARD
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.settings import Settings
from tests.support.loader import fetches
from tests.support.loader.linkfetches import BODY, request, safetensors

PAGE = "https://civitai.com/models/7/tiny-model"
FULL = safetensors(2000)
SOON = "2099-01-02T00:00:00.000Z"

Fetch = Callable[..., Fetched]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The file of the usual version."""
    path = tmp_path / "weights"
    path.write_bytes(BODY)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A second file, for versions with several files."""
    path = tmp_path / "full"
    path.write_bytes(FULL)
    return path


@pytest.fixture
def fetch(settings: Settings, into: Path) -> Fetch:
    """Fetch a url as the fetch container does."""

    def run(url: str, of: Settings = settings, **fields: Any) -> Fetched:
        return fetches.fetch(request(url, **fields), of, into)

    return run


def refusal(fetch: Fetch, url: str, **fields: Any) -> LoaderError:
    """Fetch a url, which must fail; return the error."""
    with pytest.raises(LoaderError) as caught:
        fetch(url, **fields)
    return caught.value


@pytest.fixture
def usual(civitai: FakeCivitai, weights: Path) -> Version:
    """The newest of two versions of model 7."""
    newest = Version(71, [File(700, weights)], trained_words=["tiny"])
    older = Version(70, [File(690, weights, sha256="0" * 64)])
    civitai.add(Model(7, "Checkpoint", [newest, older]))
    return newest


@pytest.mark.parametrize(
    "url",
    [
        PAGE,
        f"{PAGE}?modelVersionId=71",
        "https://civitai.red/models/7",
        "https://civitai.com/model-versions/71",
        "urn:air:sd1:checkpoint:civitai:7@71",
        "civitai:7@71+700",
    ],
)
def test_a_model_is_loaded_by_its_page_or_identifier(
    civitai: FakeCivitai, usual: Version, fetch: Fetch, into: Path, url: str
) -> None:
    """Without a version, the newest is loaded. Version, file and digest are recorded."""
    fetched = fetch(url)

    assert (into / fetched.path).read_bytes() == BODY
    assert (fetched.source.version, fetched.source.file) == ("7@71+700", "tiny.safetensors")
    assert fetched.source.sha256 == sha256(usual.files[0].path)
    card = fetched.card
    assert (card.trigger_words, card.author) == (("tiny",), "someone")
    assert card.license is not None
    assert "credit the creator" not in card.license
    assert fetched.warnings == ()
    assert "/api/v1/model-versions/71" in civitai.asked()


@pytest.mark.usefixtures("usual")
def test_a_download_link_is_called_as_written_and_looked_up(
    civitai: FakeCivitai, fetch: Fetch
) -> None:
    """The number in the link identifies the version in Civitai's API."""
    fetched = fetch(f"{civitai.url}/api/download/models/71?type=Model")
    assert fetched.source.version == "7@71+700"
    assert fetched.card.trigger_words == ("tiny",)


@pytest.mark.parametrize(
    ("path", "faults"),
    [
        pytest.param("model-versions/71", {"status": 500}, id="server_error"),
        pytest.param("model-versions/71", {"status": 429}, id="rate_limit"),
        pytest.param("model-versions/71", {"status": 404}, id="unknown"),
        pytest.param("model-versions/71", {"body": b"<html>"}, id="page"),
        pytest.param("models/7", {"status": 500}, id="model"),
    ],
)
@pytest.mark.usefixtures("usual")
def test_a_download_link_loads_although_its_look_up_failed(
    civitai: FakeCivitai, fetch: Fetch, path: str, faults: dict[str, Any]
) -> None:
    """The API is requested once, and a warning says why the version's facts are missing.

    If only the request for the model fails, only creator and licence are missing.
    """
    civitai.serve_file(f"/api/v1/{path}", faults.pop("body", b"{}"), **faults)
    fetched = fetch(f"{civitai.url}/api/download/models/71")
    assert fetched.source.sha256 is not None
    assert civitai.asked().count(f"/api/v1/{path}") == 1
    if path == "models/7":
        assert fetched.card.trigger_words == ("tiny",)
        assert (fetched.card.author, fetched.card.license) == (None, None)
        assert fetched.warnings == ()
    else:
        assert fetched.card == NO_CARD
        assert fetched.source.version is None
        assert "Civitai's API did not describe the file: " in fetched.warnings[0]


def test_a_wrong_digest_is_refused(civitai: FakeCivitai, weights: Path, fetch: Fetch) -> None:
    """The message names the digest that Civitai states, for a page and for a download link."""
    civitai.add(Model(7, "LORA", [Version(71, [File(700, weights, sha256="0" * 64)])]))
    for url in (PAGE, f"{civitai.url}/api/download/models/71"):
        error = refusal(fetch, url)
        assert error.reason is Reason.DIGEST_MISMATCH
        assert f"not {'0' * 64}, the digest that Civitai states" in error.message


@pytest.mark.usefixtures("usual")
def test_a_digest_of_the_spec_is_compared_with_the_stated_one_first(
    civitai: FakeCivitai, fetch: Fetch
) -> None:
    """Nothing is downloaded if the two differ."""
    error = refusal(fetch, PAGE, sha256="1" * 64)
    assert error.reason is Reason.DIGEST_MISMATCH
    assert f"at Civitai, not {'1' * 64}" in error.message
    assert civitai.bytes_served == 0


def test_a_later_attempt_stays_at_the_version_that_was_found_first(
    civitai: FakeCivitai, weights: Path, usual: Version, fetch: Fetch
) -> None:
    """A version that is published between two attempts does not change the load."""
    broken = replace(usual, files=[File(700, weights, faults=Faults(status=500))])
    civitai.add(Model(7, "Checkpoint", [broken]))
    assert refusal(fetch, PAGE).reason is Reason.SOURCE_UNREACHABLE
    newer = Version(72, [File(720, weights)])
    civitai.add(Model(7, "Checkpoint", [newer, usual]))

    assert fetch(PAGE).source.version == "7@71+700"


@pytest.mark.usefixtures("usual")
def test_an_invalid_record_of_the_version_is_ignored(fetch: Fetch, into: Path) -> None:
    """Anyone who can write to the volume can write the record."""
    for record in (b"", b"[]", b'{"versionId": "70"}', b'{"versionId": 1, "fileId": -1}'):
        (into / "civitai.json").write_bytes(record)
        assert fetch(PAGE).source.version == "7@71+700"


@pytest.mark.parametrize(
    ("query", "file"),
    [
        pytest.param("", "7@71+702", id="primary_safetensors"),
        pytest.param("?size=full", "7@71+701", id="size"),
        pytest.param("?format=safetensor&fp=FP32", "7@71+701", id="format_and_precision"),
        pytest.param("?format=PickleTensor", "7@71+703", id="pickle"),
        pytest.param("?fileId=701", "7@71+701", id="id"),
        pytest.param("?type=VAE", "7@71+704", id="role"),
    ],
)
def test_a_file_is_chosen_and_named(
    civitai: FakeCivitai, weights: Path, full: Path, fetch: Fetch, query: str, file: str
) -> None:
    """Without a choice, the primary safetensors is taken, and a warning names it."""
    files = [
        File(703, full, name="tiny.ckpt", format="PickleTensor"),
        File(701, full, size="full", fp="fp32"),
        File(702, weights),
        File(704, full, name="tiny.vae.safetensors", type="VAE"),
        File(705, full, name="data.zip", type="Training Data", format="Other"),
        File(706, full, name="tiny.gguf", format="GGUF"),
    ]
    civitai.add(Model(7, "Checkpoint", [Version(71, files)]))
    fetched = fetch(PAGE + query)
    assert fetched.source.version == file
    named = "of 3 files, tiny.safetensors (SafeTensor, pruned, fp16) was taken; choose another by"
    assert [warning.startswith(named) for warning in fetched.warnings] == ([] if query else [True])


@pytest.mark.parametrize(
    ("files", "query", "reason", "message"),
    [
        pytest.param(
            [{}], "?fp=fp32", Reason.INVALID_SPEC, "no file with fp=fp32; it has tiny", id="none"
        ),
        pytest.param(
            [{"type": "Training Data", "name": "x.zip"}],
            "",
            Reason.UNSUPPORTED_FORMAT,
            "version 71 has no model file, only x.zip (Training Data",
            id="no_model",
        ),
        pytest.param(
            [{"format": "GGUF", "name": "x.gguf"}],
            "",
            Reason.UNSUPPORTED_FORMAT,
            "version 71 has no file that the loader reads, only x.gguf (GGUF",
            id="format",
        ),
        pytest.param(
            [{"name": "模型 <a href='https://evil.example/'>[x](//y)", "format": "<b>"}],
            "?fp=fp32",
            Reason.INVALID_SPEC,
            "it has 模型 _a href__https___evil.example____x_(__y) (_b_, pruned, fp16)",
            id="markup",
        ),
        pytest.param(
            [], "", Reason.SOURCE_NOT_FOUND, "version 71 has no file that can be", id="empty"
        ),
    ],
)
def test_a_version_without_a_usable_file_is_refused_by_name(
    civitai: FakeCivitai,
    weights: Path,
    fetch: Fetch,
    files: list[dict[str, Any]],
    query: str,
    reason: Reason,
    message: str,
) -> None:
    """The message says what the version has instead."""
    made = [File(700 + number, weights, **file) for number, file in enumerate(files)]
    civitai.add(Model(7, "Checkpoint", [Version(71, made)]))
    error = refusal(fetch, PAGE + query)
    assert (error.reason, civitai.bytes_served) == (reason, 0)
    assert message in error.message


@pytest.mark.parametrize(
    ("model", "version", "reason", "message"),
    [
        pytest.param({"mode": "Archived"}, {}, Reason.SOURCE_NOT_FOUND, "archived", id="archived"),
        pytest.param(
            {},
            {"early_access_ends": SOON},
            Reason.ACCESS_DENIED,
            "version 71 is in early access until 2099-01-02, only for accounts that bought it: ",
            id="early_access",
        ),
        pytest.param(
            {},
            {"usage_control": "InternalGeneration"},
            Reason.ACCESS_DENIED,
            "version 71 may only be used on Civitai: its creator does not allow downloads",
            id="generation_only",
        ),
        pytest.param(
            {"mode": "TakenDown"},
            {"needs_login": True},
            Reason.SOURCE_NOT_FOUND,
            "version 71 was taken down from Civitai: ",
            id="taken_down",
        ),
        pytest.param(
            {},
            {"needs_login": True},
            Reason.AUTHENTICATION_REQUIRED,
            "requires a token",
            id="login",
        ),
        pytest.param(
            {}, {"status": "Unpublished"}, Reason.SOURCE_NOT_FOUND, "no published", id="withdrawn"
        ),
    ],
)
def test_a_version_that_may_not_be_downloaded_is_refused_with_the_cause(
    civitai: FakeCivitai,
    weights: Path,
    fetch: Fetch,
    model: dict[str, Any],
    version: dict[str, Any],
    reason: Reason,
    message: str,
) -> None:
    """Civitai responds with 401 or 403 for most causes; its API shows which cause applies."""
    civitai.add(Model(7, "LORA", [Version(71, [File(700, weights)], **version)], **model))
    for url in (PAGE, f"{PAGE}?modelVersionId=71"):
        error = refusal(fetch, url)
        assert error.reason is reason
        assert message in error.message


def test_a_model_that_does_not_exist_is_not_found(fetch: Fetch) -> None:
    """The message names the model."""
    error = refusal(fetch, PAGE)
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "no published model 7" in error.message


@pytest.mark.usefixtures("usual")
def test_model_and_version_must_belong_together(fetch: Fetch) -> None:
    """A link that was put together by hand may name another model's version."""
    error = refusal(fetch, "https://civitai.com/models/8?modelVersionId=71")
    assert error.message == (
        "spec.url: version 71 belongs to model 7, not to model 8; correct one of them"
    )


def test_a_token_goes_to_civitai_only(
    civitai: FakeCivitai, settings: Settings, weights: Path, fetch: Fetch
) -> None:
    """The API and the download link get the token; the host that the link redirects to does not."""
    civitai.token = "s3cret"
    version = Version(71, [File(700, weights)], early_access_ends=SOON)
    civitai.add(Model(7, "Checkpoint", [version]))
    fetches.secret(settings, "s3cret", civitai.host)

    fetch(PAGE, credentials=True)

    got = {one.path: one.headers.get("authorization") for one in civitai.requests}
    assert got == {
        "/api/v1/models/7": "Bearer s3cret",
        "/api/v1/model-versions/71": "Bearer s3cret",
        "/api/download/models/71": "Bearer s3cret",
        "/cdn/700": None,
    }


@pytest.mark.usefixtures("usual")
def test_a_token_of_another_host_is_not_sent(
    civitai: FakeCivitai, settings: Settings, fetch: Fetch
) -> None:
    """Nothing is requested at all."""
    fetches.secret(settings, "s3cret", "huggingface.co")
    assert refusal(fetch, PAGE, credentials=True).reason is Reason.CREDENTIALS_HOST_MISMATCH
    assert civitai.requests == []


def test_an_endpoint_at_a_private_address_is_called_only_if_the_administrator_named_it(
    civitai: FakeCivitai, usual: Version, settings: Settings, fetch: Fetch
) -> None:
    """The guard allows the endpoint, and refuses every other private address."""
    elsewhere = replace(settings, allowed_hosts=frozenset())
    error = refusal(fetch, PAGE, of=elsewhere)
    assert error.reason is Reason.ADDRESS_REFUSED  # The files lie at another port.
    assert civitai.asked() == [
        "/api/v1/models/7",
        f"/api/v1/model-versions/{usual.version_id}",
    ]


def test_file_of_a_link_that_names_none_is_unknown_if_a_token_is_sent(
    civitai: FakeCivitai, settings: Settings, weights: Path, full: Path, fetch: Fetch
) -> None:
    """No digest is compared, because the loader does not know which file it gets.

    For a download link that names no file, Civitai chooses by the preferences of the token's
    account.
    """
    files = [File(700, weights, sha256="0" * 64), File(701, full, size="full")]
    civitai.add(Model(7, "Checkpoint", [Version(71, files)]))
    fetches.secret(settings, "s3cret", civitai.host)
    fetched = fetch(f"{civitai.url}/api/download/models/71", credentials=True)
    assert (fetched.source.file, fetched.source.version) == (None, "7@71")
