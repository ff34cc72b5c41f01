"""A diffusers repo from the Hugging Face Hub or a mirror of it, pinned to a commit.

`huggingface_hub` resolves the repo and names its files' urls; the bytes come through its session
too, but by our own download: its own keeps no partial file for the next Pod, sleeps for as long as
a server's Retry-After says, and does not stop where a file must end.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from sd_api.load import LoadRequest, Progress, Source, Stage
from sd_api.netguard import redact
from sd_api.reasons import Reason
from sd_api.spec import HUB_PAGE_PATTERN, HUB_REPO_PATTERN
from sd_loader.errors import LoaderError
from sd_loader.progress import Report
from sd_loader.settings import Settings
from sd_loader.source import Fetched
from sd_loader.source.answers import RETRIES, Retries, refused, unreachable
from sd_loader.source.credentials import read_credentials, token_for
from sd_loader.source.download import Downloader, Wanted
from sd_loader.source.http import check_link
from sd_loader.source.part import ensure_space, file_of
from sd_loader.source.pipelines import INDEX_NAME, MAX_JSON_BYTES, parse_pipeline
from sd_loader.source.repo_files import RepoFile, check_names, choose_files, require_pipeline
from sd_loader.source.transport import LOADER_VERSION, PACE, READ_SECONDS, Pace, make_client

FOLDER_NAME = "repo"
_SMALL = (".json", ".txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Repo:
    """One commit of a repo, and the files in it by their paths."""

    endpoint: str
    repo_id: str
    commit: str
    files: Mapping[str, RepoFile]


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
    if request.sha256 is not None:
        raise LoaderError(
            Reason.INVALID_SPEC, "spec.sha256 is for single files; a repo is pinned by gitRevision"
        )
    repo_id = repo_id_of(request.url, settings.hub_endpoint)
    token = _token(request, settings)
    with _hub_session(settings, pace) as client:
        repo = _resolve(
            repo_id, request.git_revision or "main", settings.hub_endpoint, token, retries
        )
        require_pipeline(list(repo.files))
        copy = _Copy(
            repo,
            into / FOLDER_NAME,
            Downloader(client, settings.max_bytes, token, retries),
            report,
        )
        index = copy.fetch(repo.files[INDEX_NAME])
        chosen = choose_files(
            repo.files,
            parse_pipeline(index.read_bytes()),
            request.revision,
            safetensors_only=bool(request.from_safetensors),
        )
        size = copy.fetch_all(chosen)
    return Fetched(
        kind="repo",
        path=FOLDER_NAME,
        source=Source(commit=repo.commit, size_bytes=size, format="diffusers"),
    )


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
    token = _token(request, settings)
    into.mkdir(exist_ok=True)
    with _hub_session(settings, pace) as client:
        repo = _resolve(repo_id, "main", settings.hub_endpoint, token, retries)
        copy = _Copy(repo, into, Downloader(client, settings.max_bytes, token, retries), report)
        copy.fetch_all([file for path, file in sorted(repo.files.items()) if wanted(path)])


def repo_id_of(url: str, endpoint: str) -> str:
    """`ORG/NAME` of a repo id, of a page of the Hub, or of a page of the configured mirror."""
    path = url.rstrip("/").removeprefix(endpoint.rstrip("/") + "/")
    if re.match(HUB_PAGE_PATTERN, url):
        path = "/".join(path.rsplit("/", 2)[1:])
    if re.match(HUB_REPO_PATTERN, path):
        return path
    raise LoaderError(
        Reason.INVALID_SPEC,
        f"spec.url: {redact(url)} is neither a Hugging Face repo id (ORG/NAME) nor a repo's page"
        " (a branch or commit belongs into spec.gitRevision)",
    )


def _token(request: LoadRequest, settings: Settings) -> str | None:
    if not request.credentials:
        return None
    endpoint = httpx2.URL(settings.hub_endpoint)
    return token_for(
        settings.hub_endpoint,
        read_credentials(settings.credentials_dir),
        settings,
        default_host=endpoint.netloc.decode().lower(),
    )


@contextlib.contextmanager
def _hub_session(settings: Settings, pace: Pace) -> Iterator[httpx2.Client]:
    # Else it asks the endpoint for a list of programs that it would then report on.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    huggingface_hub.set_client_factory(lambda: make_client(settings, pace))
    try:
        yield huggingface_hub.get_session()
    finally:
        huggingface_hub.close_session()


def _resolve(
    repo_id: str, revision: str, endpoint: str, token: str | None, retries: Retries
) -> _Repo:
    """The commit that a revision names now, and its files."""
    api = HfApi(
        endpoint,
        # False, not None: a token that lies about in the home folder is nobody's choice.
        token=token or False,
        library_name="sd-loader",
        library_version=LOADER_VERSION,
    )
    shown = f"{endpoint}/{repo_id} at {revision}"

    def ask() -> huggingface_hub.ModelInfo:
        try:
            return api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=READ_SECONDS
            )
        except HfHubHTTPError as error:
            raise _refused(error, shown, token_sent=token is not None) from error
        except httpx2.RequestError as error:
            raise unreachable(shown, error) from error
        except HFValidationError as error:
            raise LoaderError(
                Reason.INVALID_SPEC, f"spec.url: {repo_id} is not a Hugging Face repo id"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LoaderError(
                Reason.SOURCE_UNREACHABLE, f"{shown}: the answer is not the Hub's"
            ) from error

    info = retries.run(ask)
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise LoaderError(Reason.SOURCE_UNREACHABLE, f"{shown}: the answer names no commit")
    siblings = info.siblings or []
    check_names(sibling.rfilename for sibling in siblings)
    files = {
        sibling.rfilename: RepoFile(
            sibling.rfilename,
            sibling.lfs.size if sibling.lfs else sibling.size or 0,
            sibling.lfs.sha256 if sibling.lfs else None,
            sibling.blob_id,
        )
        for sibling in siblings
    }
    return _Repo(endpoint, repo_id, info.sha, files)


def _refused(error: HfHubHTTPError, shown: str, *, token_sent: bool) -> LoaderError:
    status = error.response.status_code
    if status == 401 and not token_sent and "X-Error-Code" not in error.response.headers:
        # So the Hub answers without a token, whether the repo is private or does not exist.
        return LoaderError(
            Reason.SOURCE_NOT_FOUND, f"{shown}: there is no such repo, or it is private"
        )
    return refused(error.response, shown, token_sent=token_sent)


@dataclass(frozen=True)
class _Copy:
    """The files of a repo that are here already, and the means to get the others."""

    repo: _Repo
    path: Path
    downloader: Downloader
    report: Report

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
            self.fetch(file, done, total)
            done += file.size
        return total

    def fetch(self, file: RepoFile, before: int = 0, total: int | None = None) -> Path:
        """Download a file if it is missing, and check it against what the Hub says of it."""
        if file.path.endswith(_SMALL) and file.size > MAX_JSON_BYTES:
            raise LoaderError(Reason.TOO_LARGE, f"{file.path} is {file.size} bytes")
        path = self.path / file.path
        url = hf_hub_url(
            self.repo.repo_id,
            file.path,
            revision=self.repo.commit,
            endpoint=self.repo.endpoint,
        )
        self.downloader.get(
            Wanted(url, path, file.size, file.sha256),
            lambda done, _total: self._report(before + done, total),
        )
        if file.sha256 is None and file.blob_id is not None:
            _check_blob(path, file)
        return path

    def _prune(self, names: set[str]) -> None:
        """Remove what an earlier attempt downloaded of another commit."""
        for path in [path for path in self.path.rglob("*") if path.is_file()]:
            name = path.relative_to(self.path).as_posix()
            if name not in names and file_of(name) not in names:
                path.unlink()

    def _report(self, done: int, total: int | None) -> None:
        if total is not None:  # not yet known while model_index.json comes
            self.report(Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total))


def _check_blob(path: Path, file: RepoFile) -> None:
    """Compare a small file with its git blob id, the only digest the Hub tells of it."""
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if digest != file.blob_id:
        path.unlink()
        raise LoaderError(
            Reason.DIGEST_MISMATCH, f"{file.path} has blob id {digest}, not {file.blob_id}"
        )
