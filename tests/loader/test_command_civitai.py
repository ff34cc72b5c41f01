"""Models of Civitai load by command line, in a Job and by hand, and no token is left behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import sha256
from sd_api.names import PICTURE_FILE
from sd_api.reasons import Reason
from sd_loader.store.receipt import RECEIPT_FILE
from tests.support.loader.loadercli import (
    Containers,
    Ended,
    artifact_of,
    failed,
    load_request,
    safetensors_bytes,
)

PAGE = "https://civitai.com/models/7/tiny-model"
TOKEN = "c1vitai-s3cret-token"


@dataclass(frozen=True)
class Site:
    """A Civitai with one embedding, which needs a login."""

    civitai: FakeCivitai
    path: Path
    containers: Containers


@pytest.fixture
def site(containers: Containers, tmp_path: Path) -> Iterator[Site]:
    """The site, and containers that may reach it with a token."""
    path = tmp_path / "embedding.safetensors"
    path.write_bytes(safetensors_bytes({"emb_params": (2, 768)}))
    with FakeCivitai() as civitai:
        civitai.token = TOKEN
        civitai.add(
            Model(7, "TextualInversion", [Version(71, [File(700, path)], needs_login=True)])
        )
        containers.env |= {
            "SD_LOADER_CIVITAI_ENDPOINT": civitai.url,
            "SD_LOADER_ALLOWED_HOSTS": civitai.cdn_host,
        }
        containers.folder.mkdir(exist_ok=True)
        containers.credentials.mkdir()
        (containers.credentials / "token").write_text(TOKEN)
        (containers.credentials / "host").write_text(civitai.host)
        yield Site(civitai, path, containers)


def leaves_no_token(site: Site, ended: Ended) -> None:
    """Assert that no output, result or file of the load has the token or a signature."""
    written = b"".join(
        path.read_bytes() for path in site.containers.store.rglob("*") if path.is_file()
    )
    for secret in (TOKEN, "X-Amz-Signature", "signature=secret"):
        assert secret not in f"{ended.stdout}{ended.stderr}{ended.result}"
        assert secret.encode() not in written


def test_a_model_page_loads_in_a_job(site: Site) -> None:
    """The result has version, file, digest and card. The receipt has the version, too."""
    request = load_request(PAGE, model_type="embeddings", credentials=True)
    assert TOKEN not in request.to_argument()

    ended = site.containers.load(request)

    card = artifact_of(ended).card
    assert card is not None
    assert (card.title, card.author) == ("Tiny model (v1.0)", "someone")
    assert ended.result is not None
    source = ended.result.source
    assert source is not None
    assert (source.version, source.file) == ("7@71+700", "tiny.safetensors")
    assert source.sha256 == sha256(site.path)
    receipt = next(site.containers.store.rglob(RECEIPT_FILE)).read_text()
    assert '"version": "7@71+700"' in receipt
    leaves_no_token(site, ended)


def test_by_hand_only_a_download_with_a_login_needs_a_token(site: Site) -> None:
    """Without a token, a version that needs a login is refused, and a public one loads."""
    (site.containers.credentials / "token").unlink()
    arguments = ("--model-type", "embeddings", "--model-id", "m", "--store", site.containers.store)
    url = "urn:air:sd1:embedding:civitai:7@71"
    failed(
        site.containers.run("load", "--url", url, *arguments),
        Reason.AUTHENTICATION_REQUIRED,
        "requires a token",
    )
    version = Version(72, [File(700, site.path)])
    site.civitai.add(Model(7, "TextualInversion", [version]))
    ended = site.containers.run("load", "--url", PAGE, *arguments)
    artifact_of(ended)
    assert (site.containers.store / "m").is_dir()


def test_a_person_gives_the_token_by_variable_or_file(site: Site, tmp_path: Path) -> None:
    """Either token is sent to the configured endpoint of Civitai.

    No option names the model type, so the loader finds it in the file.
    """
    (site.containers.credentials / "token").unlink()
    (tmp_path / "token").write_text(TOKEN)
    arguments = ("load", "--url", PAGE, "--store", site.containers.store, "--model-id")
    for model, more, env in (
        ("a", (), {"CIVITAI_TOKEN": TOKEN}),
        ("b", ("--token-file", tmp_path / "token"), {}),
    ):
        ended = site.containers.run(*arguments, model, *more, **env)
        assert artifact_of(ended).model_type == "embeddings"
        leaves_no_token(site, ended)


def test_the_message_of_a_refusal_has_no_secret(site: Site) -> None:
    """A server may quote the token in its error; the message must not repeat the token."""
    body = f'{{"error": "no {TOKEN}"}}'.encode()
    site.civitai.serve_file("/api/v1/models/7", b"", status=403, body=body)
    request = load_request(PAGE, model_type="embeddings", credentials=True)
    ended = site.containers.fetch(request)
    failed(ended, Reason.ACCESS_DENIED, "answered 403: access is denied")
    leaves_no_token(site, ended)


@pytest.mark.slow
def test_a_model_page_leads_to_a_card_and_a_picture(site: Site) -> None:
    """Civitai's facts are published with the model. If they quote the token, it is removed."""
    png = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(png, "PNG")
    url = site.civitai.serve_file("/images/cat.png", png.getvalue())
    version = Version(
        71,
        [File(700, site.path)],
        base_model="Pony",
        trained_words=(f"cat {TOKEN}", "<b>fur</b>"),
        images=[{"url": url, "nsfwLevel": 1, "type": "image"}],
    )
    site.civitai.add(Model(7, "TextualInversion", [version], name="Cat\u202e"))
    ended = site.containers.load(load_request(PAGE, model_type="embeddings", credentials=True))
    card = artifact_of(ended).card
    assert card is not None
    assert (card.title, card.word, card.based_on) == ("Cat (v1.0)", "<model>", "Pony")
    assert card.trigger_words == ("cat …", "<b>fur</b>")
    assert card.page == f"{site.civitai.url}/models/7?modelVersionId=71"
    assert ended.result is not None
    assert ended.result.picture, ended.result.message
    with Image.open(site.containers.store / "model" / PICTURE_FILE) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1024, 512))
    leaves_no_token(site, ended)
