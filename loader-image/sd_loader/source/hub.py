"""A repo of the Hugging Face Hub or a mirror of it, or one file of it, pinned to a commit.

`hub_api` resolves the repo and names its files' urls; the bytes come through the same session, but
by our own download: `huggingface_hub`'s own keeps no partial file for the next Pod, sleeps for as
long as a server's Retry-After says, and does not stop where a file must end.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_api.wire import Progress, Source, Stage
from sd_loader.diffusers_repo.component_files import (
    RepoFile,
    choose_component,
    choose_file,
    choose_files,
    component_folder,
    holds,
    replaced,
    require_pipeline,
)
from sd_loader.diffusers_repo.index import (
    CONFIG_NAME,
    INDEX_NAME,
    MAX_JSON_BYTES,
    SINGLE,
    parse_component,
    parse_pipeline,
)
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet
from sd_loader.handover import Fetched
from sd_loader.net.download import Downloader, Got, Wanted
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.partial import ensure_space, file_of
from sd_loader.net.transport import PACE, Pace
from sd_loader.progress import Report
from sd_loader.settings import Settings
from sd_loader.source.hub_api import Repo, hub_session, hub_token, resolve
from sd_loader.source.link import FILE_NAME, check_link, file_format, refuse_what_cannot_load
from sd_loader.source.locate import HubFile, repo_id_of

FOLDER_NAME = "repo"
_SMALL = (".json", ".txt")


def fetch_repo(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> Fetched:
    """Download what is needed of the repo, or finish its download."""
    check_link(settings.hub_endpoint, settings)
    whole = request.model_type is ModelType.HUGGINGFACE
    if whole:
        _refuse_digest(request)
    repo_id = repo_id_of(request.url, settings.hub_endpoint)
    revision = request.git_revision or "main"
    with _asked(repo_id, revision, request, settings, retries, pace) as (repo, downloader):
        copy = _Copy(repo, into / FOLDER_NAME, downloader, report)
        if request.model_type in SINGLE:
            folder = component_folder(repo.files, SINGLE[request.model_type][0])
            if folder is not None:
                return copy.fetch_component(folder, request)
        if whole and INDEX_NAME in repo.files:
            return copy.fetch_pipeline(request)
        file = choose_file(
            repo.files,
            request.model_type,
            request.revision,
            safetensors_only=bool(request.from_safetensors),
        )
        return _fetch_one(file, copy, request, into / FILE_NAME)


def fetch_components(
    components: Sequence[str],
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> Fetched:
    """Download some components of a pipeline's repo, or finish their download."""
    check_link(settings.hub_endpoint, settings)
    repo_id = repo_id_of(request.url, settings.hub_endpoint)
    with _asked(repo_id, "main", request, settings, retries, pace) as (repo, downloader):
        require_pipeline(list(repo.files))
        copy = _Copy(repo, into / FOLDER_NAME, downloader, report)
        return copy.fetch_pipeline(request, components)


