"""A Hugging Face Hub on loopback; it also serves plain links, as `fakefiles` does.

For example:

    with FakeHub() as hub:
        hub.add_repo("org/name", folder, gated=True, token="hf_token")
        HfApi(endpoint=hub.url).model_info("org/name", token="hf_token")

It serves folders as repos through the Hub's own HTTP API (model info, tree, resolve, LFS redirects,
gated and private repos), so tests use the real client. It needs only the standard library, because
the demo uses it too. To run it as a program:

    python -m devkit.fakehub --repos DIR --files DIR [--port N]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from devkit.fakefiles import Faults, FileServer, json_answer
from devkit.loopback import Answer, Request

LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx", ".pt")


@dataclass(frozen=True)
class Repo:
    """A folder that is served as a repo."""

    repo_id: str
    folder: Path
    faults: Faults
    gated: bool = False
    private: bool = False
    token: str | None = None
    """The token that a gated or private repo requires."""
    card_data: object = None
    """The front matter of the repo's README.md, as the API returns it; any JSON."""
    branches: tuple[str, ...] = ("main",)
    extra_names: tuple[str, ...] = ()
    """Paths that the repo's model info lists although the folder does not have the files."""
    former: Mapping[str, Path] = field(default_factory=dict)
    """The folders of previous commits, by commit."""

    def at(self, revision: str) -> Repo:
        """Return the repo at a previous commit; for any other revision, return the present repo."""
        folder = self.former.get(revision)
        return self if folder is None else replace(self, folder=folder)

    def has(self, revision: str) -> bool:
        """Return whether the repo has this branch or commit."""
        return revision in (*self.branches, *self.former, self.commit())

    def files(self) -> dict[str, Path]:
        """Return the files by their paths in the repo."""
        return {
            path.relative_to(self.folder).as_posix(): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def commit(self) -> str:
        """Return the present commit's id, which depends on the content only."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files().items():
            digest.update(f"{name} {sha256(path)}\n".encode())
        return digest.hexdigest()


class FakeHub(FileServer):
    """Serves repos and links until its context ends."""

    def __init__(
        self, *, address: str = "127.0.0.1", port: int = 0, separate_cdn: bool = False
    ) -> None:
        super().__init__(address=address, port=port)
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        """The present names of renamed repos, by their previous names."""
        self.faults: dict[str, Faults] = {}
        """The faults of single files, by `repo_id/path`; they replace the repo's faults."""
        self.api_faults = Faults()
        """The faults of all paths below /api."""
        self.login = ""
        """USER:PASSWORD that requests need, as at a mirror, unless they have a repo's token. Empty:
        they need none."""
        self.cdn_host = self.add_origin() if separate_cdn else self.host
        """The host and port of LFS files; with `separate_cdn` another origin, as on a real Hub."""

    def add_repo(self, repo_id: str, folder: Path, **options: Any) -> None:
        """Serve a folder as a repo; options are fields of Repo, or of Faults for all its files."""
        own = {name: options.pop(name) for name in list(options) if name in Repo.__annotations__}
        self.repos[repo_id] = Repo(repo_id, folder, Faults(**options), **own)

    def other(self, request: Request) -> Answer:
        """Answer a request for a repo or the API as the Hub does."""
        path = request.path
        for former, present in self.renamed.items():
            if f"/{former}/" in path:
                to = quote(path.replace(f"/{former}/", f"/{present}/", 1))
                return Answer(307, headers={"Location": f"{to}?{request.query}"})
        if path.startswith("/api/models/"):
            return self._api(request)
        if path.startswith("/cdn/"):
            at, _, name = path.removeprefix("/cdn/").partition("//")
            repo_id, _, revision = at.partition("@")
            return self._repo_file(request, self.repos[repo_id].at(revision), name)
        if "/resolve/" in path:
            return self._resolve(request)
        return super().other(request)

    def _api(self, request: Request) -> Answer:
        failed = self.failure(request, "api", self.api_faults)
        if failed is not None:
            return failed
        path = request.path.removeprefix("/api/models/")
        repo_id, kind, rest = path, "", ""
        for kind in ("revision", "tree"):
            repo_id, found, rest = path.partition(f"/{kind}/")
            if found:
                break
        repo = self._allowed(request, repo_id, metadata_only=True)
        if isinstance(repo, Answer):
            return repo
        revision = rest or "main"
        if not repo.has(revision):
            return _no_revision(revision)
        if kind == "tree":
            return json_answer(
                200, [_tree_entry(name, file) for name, file in repo.files().items()]
            )
        blobs = "blobs" in parse_qs(request.query)
        siblings = [_sibling(name, file, blobs=blobs) for name, file in repo.files().items()]
        siblings += [{"rfilename": name, "size": 1} for name in repo.extra_names]
        info: dict[str, Any] = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": repo.commit()}
        if repo.card_data is not None:
            info["cardData"] = repo.card_data
        gated = "auto" if repo.gated else False
        return json_answer(
            200, {**info, "private": repo.private, "gated": gated, "tags": [], "siblings": siblings}
        )

    def _allowed(self, request: Request, repo_id: str, *, metadata_only: bool) -> Repo | Answer:
        """Return the repo if the caller may read it, otherwise the Hub's error response."""
        repo = self.repos.get(repo_id)
        authorization = request.headers.get("authorization")
        known = {f"Bearer {repo.token}" for repo in self.repos.values() if repo.token}
        if self.login:
            known.add(f"Basic {base64.b64encode(self.login.encode()).decode()}")
        if (self.login or authorization is not None) and authorization not in known:
            return _error(401, None, "Invalid credentials in Authorization header")
        if repo is None or (repo.private and authorization != f"Bearer {repo.token}"):
            if authorization is None:
                return _error(401, None, "Invalid username or password.")
            return _error(404, "RepoNotFound", "Repository not found")
        if repo.gated and not metadata_only and authorization is None:
            return _error(401, "GatedRepo", "Access to this model is restricted")
        if repo.gated and not metadata_only and authorization != f"Bearer {repo.token}":
            return _error(403, "GatedRepo", "You are not in the authorized list")
        return repo

    def _resolve(self, request: Request) -> Answer:
        repo_id, _, rest = request.path.removeprefix("/").partition("/resolve/")
        repo = self._allowed(request, repo_id, metadata_only=False)
        if isinstance(repo, Answer):
            return repo
        revision, _, name = rest.partition("/")
        if not repo.has(revision):
            return _no_revision(revision)
        repo = repo.at(revision)
        file = repo.files().get(name)
        if file is None:
            return _error(404, "EntryNotFound", "Entry not found")
        if name.endswith(LFS_SUFFIXES):
            at = f"{repo_id}@{revision}"
            cdn = f"http://{self.cdn_host}/cdn/{at}//{name}?signature=secret"
            linked = {"X-Linked-Etag": f'"{sha256(file)}"', "X-Linked-Size": str(size_of(file))}
            return Answer(302, headers={**linked, "X-Repo-Commit": repo.commit(), "Location": cdn})
        return self._repo_file(request, repo, name)

    def _repo_file(self, request: Request, repo: Repo, name: str) -> Answer:
        key = f"{repo.repo_id}/{name}"
        faults = self.faults.get(key, repo.faults)
        failed = self.failure(request, key, faults)
        if failed is not None:
            return failed
        body = repo.files()[name].read_bytes() if faults.body is None else faults.body
        answer = self.file_answer(request, key, body, faults, etag=blob_id(body))
        return answer.but(X_Repo_Commit=repo.commit())


def _error(status: int, code: str | None, message: str) -> Answer:
    headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
    return json_answer(status, {"error": message}, **headers)


def _no_revision(revision: str) -> Answer:
    return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def _tree_entry(name: str, file: Path) -> dict[str, Any]:
    sibling = _sibling(name, file, blobs=True)
    entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
    if "lfs" in sibling:
        entry["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
    return entry


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
    """Return the size of a file in bytes."""
    return path.stat().st_size


def sha256(path: Path) -> str:
    """Return a file's SHA-256; it is computed once per version of the file."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _sha256(path: Path, *_version: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob_id(content: bytes) -> str:
    """Return the id that git gives this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def main() -> None:
    """Serve the folders of the command line until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repos", type=Path, help="folder that contains the repos as ORG/NAME")
    parser.add_argument("--files", type=Path, help="folder whose files are served below /files/")
    parser.add_argument("--port", type=int, default=0, help="port; 0 chooses a free one")
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
