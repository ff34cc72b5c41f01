"""Fetches a small safetensors file at a link from a server on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sd_api.load import LoadRequest
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import PACE, Pace, Retries
from sd_loader.settings import Settings
from sd_loader.source.link import fetch_link
from sd_loader.source.ref import Checks, SourceRef
from tests.support.loader.fetches import QUICK


def safetensors(size: int = 300_000) -> bytes:
    """Return the bytes of a small, valid safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    header = header.encode() + b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(i % 251 for i in range(size))


BODY = safetensors()
SHA256 = hashlib.sha256(BODY).hexdigest()


def request(url: str, **fields: object) -> LoadRequest:
    """Return the request to load a checkpoint."""
    return LoadRequest.model_validate(
        {
            "owner": {"uid": "u", "namespace": "ns", "name": "n"},
            "modelId": "m",
            "modelType": "custom_ckpt",
            "loadHash": "0" * 16,
            "url": url,
            **fields,
        }
    )


def load(
    url: str,
    settings: Settings,
    into: Path,
    retries: Retries = QUICK,
    pace: Pace = PACE,
    **fields: object,
) -> Fetched:
    """Fetch a link; by default, retries do not wait."""
    asked = request(url, **fields)
    ref = SourceRef(
        url, "spec.url", asked.model_type, git_revision=asked.git_revision, needs_token=True
    )
    checks = Checks(asked.sha256, safetensors_only=bool(asked.from_safetensors))
    client = HttpClient(settings, has_token=asked.credentials, retries=retries, pace=pace)
    return fetch_link(ref, checks, client, into, lambda _progress: None)


def refusal(url: str, settings: Settings, into: Path, **fields: object) -> LoaderError:
    """Assert that the fetch fails, and return the error."""
    with pytest.raises(LoaderError) as caught:
        load(url, settings, into, **fields)
    return caught.value
