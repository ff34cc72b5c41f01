"""A failing fetch of a Hub repo has a reason and leaves no wrong bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devkit.fakefiles import Faults
from devkit.fakehub import blob_id
from sd_api.reasons import Reason
from tests.support.loader.hubfetches import (
    NEEDED,
    REPO,
    UNET,
    downloaded,
    load,
    refusal,
)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(Faults(status=429), Reason.RATE_LIMITED, id="429"),
        pytest.param(
            Faults(status=429, headers={"Retry-After": "9999"}), Reason.RATE_LIMITED, id="429 long"
        ),
        pytest.param(Faults(status=500), Reason.SOURCE_UNREACHABLE, id="500"),
        pytest.param(Faults(status=503, fails=1), None, id="503 once"),
        pytest.param(
            Faults(status=200, redirect="/x"),
            Reason.SOURCE_NOT_FOUND,
            id="redirect to a missing page",
        ),
        pytest.param(
            Faults(redirect="https://10.0.0.1/"), Reason.ADDRESS_REFUSED, id="private address"
        ),
    ],
)
def test_hub_api_failures_have_their_reasons(hub, settings, into, faults, reason):
    """A failed request is repeated. A lasting failure ends the load with its reason."""
    hub.api_faults = faults
    if reason is None:
        load(settings, into)
    else:
        assert refusal(settings, into).reason is reason


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(Faults(cut_at=90_000), None, id="cut"),
        pytest.param(Faults(cut_at=90_000, reset=True), None, id="reset"),
        pytest.param(Faults(status=503, fails=1), None, id="503 once"),
        pytest.param(Faults(status=403), Reason.ACCESS_DENIED, id="403"),
        pytest.param(Faults(status=404), Reason.SOURCE_NOT_FOUND, id="404"),
        pytest.param(Faults(body=b"x" * 200_000), Reason.DIGEST_MISMATCH, id="other bytes"),
        pytest.param(Faults(body=b"u" * 199_999), Reason.DIGEST_MISMATCH, id="fewer bytes"),
        pytest.param(Faults(endless=True), Reason.DIGEST_MISMATCH, id="endless"),
        pytest.param(Faults(body=b"u" * 9, chunked=True), Reason.DIGEST_MISMATCH, id="short"),
    ],
)
def test_file_failures_have_their_reasons(hub, settings, into, faults, reason):
    """Each file is checked against the Hub's digest, and wrong bytes are deleted."""
    hub.faults[f"{REPO}/{UNET}"] = faults
    if reason is None:
        load(settings, into)
        assert downloaded(into) == NEEDED
        return
    error = refusal(settings, into)
    assert error.reason is reason
    assert not (into / "repo" / UNET).exists()
    if reason is Reason.DIGEST_MISMATCH:
        assert not (into / "repo" / f"{UNET}.part").exists()


def test_small_files_are_checked_by_their_blob_ids(hub, settings, into):
    """The Hub gives a git blob id and no SHA-256 for files outside LFS."""
    hub.faults[f"{REPO}/unet/config.json"] = Faults(body=b"[]")
    error = refusal(settings, into)
    assert error.reason is Reason.DIGEST_MISMATCH
    assert blob_id(b"[]") in error.message
    hub.faults.clear()
    load(settings, into)


def test_size_limit_applies_to_the_sum_of_all_files(hub, settings, into):
    """The load fails before it downloads any weights."""
    error = refusal(replace(settings, max_bytes=250_000), into)
    assert error.reason is Reason.TOO_LARGE
    assert hub.bytes_served < 10_000


def test_repo_larger_than_the_free_space_is_refused_early(hub, settings, into, monkeypatch):
    """The loader compares the sum of the file sizes with the free space first."""
    import os

    real = os.statvfs(into)
    free = os.statvfs_result((1, 1, *real[2:3], 1000, 1000, *real[5:]))
    monkeypatch.setattr("sd_loader.net.partial.os.statvfs", lambda _folder: free)
    assert refusal(settings, into).reason is Reason.INSUFFICIENT_STORAGE
    assert hub.bytes_served < 10_000


def test_response_that_is_not_the_hubs_is_refused(settings, into, hub):
    """The API's address may serve an HTML page or other JSON."""
    hub.links[f"/api/models/{REPO}/revision/main"] = (b"<html>", Faults())
    assert refusal(settings, into).reason is Reason.SOURCE_UNREACHABLE
    hub.links[f"/api/models/{REPO}/revision/main"] = (b'{"id": "x"}', Faults())
    assert refusal(settings, into).reason is Reason.SOURCE_UNREACHABLE


def test_unreachable_hub_is_named(settings, into):
    """The message names the Hub's address."""
    gone = replace(settings, hub_endpoint="http://127.0.0.1:1")
    error = refusal(gone, into)
    assert error.reason is Reason.SOURCE_UNREACHABLE
    assert "127.0.0.1:1" in error.message
