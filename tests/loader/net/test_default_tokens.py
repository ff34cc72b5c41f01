"""Default tokens: which host gets one, and from which Secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.default_credentials import DefaultSecret
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.settings import Settings
from tests.support.loader.fetches import TOKEN, fetch, secret
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.models.conversions import load_request

HUB, SITE = "https://huggingface.co", "https://site.example/x"
BODY = safetensors_bytes({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a Secret for each of three hosts; only that for the Hub has a token."""
    settings = Settings(
        credentials_dir=tmp_path / "own",
        default_credentials={
            "huggingface.co": DefaultSecret("hub-token"),
            "site.example": DefaultSecret("site-token"),
            "site.example:8443": DefaultSecret("other-token"),
        },
        default_credentials_dir=tmp_path / "defaults",
    )
    keep(settings, "huggingface.co")
    return settings


def keep(settings: Settings, prefix: str, token: str = TOKEN, host: str | None = None) -> None:
    """Mount a Secret for a host."""
    settings.default_credentials_dir.mkdir(exist_ok=True)
    (settings.default_credentials_dir / f"{prefix}.token").write_text(token)
    if host is not None:
        (settings.default_credentials_dir / f"{prefix}.host").write_text(host)


def token(settings: Settings, url: str, *, api: bool = False, required: bool = True) -> str | None:
    """Return the token that a request of this url is sent with."""
    client = HttpClient(settings)
    return client.token(url, "spec.url", required=required, is_default_host=api)


def test_host_gets_the_token_of_its_own_secret(settings: Settings) -> None:
    """Subdomains, other ports and plain http do not get the token.

    If the Secret is missing, the request is sent without a token.
    """
    keep(settings, "site.example", "site")
    keep(settings, "site.example_8443", "port", host="site.example:8443")
    assert token(settings, SITE) == "site"
    assert token(settings, "https://site.example:8443/x") == "port"
    for url in ("https://a.site.example/x", "https://site.example:444/x", "http://site.example/x"):
        assert token(settings, url) is None
    (settings.default_credentials_dir / "site.example.token").unlink()
    assert token(settings, SITE) is None


def test_token_for_the_hub_is_not_for_its_mirror(settings: Settings) -> None:
    """The token is only for the host that the setting names."""
    mirror = replace(settings, hub_endpoint="https://mirror.example/hub")
    assert token(settings, HUB, api=True) == TOKEN
    assert token(mirror, "https://mirror.example/hub", api=True) is None
    named = replace(mirror, default_credentials={"mirror.example": DefaultSecret("m")})
    keep(named, "mirror.example", "mirror")
    assert token(named, "https://mirror.example/hub", api=True) == "mirror"


def test_link_into_the_hub_gets_only_a_default_token_for_private_repos(
    settings: Settings,
) -> None:
    """Only a default token with `for_private` is sent.

    The repo may be private: the loader does not ask the Hub's API about a link.
    """
    link = f"{HUB}/datasets/o/n/resolve/main/x.safetensors"
    assert token(settings, link) is None
    private = {"huggingface.co": DefaultSecret("hub-token", for_private=True)}
    assert token(replace(settings, default_credentials=private), link) == TOKEN


def test_own_secret_of_the_model_excludes_the_default(settings: Settings) -> None:
    """If the model has spec.credentialsSecretRef, no default token is sent."""
    secret(settings, "own", host="own.example")
    client = HttpClient(settings, has_token=True)
    assert client.token(HUB, "spec.vae.url", required=False) is None


@pytest.mark.parametrize(
    ("text", "host", "reason"),
    [
        ("a token", None, Reason.SECRET_NOT_FOUND),
        (TOKEN, "other.example", Reason.CREDENTIALS_HOST_MISMATCH),
    ],
)
def test_unusable_secret_is_named(
    settings: Settings, text: str, host: str | None, reason: Reason
) -> None:
    """The model's source fails; a component that may be public is requested without a token."""
    keep(settings, "huggingface.co", text, host)
    with pytest.raises(LoaderError, match="hub-token") as caught:
        token(settings, HUB, api=True)
    assert caught.value.reason is reason
    assert text not in caught.value.message
    assert token(settings, HUB, api=True, required=False) is None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with a gated and a private repo, which the same token opens."""
    with FakeHub() as hub:
        for kind in ("gated", "private"):
            folder = tmp_path / kind
            folder.mkdir()
            (folder / "style.safetensors").write_bytes(BODY)
            hub.add_repo(f"org/{kind}", folder, token=TOKEN, **{kind: True})
        yield hub


def on(hub: FakeHub, settings: Settings, *, private: bool = False) -> Settings:
    """Return settings for this Hub, whose host has a default Secret."""
    entries = {hub.host: DefaultSecret("hub-token", for_private=private)}
    return replace(settings, hub_endpoint=hub.url, default_credentials=entries)


def test_default_token_opens_a_gated_repo_but_not_a_private_one(
    hub: FakeHub, settings: Settings, into: Path
) -> None:
    """A token without `for_private` is sent with downloads, but not to the Hub's API."""
    here = on(hub, settings)
    keep(here, hub.host.replace(":", "_"))
    fetch(load_request(url="org/gated", model_type=None), here, into)
    listed = [request for request in hub.requests if request.path.startswith("/api/")]
    assert listed
    assert all("authorization" not in request.headers for request in listed)
    with pytest.raises(LoaderError, match="does not exist or is private") as caught:
        fetch(load_request(url="org/private", model_type=None), here, into)
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND
    allowed = on(hub, settings, private=True)
    fetch(load_request(url="org/private", model_type=None), allowed, into)


def test_gated_repo_without_a_token_names_page_and_secret(
    hub: FakeHub, settings: Settings, into: Path
) -> None:
    """The message says where to accept the licence and where the token belongs."""
    with pytest.raises(LoaderError) as caught:
        fetch(load_request(url="org/gated"), on(hub, settings), into)
    assert caught.value.reason is Reason.AUTHENTICATION_REQUIRED
    assert f"{hub.url}/org/gated is a gated repo: accept its licence" in caught.value.message
    assert "the key `token` of the Secret hub-token" in caught.value.message


def test_link_that_needs_a_token_names_the_secret(
    hub: FakeHub, settings: Settings, into: Path
) -> None:
    """Every host that has a default Secret is treated like the Hub."""
    link = hub.serve_file("/x.safetensors", BODY, status=401)
    other = replace(on(hub, settings), hub_endpoint=HUB, allowed_hosts=frozenset({hub.host}))
    with pytest.raises(LoaderError, match="of the Secret hub-token") as caught:
        fetch(load_request(url=link), other, into)
    assert caught.value.reason is Reason.AUTHENTICATION_REQUIRED
