"""The token is sent only to the Secret's host, even if components come from other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.spec import VaeSource
from tests.support.loader.loadercli import Containers, load_request
from tests.support.loader.loadercli import artifact_of as loaded
from tests.support.loader.partloads import load_with_vae, served, without
from tests.support.models.checkpoints import smallest_sd15
from tests.support.models.tinyrepo import save_repo
from tests.support.models.vaes import tiny

TOKEN = "hf_secret"


@pytest.fixture
def elsewhere() -> Iterator[FakeHub]:
    """A second Hub, on another host."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def containers(hub: FakeHub, elsewhere: FakeHub, tmp_path: Path) -> Containers:
    """Containers that can reach both hosts, with an empty volume."""
    containers = Containers.reaching(hub, tmp_path)
    containers.env["SD_LOADER_ALLOWED_HOSTS"] = f"{hub.host},{elsewhere.host}"
    return containers


def secret(containers: Containers, host: str | None) -> None:
    """Mount a credentials Secret."""
    containers.credentials.mkdir(parents=True)
    (containers.credentials / "token").write_text(TOKEN)
    if host is not None:
        (containers.credentials / "host").write_text(host)


def test_token_is_not_sent_to_the_host_of_the_vae(
    containers: Containers, hub: FakeHub, elsewhere: FakeHub, tmp_path: Path
) -> None:
    """The VAE lies on another host than the one the Secret names."""
    secret(containers, hub.host)
    vae = served(elsewhere, tmp_path, "vae.safetensors", tiny())
    loaded(load_with_vae(containers, hub, tmp_path, vae, credentials=True))
    assert [request.headers.get("authorization") for request in elsewhere.requests] == [None]
    sent = {request.headers.get("authorization") for request in hub.requests}
    assert sent == {f"Bearer {TOKEN}"}


def test_token_of_another_host_is_not_sent_to_the_hub(
    containers: Containers, hub: FakeHub, elsewhere: FakeHub, tmp_path: Path
) -> None:
    """Neither the VAE nor the default components are requested with the token."""
    secret(containers, elsewhere.host)
    repo = save_repo(tmp_path / "repo")
    hub.add_repo("org/defaults", repo)
    hub.add_repo("org/vae", repo / "vae")
    containers.env["SD_LOADER_DEFAULT_PARTS"] = "sd-1=org/defaults"
    tensors = without(smallest_sd15(), "cond_stage_model.", "first_stage")
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


def test_token_is_sent_for_a_vae_on_its_host(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A private VAE may lie on the same host as a private model."""
    secret(containers, hub.host)
    vae = served(hub, tmp_path, "vae.safetensors", tiny())
    hub.forget()
    loaded(load_with_vae(containers, hub, tmp_path, vae, credentials=True))
    sent = [request.headers.get("authorization") for request in hub.requests]
    assert set(sent) == {f"Bearer {TOKEN}"}
