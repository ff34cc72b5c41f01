"""Asks the API of the Hub, or of a mirror, for a repo's commit and files.

`huggingface_hub` sends the requests through the loader's own client, which checks every address.
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
from huggingface_hub.repocard_data import CardData
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from sd_api.card import NO_CARD, Card
from sd_api.fields import Count, Sha256
from sd_api.reasons import Reason
from sd_api.sites.hub_card import card_of_repo
from sd_api.url_forms import HUB_REPO_PATTERN
from sd_loader.diffusers_repo.component_files import RepoFile, check_names
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.http_errors import unreachable
from sd_loader.net.patience import Retries
from sd_loader.net.transport import LOADER_VERSION, READ_SECONDS
from sd_loader.snippet import snippet
from sd_loader.source.hub_errors import HubErrors

_MAX_RESPONSE = 32 << 20
"""Largest response of the API in bytes. For a repo of 10,000 files, a tenth is enough."""
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
    """The name in the request. It differs if the repo was renamed."""

    commit: str

    files: Mapping[str, RepoFile]
    """The files by their paths."""

    card: Card = NO_CARD
    """The card from the front matter of its README.md."""

    @property
    def pinned(self) -> str:
        """The repo at this commit, as the status states it."""
        return f"{self.repo_id}@{self.commit}"

    def url(self, file: RepoFile) -> str:
        """Return the link to a file of this commit."""
        return hf_hub_url(self.repo_id, file.path, revision=self.commit, endpoint=self.endpoint)

    def warnings(self) -> tuple[str, ...]:
        """Return a warning if the repo was renamed: a new repo may get its old name."""
        if self.repo_id.lower() == self.asked_as.lower():
            return ()
        return (f"the repo {self.asked_as[:100]} is now called {self.repo_id[:100]}",)


@contextlib.contextmanager
def hub_session(client: HttpClient) -> Iterator[httpx2.Client]:
    """Yield a client for files. Until it is closed, `huggingface_hub` uses such a client, too."""
    # With telemetry, it would send further requests to the endpoint.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    # A server can write into the log with the header X-HF-Warning.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    huggingface_hub.set_client_factory(
        lambda: client.session(max_bytes=_MAX_RESPONSE, for_hub=True)
    )
    try:
        with client.session(for_hub=True) as session:
            yield session
    finally:
        huggingface_hub.close_session()


def resolve(
    repo_id: str, revision: str, endpoint: str, token: str | None, retries: Retries
) -> Repo:
    """Find the commit that a revision names now, and its files."""
    api = HfApi(
        endpoint,
        # With None, huggingface_hub would use a token that it finds in the home folder.
        token=token or False,
        library_name="sd-loader",
        library_version=LOADER_VERSION,
    )
    shown = f"{endpoint}/{repo_id} at {snippet(revision)}"
    errors = HubErrors(f"{endpoint}/{repo_id}")

    def ask() -> huggingface_hub.ModelInfo:
        try:
            return api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=READ_SECONDS
            )
        except HfHubHTTPError as error:
            raise errors.refused(error.response, shown, token_sent=token is not None) from error
        except httpx2.RequestError as error:
            raise unreachable(shown, error) from error
        except HFValidationError as error:
            raise LoaderError(
                Reason.INVALID_SPEC, f"{repo_id} is not a Hugging Face repo id"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LoaderError(
                Reason.SOURCE_UNREACHABLE, f"{shown}: the response is not in the Hub's format"
            ) from error

    info = retries.run(ask)
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise LoaderError(Reason.SOURCE_UNREACHABLE, f"{shown}: the response has no commit")
    siblings = info.siblings or []
    try:
        listed = [_file(sibling) for sibling in siblings]
    except (ValidationError, AttributeError) as error:
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE, f"{shown}: the list of files is not in the Hub's format"
        ) from error
    check_names(file.path for file in listed)
    files = {file.path: file for file in listed}
    name = _name_now(info.id, repo_id)
    front_matter = vars(info.card_data) if isinstance(info.card_data, CardData) else {}
    card = card_of_repo(name, endpoint, front_matter)
    return Repo(endpoint, name, repo_id, info.sha, files, card)


def _file(sibling: RepoSibling) -> RepoFile:
    """Check a file of the response. `huggingface_hub` does not check the types of its fields."""
    listed = _Listed.model_validate(
        {
            "path": sibling.rfilename,
            "size": sibling.lfs.size if sibling.lfs else sibling.size or 0,
            "sha256": sibling.lfs.sha256 if sibling.lfs else None,
            "blob_id": sibling.blob_id,
        }
    )
    return RepoFile(listed.path, listed.size, listed.sha256, listed.blob_id)


def _name_now(received: object, asked: str) -> str:
    """Return the repo's present name. The Hub redirects from the old name of a renamed repo."""
    is_name = isinstance(received, str) and re.match(HUB_REPO_PATTERN, received)
    return str(received) if is_name else asked
