"""Tests of sync_models: which sources have changed, according to a Hub and to plain servers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub, Repo
from sd_operator.gateway import sync
from sd_operator.gateway.settings import GatewaySettings

OLD_COMMIT = "f" * 40
WEIGHTS = b"weights" * 100
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def body(url: str | None, *, name: str = "sketch", status: Any = None, **fields: Any) -> Any:
    """Return a loaded model; `fields` are fields of its status.source or of its spec."""
    reported = {"commit", "sha256", "sizeBytes", "version"}
    source = {key: fields.pop(key) for key in reported & fields.keys()}
    conditions = [{"type": "Ready", "status": "True"}]
    metadata = {"name": name, "namespace": "art", "uid": f"uid-{name}"}
    spec = {"url": url, **fields} if url else fields
    status = {"conditions": conditions, "source": source} | (status or {})
    return {"metadata": metadata, "spec": spec, "status": status}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the repo org/name, which has the branches main and next."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    with FakeHub(separate_cdn=True) as hub:
        hub.add_repo("org/name", folder, branches=("main", "next"))
        yield hub


def moved(hub: FakeHub, *bodies: Any, **settings: Any) -> list[str]:
    """Return the names of the models whose source has changed."""
    hosts = frozenset({hub.host, hub.cdn_host})
    defaults = {"allowed_hosts": hosts, "hub_endpoint": hub.url}
    changed = asyncio.run(
        sync.moved(bodies, GatewaySettings(Path("keys"), **{**defaults, **settings}))
    )
    return [body["metadata"]["name"] for body in changed]


def head(repo: Repo) -> str:
    """Return the commit of the repo's branches."""
    return repo.commit()


