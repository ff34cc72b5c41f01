"""Asks the API of the Hub, or of a mirror, for a repo's commit and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HFValidationError

from sd_api.card import NO_CARD, Card
from sd_api.reasons import Reason
from sd_api.sites.hub_answers import present_name
from sd_api.sites.hub_card import card_of_repo
from sd_loader.diffusers_repo.component_files import RepoFile, check_names
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError, prefixing
from sd_loader.net.client import HttpClient
from sd_loader.net.http_errors import unreachable
from sd_loader.net.transport import READ_SECONDS
from sd_loader.snippet import snippet
from sd_loader.source.hub_errors import HubErrors
from sd_loader.source.hub_listing import RepoListing, read_listing

_MAX_RESPONSE = 32 << 20
"""Maximum bytes of a response of the API. The list of 10,000 files takes a tenth of this."""


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


def resolve(
    repo_id: str, revision: str, endpoint: str, token: str | None, client: HttpClient
) -> Repo:
    """Find the commit that a revision names now, and its files."""
    shown = f"{endpoint}/{repo_id} at {snippet(revision)}"
    errors = HubErrors(f"{endpoint}/{repo_id}")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        hf_hub_url(repo_id, CONFIG_NAME)  # It raises an error for an invalid repo id.
    except HFValidationError as error:
        raise LoaderError(
            Reason.INVALID_SPEC, f"{repo_id} is not a Hugging Face repo id"
        ) from error

    def ask() -> RepoListing:
        try:
            # HfApi.model_info would also parse fields of README.md, and fail if one is odd.
            response = session.get(
                f"{endpoint}/api/models/{repo_id}/revision/{quote(revision, safe='')}",
                params={"blobs": True},
                headers=headers,
                timeout=READ_SECONDS,
            )
        except httpx2.RequestError as error:
            raise unreachable(shown, error) from error
        if response.status_code != 200:
            raise errors.refused(response, shown, token_sent=token is not None)
        with prefixing(shown):
            return read_listing(response.content)

    with client.session(max_bytes=_MAX_RESPONSE, for_hub=True) as session:
        answer = client.retries.run(ask)
    check_names(file.path for file in answer.files)
    files = {file.path: file for file in answer.files}
    name = present_name(answer.name, repo_id)
    card = card_of_repo(name, endpoint, answer.front_matter)
    return Repo(endpoint, name, repo_id, answer.commit, files, card)
