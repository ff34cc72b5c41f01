"""Keeps the files of one commit of a Hub repo in a folder, and downloads those that are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.wire import Progress, Source, Stage
from sd_loader.diffusers_repo.classes import Role
from sd_loader.diffusers_repo.component_files import (
    RepoFile,
    check_size,
    choose_embedding_of_sdxl,
    choose_file,
    component_folder,
    is_embedding_of_sdxl,
    needed,
)
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME
from sd_loader.diffusers_repo.listed import AnyPipeline, ListedPipeline, read_pipeline
from sd_loader.diffusers_repo.listed_files import (
    STEMS,
    choose_model,
    choose_pipeline_files,
    choose_single,
)
from sd_loader.diffusers_repo.single_component import SINGLE, component_type, parse_component
from sd_loader.errors import LoaderError, prefixing
from sd_loader.formats.sniff import HEAD_BYTES
from sd_loader.handover import Arrived, AtHand, Fetched, nothing_at_hand
from sd_loader.net.download import Downloader, Wanted
from sd_loader.net.exchange import Resource
from sd_loader.net.partial import Got, PartialDownload, ensure_space, file_of
from sd_loader.net.ranges import RemoteFile
from sd_loader.progress import Report
from sd_loader.snippet import snippet
from sd_loader.source.link import arrived
from sd_loader.source.peek import Peek, no_peek
from sd_loader.source.ref import Checks, SourceRef, inspector, refuse_unsuitable
from sd_loader.source.single import FILE_NAME, file_format

if TYPE_CHECKING:
    from sd_loader.source.hub_api import Repo

FOLDER_NAME = "repo"
"""Name of the folder with a repo's files."""


class Judge(Protocol):
    """Decides whether a repo's pipeline fits a model file, before the pipeline's weights arrive.

    The file, which comes from elsewhere, replaces some of the pipeline's components.
    """

    def accept(self, pipeline: AnyPipeline) -> ListedPipeline:
        """Return the pipeline with `replaced` set. Refuse a pipeline that does not fit the file."""

    def compare(self, pipeline: ListedPipeline, folder: Path) -> None:
        """Compare the file with the configs of the `replaced` components, which are in `folder`."""


def refuse_digest(checks: Checks) -> None:
    """Refuse spec.sha256 for a source that is not a single file."""
    if checks.sha256 is not None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.sha256 is only for single files; use spec.gitRevision to pin a repo",
        )


