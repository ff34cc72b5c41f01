"""Downloads a repo of the Hugging Face Hub or a mirror, or one file of a repo, at one commit.

`hub_api` finds the commit and the urls of its files. `net.download` downloads the files, and not
the package huggingface_hub: that package keeps no partial file for the next Pod, waits as long as a
server's Retry-After demands, and does not stop at the stated size of a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.sources import MAIN, HubFile, HubRepo
from sd_loader.diffusers_repo.component_files import (
    choose_configs,
    component_folder,
    holds,
    require_pipeline,
)
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.errors import LoaderError
from sd_loader.handover import AtHand, Fetched
from sd_loader.net.client import HttpClient
from sd_loader.net.download import Downloader
from sd_loader.progress import Report, no_report
from sd_loader.snippet import snippet
from sd_loader.source.hub_copy import FOLDER_NAME, RepoCopy, RepoOutline, refuse_digest
from sd_loader.source.hub_errors import HubErrors
from sd_loader.source.peek import Peek, no_peek
from sd_loader.source.ref import Checks, SourceRef, refuse_unsuitable
from sd_loader.source.single import FILE_NAME

if TYPE_CHECKING:
    from sd_loader.source.hub_api import Repo

_ENDPOINT = "the loader's setting HF_ENDPOINT"


@dataclass(frozen=True)
class ListedRepo(HubRepo):
    """A repo whose list of files has been read, at the commit of that time."""

    listing: Repo = field(kw_only=True)


class FromRepo(NamedTuple):
    """Files that were downloaded from a repo for the model of another source."""

    pinned: str
    """The repo at its commit: ORG/NAME@COMMIT."""

    fetched: Fetched


def fetch_repo(
    repo: HubRepo,
    ref: SourceRef,
    checks: Checks,
    client: HttpClient,
    into: Path,
    report: Report,
    at_hand: AtHand,
    peek: Peek = no_peek,
) -> Fetched:
    """Download the needed files of the repo, or resume their download."""
    if ref.model_type is ModelType.HUGGINGFACE:
        refuse_digest(checks)
    listing = repo.listing if isinstance(repo, ListedRepo) else None
    revision = repo.revision or MAIN
    with _open_repo(repo.repo_id, revision, ref, client, listing) as (found, downloader):
        copy = RepoCopy(found, into / FOLDER_NAME, downloader, report, at_hand, peek)
        return _fetch_model(copy, ref, checks, into)


def outline_repo(
    place: HubRepo | HubFile, ref: SourceRef, client: HttpClient, into: Path, peek: Peek
) -> Fetched:
    """Choose the files that a load would download, and download only their configs.

    peek: called with the file if the repo's model is a single file.
    """
    revision = place.revision or MAIN
    with _open_repo(place.repo_id, revision, ref, client) as (found, downloader):
        copy = RepoOutline(found, into / FOLDER_NAME, downloader, no_report, peek=peek)
        if isinstance(place, HubFile):
            return _fetch_file(copy, place, ref, Checks(), into)
        return _fetch_model(copy, ref, Checks(), into)


def _fetch_model(copy: RepoCopy, ref: SourceRef, checks: Checks, into: Path) -> Fetched:
    if ref.component is not None:
        folder = component_folder(copy.repo.files, ref.component)
        if folder is not None:
            return copy.fetch_replacement(folder, ref, checks)
    model_type = ref.model_type or copy.find_type()
    fetched = copy.fetch_model(replace(ref, model_type=model_type), checks, into / FILE_NAME)
    # The type of a single file is found later, in the file itself.
    shown = model_type if fetched.kind == "repo" else None
    return fetched.model_copy(update={"model_type": shown})


def fetch_for_file(
    get: Callable[[RepoCopy, SourceRef], Fetched],
    repo: HubRepo,
    ref: SourceRef,
    client: HttpClient,
    into: Path,
    report: Report,
    at_hand: AtHand,
) -> FromRepo:
    """Download the components that a model file lacks from a pipeline's repo, or resume this.

    get: chooses and downloads the needed files of the repo.
    """
    with _open_repo(repo.repo_id, repo.revision or MAIN, ref, client) as (found, downloader):
        require_pipeline(list(found.files))
        copy = RepoCopy(found, into / FOLDER_NAME, downloader, report, at_hand)
        return FromRepo(found.pinned, get(copy, ref))


def check_pipeline(
    repo: HubRepo,
    ref: SourceRef,
    client: HttpClient,
    into: Path,
    report: Report,
    *,
    required: bool,
) -> ListedRepo:
    """Return the repo with its list of files. Refuse it if its index shows that it cannot be used.

    required: whether a repo without an index is refused as well.
    """
    with _open_repo(repo.repo_id, repo.revision or MAIN, ref, client) as (found, downloader):
        if required:
            require_pipeline(list(found.files))
        if INDEX_NAME in found.files:
            copy = RepoCopy(found, into / FOLDER_NAME, downloader, report)
            refuse_unsuitable(copy.fetch_index(), ref)
        return ListedRepo(repo.repo_id, repo.revision, listing=found)


def fetch_configs(
    ref: SourceRef, client: HttpClient, folder: Path, report: Report
) -> tuple[str, ...]:
    """Download the configs and tokenizers of a pipeline's repo, but not its weights.

    Return the warnings.
    """
    with _open_repo(ref.url, MAIN, ref, client) as (found, downloader):
        RepoCopy(found, folder, downloader, report).fetch_all(choose_configs(found.files))
    if not (folder / INDEX_NAME).is_file():
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{ref.url} has no {INDEX_NAME}")
    return found.warnings()


def fetch_file(
    file: HubFile,
    ref: SourceRef,
    checks: Checks,
    client: HttpClient,
    into: Path,
    report: Report,
    at_hand: AtHand,
    peek: Peek = no_peek,
) -> Fetched:
    """Download one file of a repo, or resume its download."""
    with _open_repo(file.repo_id, file.revision, ref, client) as (repo, downloader):
        copy = RepoCopy(repo, into / FOLDER_NAME, downloader, report, at_hand, peek)
        return _fetch_file(copy, file, ref, checks, into)


def _fetch_file(
    copy: RepoCopy, file: HubFile, ref: SourceRef, checks: Checks, into: Path
) -> Fetched:
    repo = copy.repo
    found = repo.files.get(file.path)
    if found is None:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND,
            f"{repo.repo_id} has no file {snippet(file.path)} at {snippet(file.revision)};"
            f" {holds(list(repo.files))}",
        )
    return copy.fetch_one(found, ref, checks, into / FILE_NAME)


@contextlib.contextmanager
def _open_repo(
    repo_id: str, revision: str, ref: SourceRef, client: HttpClient, listing: Repo | None = None
) -> Iterator[tuple[Repo, Downloader]]:
    """Yield the repo at the commit that the revision names, and a downloader for its files.

    listing: the repo, if its file list was read before. The revision is then not resolved
    again.
    """
    # Imported here: huggingface_hub takes 0.3 s to import, and links do not need it.
    from sd_loader.source.hub_api import resolve

    endpoint = client.settings.hub_endpoint
    client.check_url(endpoint, _ENDPOINT)
    token = client.token(endpoint, ref.field, required=ref.needs_token, is_default_host=True)
    listing_token = token if client.lists_private(endpoint) else None
    with client.session(for_hub=True) as session, client.naming_default_secret(endpoint):
        repo = listing or resolve(repo_id, revision, endpoint, listing_token, client)
        errors = HubErrors(f"{endpoint}/{repo.repo_id}")
        yield (
            repo,
            Downloader(
                session, client.settings.max_bytes, token, client.retries, refuse=errors.refused
            ),
        )
