"""Decides which of the administrator's Secrets with tokens a load may read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sd_api.choices import ModelType
from sd_api.default_credentials import DefaultSecret, hosts_of
from sd_api.defaults import CIVITAI_ENDPOINT, HUB_ENDPOINT
from sd_api.load import LoadRequest
from sd_api.sources import CivitaiModel, HubFile, HubRepo, Link, read_source
from sd_api.spec import Spec
from sd_operator.base.settings import Settings


def own_secret(spec: Spec, entries: Mapping[str, DefaultSecret]) -> str | None:
    """Return the Secret that a model names, unless it is one of the administrator's (`entries`).

    The administrator decides the host and the use of these Secrets. Without this rule, a model
    could name one to open private repos, or to send the token of another host to the Hub.
    """
    ref = spec.credentials_secret_ref
    if ref is None or ref.name in {secret.name for secret in entries.values()}:
        return None
    return ref.name


def default_secrets(
    request: LoadRequest, settings: Settings, *, by_gateway: bool = False
) -> dict[str, DefaultSecret]:
    """Return the administrator's Secrets for the hosts that a request names.

    A repo of the Hub and a page of Civitai name the host of the configured endpoint, which may be a
    mirror. A request with credentials of its own gets none of these Secrets.

    by_gateway: whether a caller of the gateway chose one of the sources. The request then gets only
    the Secrets that are for such callers.
    """
    if request.credentials:
        return {}
    named = {host for url in _links(request, settings) for host in hosts_of(url)}
    return {
        host: secret
        for host, secret in settings.loader.default_credentials.items()
        if host in named and (secret.for_gateway or not by_gateway)
    }


def _links(request: LoadRequest, settings: Settings) -> Iterator[str]:
    hub = settings.hub_endpoint or HUB_ENDPOINT
    sources: list[tuple[str, ModelType | None]] = [(request.url, request.model_type)]
    sources += [(source.url, ModelType.VAE) for source in request.replacements().values()]
    # A file may lack components, which then come from the administrator's repo for its family.
    if request.components.from_ is not None or settings.loader.default_parts:
        yield hub
    for url, model_type in sources:
        match read_source(url, model_type, hub_endpoint=hub):
            case HubRepo() | HubFile():
                yield hub
            case CivitaiModel():
                yield settings.civitai_endpoint or CIVITAI_ENDPOINT
            case Link(link):
                yield link
    if request.original_config is not None:
        yield request.original_config
