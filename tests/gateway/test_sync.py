"""sync_models: which sources have moved, asked of a Hub and of plain servers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub, Repo
from sd_operator.gateway import sync
from sd_operator.gateway.settings import Settings

FORMER = "f" * 40
WEIGHTS = b"weights" * 100
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def body(url: str | None, *, name: str = "sketch", status: Any = None, **more: Any) -> Any:
    """A loaded model; more is of its source or its spec."""
    source = {key: more.pop(key) for key in ("commit", "sha256", "sizeBytes") if key in more}
    conditions = [{"type": "Ready", "status": "True"}]
    metadata = {"name": name, "namespace": "art", "uid": f"uid-{name}"}
    spec = {"url": url, **more} if url else more
    status = {"conditions": conditions, "source": source} | (status or {})
    return {"metadata": metadata, "spec": spec, "status": status}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with a repo org/name, whose branches are main and next."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    with FakeHub(separate_cdn=True) as made:
        made.add_repo("org/name", folder, branches=("main", "next"))
        yield made


def moved(hub: FakeHub, *bodies: Any, **settings: Any) -> list[str]:
    """The names of those whose source has moved."""
    hosts = frozenset({hub.host, hub.cdn_host})
    given = {"allowed_hosts": hosts, "hub_endpoint": hub.url, **settings}
    found = asyncio.run(sync.moved(bodies, Settings(Path("keys"), **given)))
    return [one["metadata"]["name"] for one in found]


def head(repo: Repo) -> str:
    """The commit that its branches are at."""
    return repo.commit()


@pytest.mark.parametrize(
    ("url", "more", "has_moved"),
    [
        pytest.param("org/name", {"commit": FORMER}, True, id="another commit"),
        pytest.param("org/name", {"commit": "head"}, False, id="the same commit"),
        pytest.param("org/name", {"commit": FORMER, "gitRevision": "next"}, True, id="branch"),
        pytest.param("org/name", {"commit": FORMER, "gitRevision": "gone"}, False, id="no branch"),
        pytest.param("org/name", {"commit": FORMER, "gitRevision": FORMER}, False, id="pinned"),
        pytest.param("org/name", {}, False, id="commit unknown"),
        pytest.param("org/missing", {"commit": FORMER}, False, id="no such repo"),
        pytest.param("org/secret", {"commit": FORMER}, False, id="private"),
        pytest.param("org/former", {"commit": "head"}, False, id="renamed"),
        pytest.param(
            "https://huggingface.co/org/name/", {"commit": FORMER}, True, id="the repo's page"
        ),
        pytest.param("bare-id", {"modelType": "api_trained"}, False, id="trained"),
    ],
)
def test_a_hub_repo_has_moved_when_its_branch_has(
    hub: FakeHub, url: str, more: dict[str, str], has_moved: bool
) -> None:
    """And not where the Hub does not say."""
    hub.add_repo("org/secret", hub.repos["org/name"].folder, private=True, token="hf_x")
    hub.renamed["org/former"] = "org/name"
    if more.get("commit") == "head":
        more = {**more, "commit": head(hub.repos["org/name"])}
    assert moved(hub, body(url, **more)) == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    ("known", "has_moved"),
    [
        ({"sha256": DIGEST, "sizeBytes": 700}, False),
        ({"sha256": "0" * 64, "sizeBytes": 700}, True),
        ({"sizeBytes": 700}, False),
        ({"sizeBytes": 699}, True),
        ({}, False),
    ],
)
def test_a_file_of_the_hub_has_moved_when_its_digest_has(
    hub: FakeHub, known: dict[str, Any], has_moved: bool
) -> None:
    """The Hub tells digest and size in its redirect."""
    url = f"{hub.url}/org/name/resolve/main/model.safetensors"
    assert moved(hub, body(url, **known)) == (["sketch"] if has_moved else [])


@pytest.mark.parametrize(
    ("faults", "known", "has_moved"),
    [
        pytest.param({}, {"sizeBytes": 700}, False, id="the same size"),
        pytest.param({}, {"sizeBytes": 1}, True, id="another size"),
        pytest.param({"etag": DIGEST}, {"sha256": "0" * 64}, True, id="another digest"),
        pytest.param({"etag": DIGEST}, {"sha256": DIGEST, "sizeBytes": 1}, False, id="digest"),
        pytest.param({"etag": "opaque"}, {"sha256": DIGEST}, False, id="a tag that is no digest"),
        pytest.param({"status": 403, "fails": None}, {"sizeBytes": 1}, False, id="refused"),
        pytest.param(
            {"headers": {"Content-Type": "text/html"}}, {"sizeBytes": 1}, False, id="login page"
        ),
        pytest.param(
            {"headers": {"Content-Encoding": "gzip"}}, {"sizeBytes": 1}, False, id="compressed"
        ),
    ],
)
def test_a_link_has_moved_when_its_server_says_so(
    hub: FakeHub, faults: dict[str, Any], known: dict[str, Any], has_moved: bool
) -> None:
    """By digest before size; what cannot be told is left alone."""
    url = hub.serve_file("/model.ckpt", WEIGHTS, **faults)
    assert moved(hub, body(url, **known)) == (["sketch"] if has_moved else [])


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
def test_only_what_is_loaded_and_at_rest_is_asked_for(hub: FakeHub, status: Any) -> None:
    """Others are about to read their source anyway."""
    assert moved(hub, body("org/name", commit=FORMER, status=status)) == []
    assert hub.requests == []


def test_a_source_is_asked_once(hub: FakeHub) -> None:
    """However many models come from it."""
    many = [body("org/name", name=f"m{number}", commit=FORMER) for number in range(20)]
    assert len(moved(hub, *many)) == 20
    assert len(hub.requests) == 1


def test_private_addresses_are_not_called(hub: FakeHub) -> None:
    """The urls are users'; a redirect does not help."""
    inside = hub.serve_file("/inside.ckpt", WEIGHTS)
    public = hub.serve_file("/public.ckpt", b"", redirect="http://localhost:1/x")
    known = {"sizeBytes": 1}
    assert moved(hub, body(inside, **known), allowed_hosts=frozenset(), hub_endpoint=None) == []
    assert hub.requests == []
    assert moved(hub, body(public, **known)) == []
    assert len(hub.requests) == 1
