"""The token of a model whose parts come from elsewhere goes to the Secret's host alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.spec import VaeSource
from tests.support.loader.loadercli import Containers, load_request
from tests.support.loader.loadercli import artifact_of as loaded
from tests.support.loader.partloads import load_with_vae, served, without
from tests.support.models.checkpoints import tiny_sd15
from tests.support.models.tinyrepo import save_repo
from tests.support.models.vaes import tiny

TOKEN = "hf_secret"


@pytest.fixture
def elsewhere() -> Iterator[FakeHub]:
    """Another host."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def containers(hub: FakeHub, elsewhere: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach both hosts, with an empty volume."""
    containers = Containers.reaching(hub, tmp_path)
    containers.env["SD_LOADER_ALLOWED_HOSTS"] = f"{hub.host},{elsewhere.host}"
    return containers


def secret(containers: Containers, host: str | None) -> None:
    """Mount a credentials Secret."""
    containers.credentials.mkdir(parents=True)
    (containers.credentials / "token").write_text(TOKEN)
    if host is not None:
        (containers.credentials / "host").write_text(host)


def test_the_token_stays_with_its_host(
    containers: Containers, hub: FakeHub, elsewhere: FakeHub, tmp_path: Path
) -> None:
    """The VAE's host never sees it, nor does the Hub, unless the Secret is for them."""
    secret(containers, hub.host)
    vae = served(elsewhere, tmp_path, "vae.safetensors", tiny())
    loaded(load_with_vae(containers, hub, tmp_path, vae, credentials=True))
    assert [request.headers.get("authorization") for request in elsewhere.requests] == [None]
    sent = {request.headers.get("authorization") for request in hub.requests}
    assert sent == {f"Bearer {TOKEN}"}


def test_the_token_of_another_host_does_not_reach_the_hub(
    containers: Containers, hub: FakeHub, elsewhere: FakeHub, tmp_path: Path
) -> None:
    """Neither for a VAE from the Hub, nor for the default parts."""
    secret(containers, elsewhere.host)
    repo = save_repo(tmp_path / "repo")
    hub.add_repo("org/defaults", repo)
    hub.add_repo("org/vae", repo / "vae")
    containers.env["SD_LOADER_DEFAULT_PARTS"] = "sd1=org/defaults"
    tensors = without(tiny_sd15(), "cond_stage_model.", "first_stage")
    url = served(elsewhere, tmp_path, "model.safetensors", tensors)
    loaded(
        containers.load(
            load_request(
                url, model_type="custom_ckpt", credentials=True, vae=VaeSource(url="org/vae")
            )
        )
    )
    sent = [request.headers.get("authorization") for request in elsewhere.requests]
    assert set(sent) == {f"Bearer {TOKEN}"}
    assert hub.requests
    assert all("authorization" not in request.headers for request in hub.requests)


def test_the_token_reaches_the_vae_on_its_host(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A private VAE beside a private model."""
    secret(containers, hub.host)
    vae = served(hub, tmp_path, "vae.safetensors", tiny())
    hub.forget()
    loaded(load_with_vae(containers, hub, tmp_path, vae, credentials=True))
    sent = [request.headers.get("authorization") for request in hub.requests]
    assert set(sent) == {f"Bearer {TOKEN}"}
