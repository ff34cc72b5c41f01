"""Asks the Hub, or a mirror of it, for a repo's commit and files.

`huggingface_hub` asks through our client, which the guard checks.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoSibling
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from sd_api.fields import Count, Sha256
from sd_api.reasons import Reason
from sd_api.spec import HUB_REPO_PATTERN
from sd_loader.diffusers_repo.component_files import RepoFile, check_names
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.http_errors import Retries, refused, unreachable
from sd_loader.net.transport import LOADER_VERSION, READ_SECONDS
from sd_loader.snippet import snippet

_MAX_ANSWER = 32 << 20
"""Bytes of a response of the API. A repo of 10,000 files takes a tenth of it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Listed(BaseModel):
    model_config = ConfigDict(strict=True)

    path: str
    size: Count
    sha256: Sha256 | None
    blob_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None


@dataclass(frozen=True)
class Repo:
    """One commit of a repo."""

    endpoint: str

    repo_id: str
    """The repo's present name."""

    asked_as: str
    """The name in the request, which may be a previous one."""

    commit: str

    files: Mapping[str, RepoFile]
    """The files by their paths."""

    def url(self, file: RepoFile) -> str:
        """The url of the file's bytes."""
        return hf_hub_url(self.repo_id, file.path, revision=self.commit, endpoint=self.endpoint)

    def warnings(self) -> tuple[str, ...]:
        """A warning if the repo was renamed: a repo of another owner may get the old name."""
        if self.repo_id.lower() == self.asked_as.lower():
            return ()
        return (f"the repo {self.asked_as[:100]} is now called {self.repo_id[:100]}",)


@contextlib.contextmanager
def hub_session(client: HttpClient) -> Iterator[httpx2.Client]:
    """Connections for files. Meanwhile `huggingface_hub` uses our client as well."""
    # Otherwise it asks the endpoint which programs to report about.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    # A server must not write into our log (X-HF-Warning).
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    huggingface_hub.set_client_factory(lambda: client.session(max_answer=_MAX_ANSWER))
    try:
        with client.session() as session:
            yield session
    finally:
        huggingface_hub.close_session()


def resolve(
    repo_id: str, revision: str, endpoint: str, token: str | None, retries: Retries
) -> Repo:
    """Look up the commit that a revision names now, and its files."""
    api = HfApi(
        endpoint,
        # False, not None: None would use a token from the home folder.
        token=token or False,
        library_name="sd-loader",
        library_version=LOADER_VERSION,
    )
    shown = f"{endpoint}/{repo_id} at {snippet(revision)}"

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
                Reason.INVALID_SPEC, f"{repo_id} is not a Hugging Face repo id"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LoaderError(
                Reason.SOURCE_UNREACHABLE, f"{shown}: the answer is not the Hub's"
            ) from error

    info = retries.run(ask)
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise LoaderError(Reason.SOURCE_UNREACHABLE, f"{shown}: the answer names no commit")
    siblings = info.siblings or []
    try:
        listed = [_file(sibling) for sibling in siblings]
    except (ValidationError, AttributeError) as error:
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE, f"{shown}: the answer's list of files is not the Hub's"
        ) from error
    check_names(file.path for file in listed)
    files = {file.path: file for file in listed}
    return Repo(endpoint, _name_now(info.id, repo_id), repo_id, info.sha, files)


def _file(sibling: RepoSibling) -> RepoFile:
    """Check a listed file; `huggingface_hub` passes on any value of the response."""
    listed = _Listed.model_validate(
        {
            "path": sibling.rfilename,
            "size": sibling.lfs.size if sibling.lfs else sibling.size or 0,
            "sha256": sibling.lfs.sha256 if sibling.lfs else None,
            "blob_id": sibling.blob_id,
        }
    )
    return RepoFile(listed.path, listed.size, listed.sha256, listed.blob_id)


def _name_now(told: object, asked: str) -> str:
    """The repo's present name: the Hub redirects from a previous one."""
    return told if isinstance(told, str) and re.match(HUB_REPO_PATTERN, told) else asked


def _refused(error: HfHubHTTPError, shown: str, *, token_sent: bool) -> LoaderError:
    status = error.response.status_code
    if status == 401 and not token_sent and "X-Error-Code" not in error.response.headers:
        # Without a token the Hub responds so for private and for missing repos.
        return LoaderError(
            Reason.SOURCE_NOT_FOUND, f"{shown}: there is no such repo, or it is private"
        )
    return refused(error.response, shown, token_sent=token_sent)
