"""Maps error responses of the Hub, which states the cause of an error in headers of its own."""

from __future__ import annotations

from dataclasses import dataclass

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError
from sd_loader.net import http_errors
from sd_loader.net.error_body import quotation
from sd_loader.net.exchange import leads_elsewhere

_CODE = "X-Error-Code"
_MESSAGE = "X-Error-Message"
_GATED = "GatedRepo"
_PRIVATE = "the repo does not exist or is private"
_NOT_FOUND = {
    "RepoNotFound": _PRIVATE,
    "RevisionNotFound": "the repo has no such revision",
    "EntryNotFound": "the repo has no such file",
}


@dataclass(frozen=True)
class HubErrors:
    """Maps the error responses for one repo."""

    page: str
    """The repo's page, where its licence can be accepted."""

    def refused(self, response: httpx2.Response, url: str, *, token_sent: bool) -> LoaderError:
        """Map a response that is not the requested file or listing."""
        code, words = response.headers.get(_CODE, ""), response.headers.get(_MESSAGE, "")
        if not leads_elsewhere(url, response):
            if code == _GATED:
                return self._gated(response, words, token_sent=token_sent)
            if code in _NOT_FOUND:
                shown = f"{redact_url(url)} answered {response.status_code}"
                return LoaderError(Reason.SOURCE_NOT_FOUND, f"{shown}: {_NOT_FOUND[code]}")
            if response.status_code == 401 and not token_sent and not code:
                # Without a token, this response stands for private and for missing repos.
                return LoaderError(Reason.SOURCE_NOT_FOUND, f"{redact_url(url)}: {_PRIVATE}")
        return http_errors.refused(response, url, token_sent=token_sent, words=words)

    def _gated(self, response: httpx2.Response, words: str, *, token_sent: bool) -> LoaderError:
        if not token_sent:
            return LoaderError(
                Reason.AUTHENTICATION_REQUIRED,
                f"{redact_url(self.page)} is a gated repo: accept its licence on this page, and"
                " give a token of the same account",
            )
        return LoaderError(
            Reason.ACCESS_DENIED,
            f"{redact_url(self.page)} is a gated repo, and the token's account has no access to it"
            f"{quotation(response, '', words)}",
        )
