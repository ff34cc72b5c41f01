"""Asks Civitai's public REST API, or a mirror of it, for a model or one of its versions."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.sites.civitai_answers import (
    Json,
    ModelAnswer,
    VersionAnswer,
    read_model,
    read_version,
)
from sd_api.sites.lenient_json import parse
from sd_loader.errors import LoaderError
from sd_loader.net.client import HttpClient
from sd_loader.net.exchange import Resource
from sd_loader.net.http_errors import refused, unreachable

MAX_RESPONSE = 4 << 20
"""Maximum bytes of a response of the API. A model with fifty versions takes a quarter of this."""


@dataclass(frozen=True)
class CivitaiApi:
    """The API at one endpoint."""

    client: HttpClient

    endpoint: str

    token: str | None = field(default=None, repr=False)

    def version(self, version_id: int) -> VersionAnswer:
        """Return a published version; raise SourceNotFound if there is none."""
        answer = self._get(f"model-versions/{version_id}", f"version {version_id}")
        return read_version(answer, version_id)

    def model(self, model_id: int) -> ModelAnswer:
        """Return a model; raise SourceNotFound if there is none."""
        return read_model(self._get(f"models/{model_id}", f"model {model_id}"))

    def _get(self, path: str, subject: str) -> Json:
        url = f"{self.endpoint}/api/v1/{path}"

        def ask() -> bytes:
            try:
                with Resource(session, url, self.token).get(
                    {"Accept": "application/json"}
                ) as response:
                    if response.status_code == 404:
                        raise LoaderError(
                            Reason.SOURCE_NOT_FOUND,
                            f"Civitai has no published {subject}: it was deleted or withdrawn, or"
                            " the number is wrong",
                        )
                    if response.status_code != 200:
                        raise refused(response, url, token_sent=self.token is not None)
                    return b"".join(response.iter_raw())
            except httpx2.RequestError as error:
                raise unreachable(url, error) from error

        with self.client.session(max_bytes=MAX_RESPONSE) as session:
            body = self.client.retries.run(ask)
        try:
            answer = parse(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LoaderError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact_url(url)}: the response is not in the format of Civitai's API",
            )
        return answer
