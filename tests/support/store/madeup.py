"""Loads made-up files through the real stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd_api.card import Card
from sd_api.load import LoadRequest, Owner, RemoveRequest
from sd_api.wire import LoadResult, Source
from sd_loader import acquire
from sd_loader.convert import run
from sd_loader.digests import blake3_of
from sd_loader.handover import Arrived, Converted, Fetched, FileDigest
from sd_loader.settings import Settings
from sd_loader.stages import convert_stage, fetch_stage, remove_stage
from tests.support.store.volumes import FILES, HASH, MODEL_ID, OWNER


class Parts:
    """A made-up source and conversion; tests can make them fail."""

    def __init__(self) -> None:
        self.downloads = 0
        self.content = b"partial no more"
        self.files = FILES
        self.arrived: dict[str, Arrived] = {}
        self.card = Card()
        self.word: str | None = None
        self.picture: bytes | None = None
        self.fetch_error: Exception | None = None
        self.convert_error: Exception | None = None

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> Parts:
        """Replace the stages' source and conversion until the test ends."""
        parts = cls()
        monkeypatch.setattr(acquire, "acquire", parts.fetch)
        monkeypatch.setattr(run, "convert", parts.convert)
        return parts

    def fetch(
        self, _request: LoadRequest, _client: object, into: Path, _report: object, **_: object
    ) -> Fetched:
        """Write the source file in two steps; `fetch_error` is raised between them."""
        file = into / "file"
        if not file.exists():
            self.downloads += 1
            file.write_bytes(b"part")
        if self.fetch_error is not None:
            raise self.fetch_error
        file.write_bytes(self.content)
        source = Source(size_bytes=15, format="ckpt")
        fetched = Fetched(
            kind="file", path="file", files=self.arrived, source=source, card=self.card
        )
        if self.picture is None:
            return fetched
        (into / "picture").write_bytes(self.picture)
        return fetched.model_copy(update={"picture": "picture"})

    def convert(
        self, fetched: Fetched, source_dir: Path, _conversion: object, out: Path, _report: object
    ) -> Converted:
        """Write the made-up files."""
        assert (source_dir / fetched.path).read_bytes() == self.content
        digests = {}
        for path, content in self.files.items():
            file = out / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            digests[path] = FileDigest(blake3_of(content), len(content))
            if self.convert_error is not None:
                raise self.convert_error
        warnings = ("one", "two")
        return Converted(files=digests, base_model="sd-1", word=self.word, warnings=warnings)


def request(owner: Owner = OWNER, load_hash: str = HASH) -> LoadRequest:
    """Return a request to load the made-up source."""
    return LoadRequest(
        owner=owner,
        model_id=MODEL_ID,
        model_type="custom_ckpt",
        url="https://example.com/m.ckpt",
        load_hash=load_hash,
    )


def fetched(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """Run the fetch container."""
    return fetch_stage(asked or request(), root, Settings(pod=pod), lambda _: None)


def converted(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """Run the convert container."""
    return convert_stage(asked or request(), root, Settings(pod=pod), lambda _: None)


def loaded(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """Run both containers of a load."""
    fetched(root, asked, pod)
    return converted(root, asked, pod)


def removed(root: Path, owner: Owner = OWNER, *, retain: bool = False) -> LoadResult:
    """Run the clean-up Job."""
    return remove_stage(RemoveRequest(owner=owner, model_id=MODEL_ID, retain=retain), root)
