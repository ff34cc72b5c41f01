"""One HTTP exchange: follows redirects, and reads ranges and versions from response headers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime

import httpx2

from sd_api.netguard import MAX_REDIRECTS
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError


@dataclass(frozen=True)
class Resource:
    """A url, the client for it, and the token."""

    client: httpx2.Client

    url: str

    token: str | None = field(default=None, repr=False)
    """Sent to the url's own origin. A redirect to another origin drops it."""

    @contextlib.contextmanager
    def get(self, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Send a GET request and follow redirects. The response's body is not read yet."""
        sent = dict(headers)
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        request = self.client.build_request("GET", self.url, headers=sent)
        for _ in range(1 + MAX_REDIRECTS):
            response = self.client.send(request, stream=True, follow_redirects=False)
            with contextlib.closing(response):
                following = response.next_request
                if following is None:
                    yield response
                    return
            if origin(following.url) != origin(request.url):
                following.headers.pop("Authorization", None)
            request = following
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE,
            f"{redact_url(self.url)} redirects more than {MAX_REDIRECTS} times",
        )


def origin(url: httpx2.URL) -> tuple[str, str, int]:
    """Return scheme, host and port, which is the default port if the url has none."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def leads_elsewhere(url: str, response: httpx2.Response) -> bool:
    """Whether a response comes from another origin than that of the requested link."""
    try:
        return origin(httpx2.URL(url)) != origin(response.url)
    except httpx2.InvalidURL:
        return False


def validator(response: httpx2.Response) -> str | None:
    """Return a value for If-Range: a strong ETag or a date. None if the response has neither.

    A date from the same second as the response is not used, because the file may change again
    within this second (RFC 9110, section 8.8.2.2).
    """
    etag: str = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    modified: str = response.headers.get("Last-Modified", "")
    try:
        age = parsedate_to_datetime(response.headers["Date"]) - parsedate_to_datetime(modified)
    except (KeyError, ValueError, TypeError):  # A date is missing, invalid or has no time zone.
        return None
    return modified if age >= timedelta(seconds=1) else None


def total_bytes(response: httpx2.Response) -> int | None:
    """Return the length of the whole file. None if the headers do not state it."""
    header, pattern = (
        ("Content-Length", r"(\d{1,18})")
        if response.status_code == 200
        else ("Content-Range", r"bytes (?:\d+-\d+|\*)/(\d{1,18})")
    )
    match = re.fullmatch(pattern, response.headers.get(header, "").strip(), re.ASCII)
    return int(match[1]) if match else None


def first_byte(response: httpx2.Response) -> int | None:
    """Return the position where the response's range begins. None if it has no range."""
    match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""), re.ASCII)
    return int(match[1]) if match else None


def refuse_encoded(response: httpx2.Response) -> None:
    """Refuse a compressed response: sizes, ranges and digests are those of the file itself."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE,
            f"{redact_url(str(response.url))} sent a compressed response, which was not requested",
        )