@pytest.mark.parametrize(
    ("url", "fields", "has_moved"),
    [
        pytest.param("org/name", {"commit": OLD_COMMIT}, True, id="another commit"),
        pytest.param("org/name", {"commit": "head"}, False, id="the same commit"),
        pytest.param("org/name", {"commit": OLD_COMMIT, "gitRevision": "next"}, True, id="branch"),
        pytest.param(
            "org/name", {"commit": OLD_COMMIT, "gitRevision": "gone"}, False, id="missing branch"
        ),
        pytest.param(
            "org/name", {"commit": OLD_COMMIT, "gitRevision": OLD_COMMIT}, False, id="pinned"
        ),
        pytest.param("org/name", {}, False, id="loaded commit unknown"),
        pytest.param("org/missing", {"commit": OLD_COMMIT}, False, id="missing repo"),
        pytest.param("org/secret", {"commit": OLD_COMMIT}, False, id="private"),
        pytest.param("org/old-name", {"commit": "head"}, False, id="renamed"),
        pytest.param(
            "https://huggingface.co/org/name/",
            {"commit": OLD_COMMIT},
            True,
            id="url of the repo's page",
        ),
        pytest.param("org/name@next", {"commit": OLD_COMMIT}, True, id="branch in the url"),
        pytest.param(f"org/name@{OLD_COMMIT}", {"commit": OLD_COMMIT}, False, id="commit in it"),
        pytest.param(
            "hf.co/org/name/tree/gone",
            {"commit": OLD_COMMIT},
            False,
            id="page of a missing revision",
        ),
        pytest.param("bare-id", {"modelType": "api_trained"}, False, id="trained"),
    ],
)
def test_hub_repo_has_changed_if_its_branch_has_another_commit(
    hub: FakeHub, url: str, fields: dict[str, str], has_moved: bool
) -> None:
    """A repo whose current commit the Hub does not report counts as unchanged."""
    hub.add_repo("org/secret", hub.repos["org/name"].folder, private=True, token="hf_x")
    hub.renamed["org/old-name"] = "org/name"
    if fields.get("commit") == "head":
        fields = {**fields, "commit": head(hub.repos["org/name"])}
    assert moved(hub, body(url, **fields)) == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    ("loaded", "has_moved"),
    [
        ({"sha256": DIGEST, "sizeBytes": 700}, False),
        ({"sha256": "0" * 64, "sizeBytes": 700}, True),
        ({"sizeBytes": 700}, False),
        ({"sizeBytes": 699}, True),
        ({}, False),
    ],
)
def test_hub_file_has_changed_if_its_digest_or_size_differs(
    hub: FakeHub, loaded: dict[str, Any], has_moved: bool
) -> None:
    """A known digest decides, otherwise the size; if neither is known, the file is unchanged."""
    for url in (
        f"{hub.url}/org/name/resolve/main/model.safetensors",
        "https://huggingface.co/org/name/blob/main/model.safetensors",
        "hf://org/name/model.safetensors",
    ):
        assert moved(hub, body(url, **loaded)) == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    ("faults", "loaded", "has_moved"),
    [
        pytest.param({}, {"sizeBytes": 700}, False, id="same size"),
        pytest.param({}, {"sizeBytes": 1}, True, id="another size"),
        pytest.param({"etag": DIGEST}, {"sha256": "0" * 64}, True, id="another digest"),
        pytest.param({"etag": DIGEST}, {"sha256": DIGEST, "sizeBytes": 1}, False, id="same digest"),
        pytest.param({"etag": "opaque"}, {"sha256": DIGEST}, False, id="ETag without a digest"),
        pytest.param({"status": 403, "fails": None}, {"sizeBytes": 1}, False, id="status 403"),
        pytest.param(
            {"headers": {"Content-Type": "text/html"}}, {"sizeBytes": 1}, False, id="login page"
        ),
        pytest.param(
            {"headers": {"Content-Encoding": "gzip"}}, {"sizeBytes": 1}, False, id="compressed"
        ),
    ],
)
def test_link_has_changed_if_its_digest_or_size_differs(
    hub: FakeHub, faults: dict[str, Any], loaded: dict[str, Any], has_moved: bool
) -> None:
    """The digest has precedence over the size; if neither is known, the file is unchanged."""
    url = hub.serve_file("/model.ckpt", WEIGHTS, **faults)
    assert moved(hub, body(url, **loaded)) == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    ("url", "loaded", "has_moved"),
    [
        pytest.param("https://civitai.com/models/7/cat", "7@70+700", True, id="a newer version"),
        pytest.param(
            "https://civitai.com/models/7",
            "7@71+700",
            False,
            id="the same version",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://civitai.com/models/7",
            "70",
            True,
            id="model and file unknown",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://civitai.com/models/7",
            None,
            False,
            id="loaded version unknown",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://civitai.com/models/7", "x", False, id="another form", marks=pytest.mark.slow
        ),
        pytest.param("https://civitai.com/models/7?modelVersionId=70", "7@70", False, id="pinned"),
        pytest.param(
            "urn:air:sd1:lora:civitai:7@70", "7@70", False, id="an AIR", marks=pytest.mark.slow
        ),
        pytest.param(
            "https://civitai.com/models/8",
            "8@70",
            False,
            id="no such model",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_page_of_civitai_has_changed_if_the_model_has_a_newer_version(
    hub: FakeHub, url: str, loaded: str | None, has_moved: bool
) -> None:
    """The model has changed if the first version that Civitai lists is not the loaded one."""
    versions = [{"id": "x"}, None, {"id": 71}, {"id": 70}]
    hub.serve_file("/api/v1/models/7", json.dumps({"modelVersions": versions}).encode())
    changed = moved(hub, body(url, version=loaded), civitai_endpoint=f"{hub.url}/")
    assert changed == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    "answer",
    [
        b'{"modelVersions": [{}, 7]}',
        *(
            pytest.param(answer, marks=pytest.mark.slow)
            for answer in (b"<html>", b"[]", b"{}", b'{"modelVersions": 7}')
        ),
    ],
)
def test_model_whose_versions_are_not_reported_counts_as_unchanged(
    hub: FakeHub, answer: bytes
) -> None:
    """A model counts as unchanged if Civitai's answer cannot be read; no error is raised."""
    hub.serve_file("/api/v1/models/7", answer)
    page = body("https://civitai.com/models/7", version="7@70+1")
    assert moved(hub, page, civitai_endpoint=hub.url) == []


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"conditions": []}, id="not loaded"),
        pytest.param({"conditions": [{"type": "Ready", "status": "False"}]}, id="not ready"),
        pytest.param(
            {
                "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "Reconciling", "status": "True"},
                ]
            },
            id="loading",
        ),
    ],
)
def test_only_idle_models_are_checked(hub: FakeHub, status: Any) -> None:
    """The source of a model that is not Ready, or that is being loaded, is not checked."""
    assert moved(hub, body("org/name", commit=OLD_COMMIT, status=status)) == []
    assert hub.requests == []


def test_models_with_one_source_share_one_request(hub: FakeHub) -> None:
    """Twenty models of one repo need one request."""
    many = [body("org/name", name=f"m{number}", commit=OLD_COMMIT) for number in range(20)]
    assert len(moved(hub, *many)) == 20
    assert len(hub.requests) == 1


def test_private_addresses_are_not_called(hub: FakeHub) -> None:
    """Users choose the urls, so neither a url nor its redirect may lead to a private address."""
    inside = hub.serve_file("/inside.ckpt", WEIGHTS)
    public = hub.serve_file("/public.ckpt", b"", redirect="http://localhost:1/x")
    loaded = {"sizeBytes": 1}
    assert moved(hub, body(inside, **loaded), allowed_hosts=frozenset(), hub_endpoint=None) == []
    assert hub.requests == []
    assert moved(hub, body(public, **loaded)) == []
    assert len(hub.requests) == 1
