"""`sd-loader load` sends a person's tokens, each to its own host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from sd_api.reasons import ExitCode, Reason
from tests.support.loader.loadercli import Containers, Ended, failed
from tests.support.models.lorashapes import LORA

TOKEN = "hf_canary"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with a private repo."""
    (tmp_path / "repo").mkdir()
    write_checkpoint(tmp_path / "repo" / "style.safetensors", LORA)
    with FakeHub() as hub:
        hub.add_repo("org/style", tmp_path / "repo", token=TOKEN, private=True)
        yield hub


def load(containers: Containers, url: str, *more: str | Path, **env: str) -> Ended:
    """Load by hand, and assert that the token is neither stored nor printed."""
    arguments = ("--url", url, "--model-id", "style", "--store", containers.store, *more)
    ended = containers.run("load", *arguments, **env)
    left = [path for path in containers.store.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in left)
    assert TOKEN not in ended.stdout + ended.stderr
    return ended


def sent(hub: FakeHub) -> set[str | None]:
    """Return the Authorization headers that the Hub received."""
    return {request.headers.get("authorization") for request in hub.requests}


def test_token_of_the_hub_comes_from_the_environment(containers: Containers, hub: FakeHub) -> None:
    """HF_TOKEN, which other programs read as well, opens private repos."""
    ended = load(containers, "org/style", HF_TOKEN=TOKEN)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert sent(hub) == {f"Bearer {TOKEN}"}


def test_token_file_is_for_the_host_of_the_source(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The source may be a repo or a link. The token file takes precedence over HF_TOKEN."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    ended = load(containers, "org/style", "--token-file", tmp_path / "token", HF_TOKEN="hf_other")
    assert ended.code == ExitCode.DONE, ended.stderr
    link = hub.serve_file(
        "/x.safetensors", (tmp_path / "repo" / "style.safetensors").read_bytes(), token=TOKEN
    )
    ended = load(containers, link, "--token-file", tmp_path / "token")
    assert ended.code == ExitCode.DONE, ended.stderr


def test_token_of_another_host_is_not_sent(containers: Containers, hub: FakeHub) -> None:
    """CIVITAI_TOKEN is for Civitai only."""
    ended = load(containers, "org/style", CIVITAI_TOKEN=TOKEN)
    failed(ended, Reason.SOURCE_NOT_FOUND, "private")
    assert sent(hub) == {None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no token"),
        ("two words", "has blanks or characters that are not printable ASCII"),
    ],
)
def test_unusable_token_file_is_named(
    containers: Containers, hub: FakeHub, tmp_path: Path, content: str, message: str
) -> None:
    """The load fails before it sends a request."""
    (tmp_path / "token").write_text(content)
    ended = load(containers, "org/style", "--token-file", tmp_path / "token")
    failed(ended, Reason.SECRET_NOT_FOUND, message)
    assert hub.requests == []


def test_token_file_for_a_local_file_is_refused(containers: Containers, tmp_path: Path) -> None:
    """A file on this machine has no host."""
    path = tmp_path / "repo" / "style.safetensors"
    failed(load(containers, str(path), "--token-file", path), Reason.INVALID_SPEC, "local files")