@dataclass(frozen=True)
class RepoCopy:
    """The local copy of a repo's files, which may be incomplete."""

    repo: Repo
    path: Path
    downloader: Downloader
    report: Report
    at_hand: AtHand = nothing_at_hand
    peek: Peek = no_peek

    def find_type(self) -> ModelType | None:
        """Find the model type that the repo shows. None if only its weights file shows the type."""
        if INDEX_NAME in self.repo.files:
            return ModelType.HUGGINGFACE
        if CONFIG_NAME in self.repo.files:
            self._fetch_small(self.repo.files[CONFIG_NAME])
            shown = component_type((self.path / CONFIG_NAME).read_bytes())
            if shown is not None:
                return shown
        return ModelType.EMBEDDINGS if is_embedding_of_sdxl(self.repo.files) else None

    def fetch_model(self, ref: SourceRef, checks: Checks, path: Path) -> Fetched:
        """Download the files that the model type needs.

        path: where to put the model if it is a single file.
        """
        files = self.repo.files
        if ref.model_type in SINGLE:
            folder = component_folder(files, SINGLE[ref.model_type][0])
            if folder is not None:
                return self.fetch_component(folder, ref.model_type, ref, checks)
        if ref.model_type is ModelType.HUGGINGFACE and INDEX_NAME in files:
            refuse_digest(checks)
            return self.fetch_pipeline(ref, checks)
        if ref.model_type is ModelType.EMBEDDINGS:
            pair = choose_embedding_of_sdxl(files, safetensors_only=checks.safetensors_only)
            if pair:
                refuse_digest(checks)
                return self.fetch_files(pair)
        file = choose_file(
            files, ref.model_type, ref.precision, safetensors_only=checks.safetensors_only
        )
        return self.fetch_one(file, ref, checks, path)

    def fetch_one(self, file: RepoFile, ref: SourceRef, checks: Checks, path: Path) -> Fetched:
        """Download the single file of the repo that is the model."""
        if file.sha256 and checks.sha256 not in (None, file.sha256):
            raise LoaderError(
                Reason.DIGEST_MISMATCH,
                f"{snippet(file.path)} of {self.repo.repo_id} has sha256 {file.sha256}, not"
                f" {checks.sha256}",
            )
        wanted = replace(
            self._wanted(file, path),
            sha256=file.sha256 or checks.sha256,
            inspect=inspector(ref, checks),
        )
        one = self._at_hand(file, wanted)
        if one is None:
            self._peek(file, wanted)
            one = arrived(path, self._fetch(file, wanted, 0, file.size))
        return Fetched(
            kind="file",
            path=FILE_NAME,
            files={FILE_NAME: one},
            source=Source(
                commit=self.repo.commit,
                sha256=one.sha256,
                size_bytes=one.size,
                format=file_format(path),
            ),
            warnings=self.repo.warnings(),
            card=self.repo.card,
        )

    def fetch_pipeline(self, ref: SourceRef, checks: Checks, only: Sequence[str] = ()) -> Fetched:
        """Download the needed files of a diffusers pipeline.

        only: the components to download. Empty: all components that are not replaced.
        """
        pipeline = self.fetch_index()
        refuse_unsuitable(pipeline, ref)
        if only:
            pipeline = pipeline.only(only)
        return self._fetch_pipeline_files(pipeline.without(ref.replaced), ref, checks)

    def fetch_index(self) -> AnyPipeline:
        """Download the pipeline's index, and check it."""
        self._fetch_small(self.repo.files[INDEX_NAME])
        return read_pipeline((self.path / INDEX_NAME).read_bytes())

    def fetch_skeleton(self, judge: Judge, ref: SourceRef, checks: Checks) -> Fetched:
        """Download a pipeline, without the weights of the components that come from elsewhere.

        judge: chooses these components from the index, and refuses configs that contradict
        the model file.
        """
        pipeline = judge.accept(self.fetch_index())
        for name in sorted(pipeline.replaced):
            with prefixing(pipeline.title):
                self._fetch_small(needed(self.repo.files, f"{name}/{CONFIG_NAME}"))
        judge.compare(pipeline, self.path)
        return self._fetch_pipeline_files(pipeline, ref, checks)

    def _fetch_pipeline_files(
        self, pipeline: AnyPipeline, ref: SourceRef, checks: Checks
    ) -> Fetched:
        chosen = choose_pipeline_files(
            self.repo.files, pipeline, ref.precision, safetensors_only=checks.safetensors_only
        )
        return self.fetch_files(chosen)

    def fetch_replacement(self, folder: PurePosixPath, ref: SourceRef, checks: Checks) -> Fetched:
        """Download the component of the repo that replaces a component of another pipeline."""
        is_encoder = (ref.component or "").startswith("text_encoder")
        return self.fetch_files(
            choose_model(
                self.repo.files,
                folder,
                STEMS[Role.ENCODER if is_encoder else Role.MODEL],
                ref.precision,
                safetensors_only=checks.safetensors_only,
            )
        )

    def fetch_component(
        self, folder: PurePosixPath, model_type: ModelType, ref: SourceRef, checks: Checks
    ) -> Fetched:
        """Download the repo's component that belongs to the model type."""
        refuse_digest(checks)
        name = str(folder / CONFIG_NAME)
        self._fetch_small(self.repo.files[name])
        component = parse_component((self.path / name).read_bytes(), model_type)
        chosen = choose_single(
            self.repo.files,
            folder,
            component,
            ref.precision,
            safetensors_only=checks.safetensors_only,
        )
        return self.fetch_files(chosen)

    def fetch_files(self, chosen: list[RepoFile]) -> Fetched:
        """Download the files that the model consists of."""
        files = self.fetch_all(chosen)
        return self._fetched(sum(file.size for file in files.values()), files)

    def _fetched(self, size: int, files: Mapping[str, Arrived]) -> Fetched:
        return Fetched(
            kind="repo",
            path=FOLDER_NAME,
            files=files,
            source=Source(commit=self.repo.commit, size_bytes=size, format="diffusers"),
            warnings=self.repo.warnings(),
            card=self.repo.card,
        )

    def fetch_all(self, files: list[RepoFile]) -> dict[str, Arrived]:
        """Download those of the files that are missing, and return all of them by path.

        Remove all other files from the folder.
        """
        self.path.mkdir(exist_ok=True)
        self._prune({file.path for file in files})
        for file in files:
            check_size(file)
        total = sum(file.size for file in files)
        limit = self.downloader.max_bytes
        if total > limit:
            raise LoaderError(
                Reason.TOO_LARGE, f"the repo's files are {total} bytes; the limit is {limit} bytes"
            )
        found = {}
        for file in files:
            at_hand = self._at_hand(file, self._wanted(file, self.path / file.path))
            if at_hand is not None:
                found[file.path] = at_hand
        present = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        ensure_space(self.path, total - present)
        done = 0
        for file in files:
            path = self.path / file.path
            if file.path not in found:
                got = self._fetch(file, self._wanted(file, path), done, total)
                found[file.path] = arrived(path, got)
            done += file.size
        return {f"{FOLDER_NAME}/{path}": one for path, one in sorted(found.items())}

    def _peek(self, file: RepoFile, wanted: Wanted) -> None:
        """Call `peek` with a file, unless the download of the file has begun."""
        if PartialDownload.is_begun(wanted.path, wanted.url):
            return

        def opened() -> RemoteFile | None:
            self.downloader.require_access(wanted)
            resource = Resource(self.downloader.client, wanted.url, self.downloader.token)
            return RemoteFile.open(resource, self.downloader.retries)

        self.peek(file.size, opened)

    def _at_hand(self, file: RepoFile, wanted: Wanted) -> Arrived | None:
        """Take a file from the volume instead of downloading it. None if it must be downloaded.

        Raise LoaderError if the Hub would not let this load download the file: the digests of a
        gated repo are public, so a digest alone gives no right to the file.
        """
        if file.sha256 is None or PartialDownload.is_begun(wanted.path, wanted.url):
            return None
        # A record of another version would state wrong digests for the file from the volume.
        PartialDownload.forget(wanted.path)
        found = self.at_hand(file.sha256, file.size, wanted.path)
        if found is not None:
            self.downloader.require_access(wanted)
            with wanted.path.open("rb") as opened:
                wanted.inspect(opened.read(HEAD_BYTES), file.size)
        return found

    def _fetch_small(self, file: RepoFile) -> None:
        """Download a config that decides which other files are needed."""
        check_size(file)
        self._fetch(file, self._wanted(file, self.path / file.path), 0, None)

    def _wanted(self, file: RepoFile, path: Path) -> Wanted:
        return Wanted(self.repo.url(file), path, file.size, file.sha256, own_digest=True)

    def _fetch(self, file: RepoFile, wanted: Wanted, before: int, total: int | None) -> Got:
        """Download a file if it is missing, and check it against the Hub's listing.

        before, total: for the progress: bytes of the files before this one, and of all files.
        """
        path = wanted.path
        got = self._get(wanted, before, total)
        if file.sha256 is None and file.blob_id is not None:
            if _blob_id(path) != file.blob_id:
                path.unlink()
                got = self._get(wanted, before, total)  # Retry once, as after a wrong digest.
            if (blob_id := _blob_id(path)) != file.blob_id:
                path.unlink()
                raise LoaderError(
                    Reason.DIGEST_MISMATCH, f"{file.path} has blob id {blob_id}, not {file.blob_id}"
                )
        return got

    def _get(self, wanted: Wanted, before: int, total: int | None) -> Got:
        return self.downloader.get(wanted, lambda done, _total: self._report(before + done, total))

    def _prune(self, names: set[str]) -> None:
        """Remove all files except these and their partial downloads."""
        for path in [path for path in self.path.rglob("*") if path.is_file()]:
            name = path.relative_to(self.path).as_posix()
            if name not in names and file_of(name) not in names:
                path.unlink()

    def _report(self, done: int, total: int | None) -> None:
        if total is not None:  # For a small file that is read first, the total is unknown.
            self.report(Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total))


class RepoOutline(RepoCopy):
    """The configs of a repo's model, without its weights. The configs show the model's type."""

    def fetch_one(self, file: RepoFile, ref: SourceRef, checks: Checks, path: Path) -> Fetched:
        """Call `peek` with the single file of the repo that a load would download."""
        self._peek(file, replace(self._wanted(file, path), inspect=inspector(ref, checks)))
        return Fetched(
            kind="file",
            path=FILE_NAME,
            source=Source(commit=self.repo.commit, sha256=file.sha256, size_bytes=file.size),
            warnings=self.repo.warnings(),
            card=self.repo.card,
        )

    def fetch_files(self, chosen: list[RepoFile]) -> Fetched:
        """Download the configs of the files that a load would download."""
        for file in chosen:
            if PurePosixPath(file.path).name in (INDEX_NAME, CONFIG_NAME):
                self._fetch_small(file)
        return self._fetched(sum(file.size for file in chosen), {})


def _blob_id(path: Path) -> str:
    """Compute a file's git blob id, the only digest that the Hub states for a small file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
