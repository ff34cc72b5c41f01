"""`sd-loader load`: makes the load request from the command line's arguments."""

from __future__ import annotations

import os
import re
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.default_credentials import hosts_of
from sd_api.load import LoadRequest, Owner
from sd_api.loader_env import LoaderEnv
from sd_api.loadhash import load_hash
from sd_api.names import NAME_MAX_LENGTH
from sd_api.reasons import Reason
from sd_api.sources import CivitaiModel, Link
from sd_api.spec import ComponentSource, Spec, VaeSource
from sd_loader.errors import LoaderError
from sd_loader.net.credentials import check_token, read_token_file
from sd_loader.settings import Settings
from sd_loader.source.locate import LocalFile, locate
from sd_loader.source.ref import SourceRef

NAMESPACE = "local"


def request_of(spec: Spec, model_id: str, *, credentials: bool = False) -> LoadRequest:
    """Make the request for a spec. A url that is the path of a file means this local file.

    No custom resource owns the model: its owner is derived from the model id.
    """
    url = spec.effective_url(model_id)
    if url is None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "a repo id, a link or a file is required (except for model type controlnet with"
            f" one of the model ids {', '.join(CONTROLNET_REPOS)})",
            field="spec.url",
        )
    url, state = _local(url)
    spec = spec.model_copy(update={"url": url, "model_id": model_id})
    states = [state]
    if spec.vae is not None:
        vae, state = _local(spec.vae.url)
        spec = spec.model_copy(update={"vae": VaeSource(url=vae)})
        states.append(state)
    for name, url in spec.components.replacements().items():
        component, state = _local(url)
        components = spec.components.model_copy(update={name: ComponentSource(url=component)})
        spec = spec.model_copy(update={"components": components})
        states.append(state)
    if spec.original_config is not None:
        config, state = _local(spec.original_config)
        spec = spec.model_copy(update={"original_config": config})
        states.append(state)
    owner = owner_of(model_id)
    # The state is part of the hash, so that a file that was changed in place is loaded again.
    digest = load_hash(spec, owner.name, reload=" ".join(filter(None, states)) or None)
    return LoadRequest.from_spec(spec, owner, digest, credentials=credentials)


def _local(url: str) -> tuple[str, str | None]:
    """Return a local file's absolute path and state. Return any other url unchanged, and None."""
    origin = Path(url)
    # Path.is_file would raise an error for a url that cannot be a file name.
    if "://" in url or not os.path.isfile(origin):  # noqa: PTH113
        return url, None
    status = origin.stat()
    return str(origin.absolute()), f"{status.st_size} {status.st_mtime_ns}"


def own_tokens(ref: SourceRef, settings: Settings, token_file: Path | None) -> dict[str, str]:
    """Return a person's tokens by host: for the Hub, for Civitai, and for the source (token_file).

    HF_TOKEN is for the host of HF_ENDPOINT, as in other programs. CIVITAI_TOKEN is for the host of
    Civitai's endpoint in the settings.
    """
    tokens: dict[str, str] = {}
    for url, name in (
        (settings.hub_endpoint, "hub_token"),
        (settings.civitai_endpoint, "civitai_token"),
    ):
        token = getattr(settings, name)
        if token is not None:
            check_token(token, f"the variable {LoaderEnv.name_of(name)}")
            tokens |= dict.fromkeys(hosts_of(url), token)
    if token_file is not None:
        link = _link_of(ref, settings)
        if link is None:
            raise LoaderError(
                Reason.INVALID_SPEC, "--token-file is for links and repos, not for local files"
            )
        tokens |= dict.fromkeys(hosts_of(link), read_token_file(token_file))
    return tokens


def _link_of(ref: SourceRef, settings: Settings) -> str | None:
    """Return a link with the host of the source. None for a local file."""
    match locate(ref, settings, allow_local=True):
        case LocalFile():
            return None
        case Link(url):
            return url
        case CivitaiModel():
            return settings.civitai_endpoint
        case _:
            return settings.hub_endpoint


def owner_of(model_id: str) -> Owner:
    """Return the owner of a model that is loaded by hand. One model id has always one owner."""
    name = re.sub(r"[^a-z0-9.-]", "-", model_id.lower())[:NAME_MAX_LENGTH]
    uid = str(uuid5(NAMESPACE_URL, f"sd-loader:{model_id}"))
    return Owner(uid=uid, namespace=NAMESPACE, name=name)
