"""A Hugging Face Hub on loopback, which also serves plain links (see `fakefiles`).

It speaks the Hub's own HTTP API (model info, tree, resolve, LFS redirects, gated and private repos)
to the real client, from folders. Standard library only: the demo uses it too.
As a program: `python fakehub.py --repos DIR --files DIR [--port N]`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from devkit.fakefiles import Faults, FileServer, Handler

LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx", ".pt")


@dataclass(frozen=True)
class Repo:
    """A folder served as a repo; gated and private ones ask for the token.

    former: what the repo's earlier commits held.
    """

    repo_id: str
    folder: Path
    faults: Faults
    gated: bool = False
    private: bool = False
    token: str | None = None
    branches: tuple[str, ...] = ("main",)
    extra_names: tuple[str, ...] = ()
    former: Mapping[str, Path] = field(default_factory=dict)

    def at(self, revision: str) -> Repo:
        """The repo as it was at this commit, or as it is now."""
        folder = self.former.get(revision)
        return self if folder is None else replace(self, folder=folder)

    def files(self) -> dict[str, Path]:
        """The files by their paths in the repo."""
        return {
            path.relative_to(self.folder).as_posix(): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def commit(self) -> str:
        """A commit's id: made of the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files().items():
            digest.update(f"{name} {sha256(path)}\n".encode())
        return digest.hexdigest()


class FakeHub(FileServer):
    """Serves until it is left.

    separate_cdn: LFS files come from another origin, as the real Hub's do. renamed: the present
    names of repos by their former ones. faults: of single files by `repo_id/path`. api_faults: of
    everything below /api.
    """

    def __init__(self, *, port: int = 0, separate_cdn: bool = False) -> None:
        super().__init__(port=port, handler=_HubHandler)
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.faults: dict[str, Faults] = {}
        self.api_faults = Faults()
        self.cdn_host = self.add_origin() if separate_cdn else self.host

    def add_repo(self, repo_id: str, folder: Path, **options: Any) -> None:
        """Serve a folder as a repo; options are Repo's and, for every file, Faults'."""
        own = {name: options.pop(name) for name in list(options) if name in Repo.__annotations__}
        self.repos[repo_id] = Repo(repo_id, folder, Faults(**options), **own)