def fetch_chosen(
    repo_id: str,
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    wanted: Callable[[str], bool],
    *,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> None:
    """Download the files of a repo's main branch whose paths are wanted."""
    check_link(settings.hub_endpoint, settings)
    into.mkdir(exist_ok=True)
    with _asked(repo_id, "main", request, settings, retries, pace) as (repo, downloader):
        copy = _Copy(repo, into, downloader, report)
        copy.fetch_all([file for path, file in sorted(repo.files.items()) if wanted(path)])


def _refuse_digest(request: LoadRequest) -> None:
    if request.sha256 is not None:
        raise LoaderError(
            Reason.INVALID_SPEC, "spec.sha256 is for single files; a repo is pinned by gitRevision"
        )


def fetch_file(
    file: HubFile,
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> Fetched:
    """Download one file of a repo, or finish its download."""
    check_link(settings.hub_endpoint, settings)
    if request.git_revision not in (None, file.revision):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.gitRevision is {snippet(request.git_revision or '')}, but spec.url links to"
            f" {snippet(file.revision)}: leave one of them out",
        )
    with _asked(file.repo_id, file.revision, request, settings, retries, pace) as (
        repo,
        downloader,
    ):
        found = repo.files.get(file.path)
        if found is None:
            raise LoaderError(
                Reason.SOURCE_NOT_FOUND,
                f"{repo.repo_id} has no file {snippet(file.path)} at {snippet(file.revision)};"
                f" {holds(list(repo.files))}",
            )
        return _fetch_one(
            found, _Copy(repo, into / FOLDER_NAME, downloader, report), request, into / FILE_NAME
        )


@contextlib.contextmanager
def _asked(
    repo_id: str,
    revision: str,
    request: LoadRequest,
    settings: Settings,
    retries: Retries,
    pace: Pace,
) -> Iterator[tuple[Repo, Downloader]]:
    """The repo's commit, and the means to download its files."""
    token = hub_token(request, settings)
    with hub_session(settings, pace) as client:
        repo = resolve(repo_id, revision, settings.hub_endpoint, token, retries)
        yield repo, Downloader(client, settings.max_bytes, token, retries)


def _fetch_one(file: RepoFile, copy: _Copy, request: LoadRequest, path: Path) -> Fetched:
    """Download the one file that a repo is needed for."""
    if file.sha256 and request.sha256 not in (None, file.sha256):
        raise LoaderError(
            Reason.DIGEST_MISMATCH,
            f"{snippet(file.path)} of {copy.repo.repo_id} has sha256 {file.sha256}, not"
            f" {request.sha256}",
        )
    sha256 = copy.fetch(file, path, total=file.size, request=request)
    return Fetched(
        kind="file",
        path=FILE_NAME,
        source=Source(
            commit=copy.repo.commit, sha256=sha256, size_bytes=file.size, format=file_format(path)
        ),
        warnings=copy.repo.warnings(),
    )


@dataclass(frozen=True)
class _Copy:
    """The files of a repo that are here already, and the means to get the others."""

    repo: Repo
    path: Path
    downloader: Downloader
    report: Report

    def fetch_pipeline(self, request: LoadRequest, only: Sequence[str] = ()) -> Fetched:
        """Download what is needed of a diffusers pipeline. only: components, where not all are."""
        self.fetch(self.repo.files[INDEX_NAME], self.path / INDEX_NAME)
        pipeline = parse_pipeline((self.path / INDEX_NAME).read_bytes())
        if only:
            pipeline = pipeline.only(only)
        chosen = choose_files(
            self.repo.files,
            pipeline.without(replaced(request)),
            request.revision,
            safetensors_only=bool(request.from_safetensors),
        )
        return self._fetched(chosen)

    def fetch_component(self, folder: PurePosixPath, request: LoadRequest) -> Fetched:
        """Download the one component that the model type is."""
        _refuse_digest(request)
        name = str(folder / CONFIG_NAME)
        self.fetch(self.repo.files[name], self.path / name)
        parse_component((self.path / name).read_bytes(), request.model_type)
        return self._fetched(
            choose_component(
                self.repo.files,
                folder,
                request.revision,
                safetensors_only=bool(request.from_safetensors),
            )
        )

    def _fetched(self, chosen: list[RepoFile]) -> Fetched:
        return Fetched(
            kind="repo",
            path=FOLDER_NAME,
            source=Source(
                commit=self.repo.commit, size_bytes=self.fetch_all(chosen), format="diffusers"
            ),
            warnings=self.repo.warnings(),
        )

    def fetch_all(self, files: list[RepoFile]) -> int:
        """Download the files that are missing and remove all others; returns the bytes of all."""
        self._prune({file.path for file in files})
        total = sum(file.size for file in files)
        limit = self.downloader.max_bytes
        if total > limit:
            raise LoaderError(
                Reason.TOO_LARGE, f"the repo's files are {total} bytes; the limit is {limit} bytes"
            )
        present = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        ensure_space(self.path, total - present)
        done = 0
        for file in files:
            self.fetch(file, self.path / file.path, done, total)
            done += file.size
        return total

    def fetch(
        self,
        file: RepoFile,
        path: Path,
        before: int = 0,
        total: int | None = None,
        request: LoadRequest | None = None,
    ) -> str:
        """Download a file if it is missing, checked against what the Hub says of it.

        request: whose only file it is. Returns the digest.
        """
        if file.path.endswith(_SMALL) and file.size > MAX_JSON_BYTES:
            raise LoaderError(Reason.TOO_LARGE, f"{file.path} is {file.size} bytes")
        wanted = Wanted(self.repo.url(file), path, file.size, file.sha256, own_digest=True)
        if request is not None:
            wanted = replace(
                wanted,
                sha256=file.sha256 or request.sha256,
                inspect=lambda head, size: refuse_what_cannot_load(request, head, size),
            )
        got = self._get(wanted, before, total)
        if file.sha256 is None and file.blob_id is not None:
            if _blob_id(path) != file.blob_id:
                path.unlink()
                got = self._get(wanted, before, total)  # once more, as for a digest
            if (found := _blob_id(path)) != file.blob_id:
                path.unlink()
                raise LoaderError(
                    Reason.DIGEST_MISMATCH, f"{file.path} has blob id {found}, not {file.blob_id}"
                )
        return got.sha256

    def _get(self, wanted: Wanted, before: int, total: int | None) -> Got:
        return self.downloader.get(wanted, lambda done, _total: self._report(before + done, total))

    def _prune(self, names: set[str]) -> None:
        """Remove what an earlier attempt downloaded of another commit."""
        for path in [path for path in self.path.rglob("*") if path.is_file()]:
            name = path.relative_to(self.path).as_posix()
            if name not in names and file_of(name) not in names:
                path.unlink()

    def _report(self, done: int, total: int | None) -> None:
        if total is not None:  # not yet known while model_index.json comes
            self.report(Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total))


def _blob_id(path: Path) -> str:
    """A file's git blob id, the only digest that the Hub tells of a small one."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
