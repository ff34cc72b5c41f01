"""Tests of which files of a Hub repo are downloaded, and from which commit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakefiles import Faults
from sd_api.reasons import Reason
from sd_api.wire import Progress
from sd_loader.errors import LoaderError
from sd_loader.net.patience import Retries
from sd_loader.settings import Settings
from tests.support.loader.arrivals import arrived_in
from tests.support.loader.fetches import fetch
from tests.support.loader.hubfetches import (
    NEEDED,
    REPO,
    UNET,
    downloaded,
    load,
    refusal,
)
from tests.support.models.conversions import load_request


def test_only_needed_files_are_downloaded(hub, settings, into):
    """The loader downloads one set of weights, the configs and the tokenizer from one commit."""
    seen: list[Progress] = []
    request = load_request(model_type="huggingface", url=REPO)
    fetched = fetch(request, settings, into, seen.append)
    assert downloaded(into) == NEEDED
    size = sum(len(content) for content in NEEDED.values())
    assert (fetched.kind, fetched.path) == ("repo", "repo")
    assert fetched.files == arrived_in(into / "repo", into, NEEDED)
    assert fetched.source.commit == hub.repos[REPO].commit()
    assert fetched.source.size_bytes == size
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (size, size)
    assert [progress.bytes_done for progress in seen] == sorted(
        progress.bytes_done for progress in seen
    )
    assert hub.bytes_served == size
    requested = [item.path for item in hub.requests if "/resolve/" in item.path]
    assert all(f"/resolve/{fetched.source.commit}/" in path for path in requested)
    assert {item.path.split("/")[1] for item in hub.requests} == {"api", "org", "cdn"}
    assert all(item.headers["user-agent"].startswith("sd-loader/") for item in hub.requests)


def test_second_attempt_downloads_only_missing_bytes(hub, settings, into):
    """A partial file is continued. A complete repo costs one request."""
    hub.faults[f"{REPO}/{UNET}"] = Faults(cut_at=150_000, cuts=99)
    give_up = Retries(delays=())
    request = load_request(model_type="huggingface", url=REPO)
    with pytest.raises(LoaderError):
        fetch(request, settings, into, retries=give_up)
    hub.faults.clear()
    load(settings, into)
    assert hub.bytes_served == sum(len(content) for content in NEEDED.values())
    hub.forget()
    load(settings, into)
    assert [item.path for item in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_moved_branch_is_downloaded_again(hub, settings, into, folder):
    """Files of the old commit are removed, also those that the new commit does not have."""
    load(settings, into)
    (folder / UNET).rename(folder / UNET.replace(".safetensors", ".fp16.safetensors"))
    (folder / "vae/config.json").write_text("[]")
    fetched = load(settings, into)
    assert fetched.source.commit == hub.repos[REPO].commit()
    files = downloaded(into)
    assert files["vae/config.json"] == "[]"
    assert UNET not in files
    assert len(files) == len(NEEDED)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        pytest.param({}, {"unet": "diffusion_pytorch_model.safetensors"}, id="no precision"),
        pytest.param(
            {"revision": "fp16"},
            {"unet": "diffusion_pytorch_model.fp16.safetensors", "vae": "diffusion_pytorch_model"},
            id="the fp16 variant",
        ),
        pytest.param({"revision": "fp32"}, {"unet": "diffusion_pytorch_model.safe"}, id="plain"),
    ],
)
def test_variant_matches_the_requested_precision(settings, into, fields, names):
    """For a component without that variant, the plain file is downloaded."""
    load(settings, into, **fields)
    for component, start in names.items():
        weights = [name for name in downloaded(into) if name.startswith(f"{component}/diffusion")]
        assert len(weights) == 1
        assert weights[0].startswith(f"{component}/{start}")


def test_git_revision_may_contain_slashes(hub, settings, into):
    """An unknown revision is named in the message."""
    hub.repos[REPO] = replace(hub.repos[REPO], branches=("main", "refs/pr/1"))
    assert load(settings, into, git_revision="refs/pr/1").source.commit
    error = refusal(settings, into, git_revision="nowhere")
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "nowhere" in error.message


def test_fake_hub_satisfies_the_real_client(hub, tmp_path):
    """The real huggingface_hub client downloads a snapshot from the fake Hub."""
    from huggingface_hub import set_client_factory, snapshot_download

    from sd_loader.net.client import HttpClient

    allowed = frozenset({hub.host, hub.cdn_host})
    set_client_factory(HttpClient(Settings(allowed_hosts=allowed)).session)
    folder = snapshot_download(
        REPO,
        endpoint=hub.url,
        local_dir=tmp_path / "snapshot",
        cache_dir=tmp_path / "cache",
        token=False,
        allow_patterns=["unet/*"],
    )
    assert (Path(folder) / UNET).read_text() == NEEDED[UNET]


@pytest.mark.parametrize(
    "url",
    [
        f"{REPO}@v2",
        f" hf://{REPO}@v2\n",
        f"https://huggingface.co/{REPO}/tree/v2?library=diffusers",
        f"http://hf.co/{REPO}/tree/v2/",
        f"huggingface.co/{REPO}/commits/v2",
    ],
)
@pytest.mark.parametrize("git_revision", [None, "v2"])
def test_url_may_name_the_revision(hub, settings, into, url, git_revision):
    """The repo is fetched from the mirror at this revision, whatever the form of the url."""
    hub.repos[REPO] = replace(hub.repos[REPO], branches=("v2",))
    load(settings, into, url=url, git_revision=git_revision)
    assert downloaded(into) == NEEDED
    assert hub.requests[0].path == f"/api/models/{REPO}/revision/v2"


def test_url_with_another_revision_than_the_spec_is_refused(hub, settings, into):
    """The load fails before it sends a request."""
    error = refusal(settings, into, url=f"{REPO}@v1", git_revision="v2")
    assert error.reason is Reason.INVALID_SPEC
    assert error.message == "spec.url links to v1, but spec.gitRevision is v2; remove one of them"
    assert hub.requests == []