class _HubHandler(Handler):
    def other(self, path: str, query: str) -> None:
        for former, present in self._hub.renamed.items():
            if f"/{former}/" in path:
                to = quote(path.replace(f"/{former}/", f"/{present}/", 1))
                self._send(307, {"Location": f"{to}?{query}", "Content-Length": "0"})
                return
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"), parse_qs(query))
        elif path.startswith("/cdn/"):
            at, _, name = path.removeprefix("/cdn/").partition("//")
            repo_id, _, revision = at.partition("@")
            self._repo_file(self._hub.repos[repo_id].at(revision), name)
        elif "/resolve/" in path:
            self._resolve(path)
        else:
            super().other(path, query)

    @property
    def _hub(self) -> FakeHub:
        assert isinstance(self.server.files, FakeHub)
        return self.server.files

    def _api(self, path: str, query: Mapping[str, list[str]]) -> None:
        if self.faulty("api", self._hub.api_faults):
            return
        repo_id, kind, rest = path, "", ""
        for kind in ("revision", "tree"):
            repo_id, found, rest = path.partition(f"/{kind}/")
            if found:
                break
        repo = self._repo(repo_id, metadata_only=True)
        if repo is None or not self._has_revision(repo, rest or "main"):
            return
        if kind == "tree":
            self.send_json(
                200, [self._tree_entry(name, file) for name, file in repo.files().items()]
            )
            return
        blobs = "blobs" in query
        siblings = [_sibling(name, file, blobs=blobs) for name, file in repo.files().items()]
        siblings += [{"rfilename": name, "size": 1} for name in repo.extra_names]
        info = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": repo.commit()}
        gated = "auto" if repo.gated else False
        self.send_json(
            200, {**info, "private": repo.private, "gated": gated, "tags": [], "siblings": siblings}
        )

    @staticmethod
    def _tree_entry(name: str, file: Path) -> dict[str, Any]:
        sibling = _sibling(name, file, blobs=True)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            entry["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
        return entry

    def _repo(self, repo_id: str, *, metadata_only: bool) -> Repo | None:
        """The repo, if the caller may see it; answers as the Hub does if not."""
        repo = self._hub.repos.get(repo_id)
        authorization = self.headers.get("Authorization")
        known = {f"Bearer {repo.token}" for repo in self._hub.repos.values() if repo.token}
        if authorization is not None and authorization not in known:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and authorization != f"Bearer {repo.token}"):
            if authorization is None:
                self._error(401, None, "Invalid username or password.")
            else:
                self._error(404, "RepoNotFound", "Repository not found")
        elif repo.gated and not metadata_only and authorization is None:
            self._error(401, "GatedRepo", "Access to this model is restricted")
        elif repo.gated and not metadata_only and authorization != f"Bearer {repo.token}":
            self._error(403, "GatedRepo", "You are not in the authorized list")
        else:
            return repo
        return None

    def _has_revision(self, repo: Repo, revision: str) -> bool:
        if revision in (*repo.branches, *repo.former, repo.commit()):
            return True
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _resolve(self, path: str) -> None:
        repo_id, _, rest = path.removeprefix("/").partition("/resolve/")
        repo = self._repo(repo_id, metadata_only=False)
        revision, _, name = rest.partition("/")
        if repo is None or not self._has_revision(repo, revision):
            return
        repo = repo.at(revision)
        file = repo.files().get(name)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found")
        elif name.endswith(LFS_SUFFIXES):
            at = f"{repo_id}@{revision}"
            cdn = f"http://{self._hub.cdn_host}/cdn/{at}//{name}?signature=secret"
            linked = {"X-Linked-Etag": f'"{sha256(file)}"', "X-Linked-Size": str(size_of(file))}
            commit = {"X-Repo-Commit": repo.commit(), "Location": cdn, "Content-Length": "0"}
            self._send(302, {**linked, **commit})
        else:
            self._repo_file(repo, name)

    def _repo_file(self, repo: Repo, name: str) -> None:
        key = f"{repo.repo_id}/{name}"
        faults = self._hub.faults.get(key, repo.faults)
        if self.faulty(key, faults):
            return
        body = repo.files()[name].read_bytes() if faults.body is None else faults.body
        self.send_file(key, body, faults, etag=blob_id(body), commit=repo.commit())

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send_body(status, headers, json.dumps({"error": message}).encode())


def _sibling(name: str, file: Path, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    if not name.endswith(LFS_SUFFIXES):
        return {"rfilename": name, "size": size_of(file), "blobId": blob_id(file.read_bytes())}
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(file)}\n"
        f"size {size_of(file)}\n"
    ).encode()
    lfs = {"sha256": sha256(file), "size": size_of(file), "pointerSize": len(pointer)}
    return {"rfilename": name, "size": size_of(file), "blobId": blob_id(pointer), "lfs": lfs}


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def sha256(path: Path) -> str:
    """A file's digest."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _sha256(path: Path, *_version: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob_id(content: bytes) -> str:
    """The id that git gives this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def main() -> None:
    """Serve folders until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=Path, help="folder of ORG/NAME folders")
    parser.add_argument("--files", type=Path, help="folder served under /files/")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with FakeHub(port=arguments.port) as hub:
        for folder in sorted(arguments.repos.glob("*/*")) if arguments.repos else ():
            hub.add_repo(f"{folder.parent.name}/{folder.name}", folder)
        for path in sorted(arguments.files.iterdir()) if arguments.files else ():
            hub.serve_file(f"/files/{path.name}", path)
        print(hub.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
